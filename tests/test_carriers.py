"""What is special about executors and native threads, beside the table in test_anywhere.py."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from functools import wraps
from multiprocessing import get_context
from queue import Empty
from typing import Any

import gevent
import pytest
from gevent import monkey
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from greendefer import (
    ExecutorFailed,
    ExecutorPool,
    GreendeferError,
    NativeThreadPool,
    WouldDeadlock,
    blocking_from_greenlet,
    wait_for_deferred,
)
from greendefer._carriers import executors, native, threads
from greendefer._carriers.pickling import run_pickled

# Executors.


def test_calls_that_an_executor_drops(gate: Any, result: Any) -> None:
    if monkey.is_module_patched("threading"):
        pytest.skip("its threads are greenlets, and it waits for them")
    executor = ThreadPoolExecutor(1)
    pool = ExecutorPool(executor, 2)
    begun, go = threading.Event(), threading.Event()
    running = pool.submit(lambda: begun.set() or go.wait())
    while not begun.is_set():
        gevent.sleep(0.001)
    dropped = result(pool.submit(len, "four"))
    executor.shutdown(wait=False, cancel_futures=True)
    assert dropped.error() is ExecutorFailed
    assert "was dropped" in str(dropped.get().value)
    go.set()
    assert wait_for_deferred(running, 20)


def test_an_executor_that_is_broken_and_can_not_be_replaced(result: Any) -> None:
    def initializer() -> None:
        raise ValueError("no thread is fit for anything")

    executor = ThreadPoolExecutor(1, initializer=initializer)
    pool = ExecutorPool(executor, 1)
    assert result(pool.submit(len, "")).error() is ExecutorFailed
    again = result(pool.submit(len, "")).get().value
    assert type(again) is ExecutorFailed
    assert "refused it" in str(again)
    executor.shutdown(wait=False)


def test_a_process_pool_in_place_of_a_broken_one_that_forked() -> None:
    """Where fork is gevent's, a child would have the greenlets that clean up after that one."""
    broken = ProcessPoolExecutor(1, mp_context=get_context("fork"))
    another: Any = executors._another(broken)
    method = another._mp_context.get_start_method()
    anew = "forkserver" if sys.version_info < (3, 14) else "spawn"
    assert method == (anew if monkey.is_object_patched("os", "fork") else "fork")
    broken.shutdown()
    another.shutdown()


def test_a_call_that_is_cancelled_before_its_executor_has_it(result: Any) -> None:
    """Patched, it is handed over by a greenlet of its own, since that may wait."""
    pool = ExecutorPool(ThreadPoolExecutor(1), 1)
    ran: list[int] = []
    d = pool.submit(ran.append, 1)
    fired = result(d)
    d.cancel()
    assert fired.error() is CancelledError
    assert wait_for_deferred(pool.submit(len, "four"), 20) == 4
    if monkey.is_module_patched("threading"):
        assert ran == []
    wait_for_deferred(pool.close(), 20)


def test_a_call_that_is_cancelled_in_its_executors_queue(result: Any) -> None:
    """The thread that finds it there passes it over."""
    with ThreadPoolExecutor(1) as executor:
        pool = ExecutorPool(executor, 3)
        go, ran = threading.Event(), []
        running = pool.submit(go.wait)
        cancelled = pool.submit(ran.append, "cancelled")
        last = pool.submit(ran.append, "last")
        while executor._work_queue.qsize() < 2:
            gevent.sleep(0.001)
        got = result(cancelled)
        cancelled.cancel()
        assert got.error() is CancelledError
        go.set()
        assert wait_for_deferred(running, 20)
        wait_for_deferred(last, 20)
        assert ran == ["last"]


def test_a_call_waits_for_one_that_another_slot_will_be_free_for(result: Any) -> None:
    """Slots of an executor can't be lent. But only where all of them are held by calls that wait so
    is there no end to it."""
    with ThreadPoolExecutor(4) as executor:
        pool: Any = ExecutorPool(executor, 2)
        inner: list[Any] = []

        @blocking_from_greenlet
        def call_inner() -> Any:
            inner.append(pool.submit(len, "four"))
            return inner[-1]

        def held(f: Any) -> tuple[Any, Any]:
            lock = threading.Lock()
            lock.acquire()
            return lock, pool.submit(lambda: lock.acquire() and f())

        lock, first = held(int)
        heard = result(pool.submit(call_inner))
        while not inner:
            gevent.sleep(0.001)
        assert inner[0].is_queued
        assert not heard.fired.is_set()
        lock.release()
        assert heard.get() == 4
        assert wait_for_deferred(first, 20) == 0

        # Both wait: the last of them is told.
        locks, calls = zip(*(held(call_inner) for _ in range(2)), strict=True)
        heard_both = [result(call) for call in calls]
        while not all(call.is_running for call in calls):
            gevent.sleep(0.001)
        for lock in locks:
            lock.release()
        values = [each.get() for each in heard_both]
        (refused,) = (each for each in values if isinstance(each, Failure))
        assert refused.type is WouldDeadlock, refused
        assert 4 in values
        wait_for_deferred(pool.close(), 20)


class InterpreterPoolExecutor(ThreadPoolExecutor):
    """That of Python 3.14 is such a subclass, but shares nothing with what runs there."""

    def submit(self, f: Any, /, *args: Any, **kwargs: Any) -> Any:
        assert f is run_pickled
        return super().submit(f, *args, **kwargs)


def test_interpreters_get_bytes() -> None:
    with InterpreterPoolExecutor(1) as executor:
        assert wait_for_deferred(ExecutorPool(executor, 1).submit(inner, 1), 20) == 2


class StrangeExecutor(Executor):
    """It returns no futures, or those of a kind of its own."""

    def __init__(self, returns: Any) -> None:
        self.returns = returns

    def submit(self, f: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self.returns


class StrangeFuture(Future[Any]):
    def exception(self, timeout: float | None = None) -> Any:
        raise OSError("lost")


def test_executors_whose_futures_are_none(result: Any, stats: Any) -> None:
    pool = ExecutorPool(StrangeExecutor(None), 1)
    failed = result(pool.submit(len, "four")).get().value
    assert type(failed) is ExecutorFailed
    assert "returned None, and no future" in str(failed)
    future = StrangeFuture()
    future.set_result(4)
    pool = ExecutorPool(StrangeExecutor(future), 1)
    failed = result(pool.submit(len, "four")).get().value
    assert type(failed) is ExecutorFailed
    assert "which failed: OSError('lost')" in str(failed)
    assert stats(pool).failed == 1


def test_a_process_pool_that_its_owner_has_shut_down(result: Any) -> None:
    executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    executor.shutdown()
    failed = result(ExecutorPool(executor, 1).submit(len, "four")).get().value
    assert type(failed) is ExecutorFailed
    assert "after shutdown" in str(failed), failed


def test_a_call_that_is_cancelled_while_its_executor_is_made(gate: Any, result: Any) -> None:
    """Where that waits, the reactor goes on, if it is a greenlet that waits."""
    if not monkey.is_module_patched("threading"):
        pytest.skip("it is made in the reactor's greenlet, which must not wait")
    ran: list[int] = []
    with ThreadPoolExecutor(1) as executor:
        pool = ExecutorPool(lambda: gate(executor), 2)
        first, second = pool.submit(ran.append, 1), pool.submit(ran.append, 2)
        third = pool.submit(ran.append, 3)
        assert gate.entered.wait(10)
        heard = result(first), result(third)
        first.cancel()
        third.cancel()
        assert [each.error() for each in heard] == [CancelledError] * 2
        gate.opened.set()
        wait_for_deferred(second, 20)
        wait_for_deferred(pool.close(), 20)
    assert ran == [2]


def test_an_executor_that_can_not_be_made_for_a_call_that_is_cancelled(
    gate: Any, result: Any, stats: Any
) -> None:
    if not monkey.is_module_patched("threading"):
        pytest.skip("it is made in the reactor's greenlet, which must not wait")
    pool = ExecutorPool(lambda: gate(ValueError("none today")), 1)
    d = pool.submit(len, "four")
    assert gate.entered.wait(10)
    heard = result(d)
    d.cancel()
    assert heard.error() is CancelledError
    gate.opened.set()
    assert result(pool.submit(len, "four")).error() is ExecutorFailed
    s = stats(pool)
    assert (s.cancelled, s.failed, s.lingering) == (1, 1, 0)


class Noted(ThreadPoolExecutor):
    """It notes that it was shut down; that may fail."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__(1)
        self.fails = fails
        self.is_down = gevent.event.Event()

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        super().shutdown(*args, **kwargs)
        self.is_down.set()
        if self.fails:
            raise ValueError("not today")


def test_what_a_pool_has_made_is_shut_down_when_it_is_closed() -> None:
    """When the last call has really ended: here, one that nobody waits for any more."""
    made: list[Noted] = []
    pool = ExecutorPool(lambda: made.append(Noted()) or made[-1], 2)  # type: ignore[func-returns-value]
    begun, go = threading.Event(), threading.Event()
    running = pool.submit(lambda: (begun.set(), go.wait()))
    running.addErrback(lambda _: None)
    while not begun.is_set():
        gevent.sleep(0.001)
    running.cancel()
    wait_for_deferred(pool.close(grace=0), 20)
    gevent.sleep(0)
    (executor,) = made
    assert not executor.is_down.is_set()
    go.set()
    assert executor.is_down.wait(20)
    wait_for_deferred(pool.close(), 20)  # and again


def test_worker_processes_end_with_their_pool() -> None:
    def make() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    pool = ExecutorPool(make, 1)
    pid = wait_for_deferred(pool.submit(os.getpid), 60)
    wait_for_deferred(pool.close(), 20)
    with gevent.Timeout(60):
        while is_alive(pid):
            gevent.sleep(0.01)


def is_alive(pid: int) -> bool:
    multiprocessing.active_children()  # reaps
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_it_was_given_is_its_owners_to_shut_down() -> None:
    with Noted() as executor:
        pool = ExecutorPool(executor, 1)
        assert wait_for_deferred(pool.submit(len, "four"), 20) == 4
        wait_for_deferred(pool.close(), 20)
        gevent.sleep(0)
        assert not executor.is_down.is_set()


def test_an_executor_that_is_made_when_its_pool_is_closed_already(gate: Any, result: Any) -> None:
    if not monkey.is_module_patched("threading"):
        pytest.skip("it is made in the reactor's greenlet, which must not wait")
    executor = Noted()
    pool = ExecutorPool(lambda: gate(executor), 1)
    d = pool.submit(len, "four")
    assert gate.entered.wait(10)
    heard = result(d)
    d.cancel()
    assert heard.error() is CancelledError
    wait_for_deferred(pool.close(), 20)
    gate.opened.set()
    assert executor.is_down.wait(20)


def test_an_executor_that_fails_as_it_is_shut_down(logged: Any) -> None:
    executor = Noted(fails=True)
    pool = ExecutorPool(lambda: executor, 1)
    assert wait_for_deferred(pool.submit(len, "four"), 20) == 4
    wait_for_deferred(pool.close(), 20)
    assert executor.is_down.wait(20)
    (event,) = [event for event in logged if event["isError"]]
    assert event["log_failure"].type is ValueError
    logged.clear()


class HereExecutor(Executor):
    """One of another kind than those that are known to have threads: calls go there as bytes."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1)

    def submit(self, f: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self._threads.submit(f, *args, **kwargs)

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        self._threads.shutdown(*args, **kwargs)


def plain(n: int) -> int:
    return n + 1


def wrapped(f: Any, times: int) -> Any:
    for _ in range(times):

        @wraps(f)
        def wrapper(*args: Any, _f: Any = f, **kwargs: Any) -> Any:
            return -_f(*args, **kwargs)

        f = wrapper
    return f


inner, decorated = plain, wrapped(plain, 1)
plain = decorated


class Doubling:
    def __init__(self, n: int) -> None:
        self.n = n

    def add(self, n: int) -> int:
        return self.n + n

    __eq__ = object.__eq__
    __hash__ = object.__hash__


original_add = Doubling.add
Doubling.add = wrapped(Doubling.add, 1)  # type: ignore[method-assign]


@pytest.fixture
def by_bytes() -> Iterator[ExecutorPool]:
    with HereExecutor() as executor:
        yield ExecutorPool(executor, 1)


def test_what_a_decorated_name_stands_for_is_found_in_the_worker(by_bytes: ExecutorPool) -> None:
    assert wait_for_deferred(by_bytes.submit(inner, 1), 20) == 2
    assert wait_for_deferred(by_bytes.submit(decorated, 1), 20) == -2
    bound = types.MethodType(original_add, Doubling(2))
    assert wait_for_deferred(by_bytes.submit(bound, 3), 20) == 5


def test_what_is_under_too_many_decorators_is_refused(
    by_bytes: ExecutorPool, monkeypatch: pytest.MonkeyPatch, result: Any
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "plain", wrapped(inner, 6))
    failed = result(by_bytes.submit(inner, 1))
    assert failed.error() is GreendeferError
    assert "can't be sent to another process" in str(failed.get().value)


# Threads.


class HeldMailbox:
    """The mailbox of a native thread, whose time can be told to be up just as something comes."""

    made: list[HeldMailbox]

    def __init__(self) -> None:
        self.made.append(self)
        self.items = NativeQueue()
        self.before_second = NativeQueue()
        self.waits = NativeQueue()
        self.late = False
        self.gets = 0

    def put(self, item: Any) -> None:
        self.items.put(item)

    def get(self, timeout: float | None = None) -> Any:
        self.gets += 1
        if self.gets == 2:
            self.waits.put(None)
            self.before_second.get(timeout=20)
            if self.late:
                raise Empty
        return self.items.get(timeout=20)


NativeQueue: Any = native.Mailbox


@pytest.fixture
def mailboxes(monkeypatch: pytest.MonkeyPatch) -> list[HeldMailbox]:
    HeldMailbox.made = []
    monkeypatch.setattr(threads, "Mailbox", HeldMailbox)
    return HeldMailbox.made


def test_a_call_that_comes_as_its_idle_thread_was_about_to_go(mailboxes: Any) -> None:
    pool = NativeThreadPool(1)
    assert wait_for_deferred(pool.submit(len, "four"), 20) == 4
    (mailbox,) = mailboxes
    mailbox.waits.get(timeout=20)
    mailbox.late = True
    d = pool.submit(len, "fives")
    mailbox.before_second.put(None)
    assert wait_for_deferred(d, 20) == 5
    assert len(mailboxes) == 1
    wait_for_deferred(pool.close(), 20)


def test_a_thread_that_is_not_taken_back_when_its_time_is_up(mailboxes: Any) -> None:
    """It has left; the next call has a new one."""
    pool = NativeThreadPool(1)
    assert wait_for_deferred(pool.submit(len, "four"), 20) == 4
    (mailbox,) = mailboxes
    mailbox.waits.get(timeout=20)
    thread = leave(pool, mailbox)
    d = pool.submit(len, "fives")
    assert wait_for_deferred(d, 20) == 5
    assert len(mailboxes) == 2
    assert thread not in carrier_of(pool)._idle
    wait_for_deferred(pool.close(), 20)


def test_a_thread_that_has_left_is_forgotten_when_another_is_free(
    mailboxes: Any, gates: Any
) -> None:
    pool = NativeThreadPool(2)
    release = [native.allocate_lock() for _ in range(2)]
    for lock in release:
        lock.acquire()
    calls = [pool.submit(lock.acquire) for lock in release]
    for lock, d in zip(release, calls, strict=True):
        lock.release()
        assert wait_for_deferred(d, 20) is True
    # They are idle in this order; the first one leaves, the second runs the next call.
    first, _ = carrier_of(pool)._idle
    first_mailbox = first._inbox
    first_mailbox.waits.get(timeout=20)
    assert leave(pool, first_mailbox) is first
    d = pool.submit(len, "four")
    for mailbox in mailboxes:
        mailbox.before_second.put(None)
    assert wait_for_deferred(d, 20) == 4
    assert first not in carrier_of(pool)._idle
    wait_for_deferred(pool.close(), 20)


def carrier_of(pool: NativeThreadPool) -> Any:
    return pool._carrier


def leave(pool: NativeThreadPool, mailbox: HeldMailbox) -> Any:
    """Have the thread that waits there go, because nothing came for so long."""
    (thread,) = (each for each in carrier_of(pool)._idle if each._inbox is mailbox)
    mailbox.late = True
    mailbox.before_second.put(None)
    thread.join(20)
    assert thread.has_left
    return thread


def test_a_thread_that_does_not_end_is_waited_for_no_longer() -> None:
    ends = native.allocate_lock()
    ends.acquire()
    join = native.start_thread(ends.acquire, "test")
    join(0.001)
    ends.release()
    join(20)


def test_a_call_that_is_cancelled_before_its_thread_takes_it(mailboxes: Any, result: Any) -> None:
    pool = NativeThreadPool(1)
    assert wait_for_deferred(pool.submit(len, "four"), 20) == 4
    (mailbox,) = mailboxes
    mailbox.waits.get(timeout=20)
    d = pool.submit(len, "fives")
    cancelled = result(d)
    d.cancel()
    assert cancelled.error() is CancelledError
    assert pool.stats().running == pool.stats().lingering == 0
    mailbox.before_second.put(None)
    assert wait_for_deferred(pool.submit(len, "sixsix"), 20) == 6
    wait_for_deferred(pool.close(), 20)


def test_a_workers_call_that_is_cancelled_before_its_thread_takes_it(
    mailboxes: Any, result: Any, in_reactor: Callable[..., Any], wait_a_turn: Any
) -> None:
    """Its own mailbox is the second one: the first is that of the thread that serves it."""

    async def main() -> int:
        async with NativeThreadPool(1).worker() as worker:
            assert await worker.submit(len, "four") == 4
            while not (waiting := [each for each in mailboxes if each.gets == 2]):
                await wait_a_turn()
            (mailbox,) = waiting
            mailbox.waits.get(timeout=20)
            d = worker.submit(len, "fives")
            d.addErrback(lambda failure: failure.trap(CancelledError) and None)
            d.cancel()
            mailbox.before_second.put(None)
            assert await d is None
            return await worker.submit(len, "sixsix")

    assert in_reactor(lambda: Deferred.fromCoroutine(main())) == 6


def _sleep_in_a_hub() -> None:
    gevent.sleep(0)


@pytest.mark.parametrize("use", [gevent.get_hub, _sleep_in_a_hub])
def test_a_thread_that_has_ended_leaves_no_hub(use: Callable[[], object]) -> None:
    """It had one if a call used gevent there."""
    hubs: list[Any] = []

    def in_thread() -> None:
        use()
        hubs.append(weakref.ref(gevent.get_hub()))

    native.start_thread(in_thread, "has a hub")(20)
    gc.collect()
    assert [hub() for hub in hubs] == [None]


@pytest.mark.parametrize("found", ["before", "meanwhile", "not yet"])
def test_a_process_pool_that_breaks_as_it_takes_a_call(
    found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manager ended before it saw the call, or failed it; what was just started is ended."""
    ended: list[str] = []
    future: Future[Any] = Future()

    class Process:
        def terminate(self) -> None:
            ended.append("a process")

    class Broken(ProcessPoolExecutor):
        def __init__(self) -> None:
            pass

        _broken = "A process was terminated abruptly"
        _processes = types.MappingProxyType({1: Process()})

        def submit(self, /, *args: Any, **kwargs: Any) -> Future[Any]:
            if found == "before":
                raise BrokenExecutor(self._broken)
            if found == "meanwhile":
                future.set_exception(BrokenExecutor(self._broken))
            return future

    monkeypatch.setattr(executors, "ENDING_SECONDS", 0.001)
    if found == "meanwhile":
        assert executors._submit_to(Broken(), b"") is future
    else:
        with pytest.raises(BrokenExecutor, match="terminated" if found == "before" else "as it"):
            executors._submit_to(Broken(), b"")
    assert ended == ["a process"]
