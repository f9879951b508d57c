"""What seldom happens: branches that no program comes through on a good day."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
import types
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from queue import Empty
from typing import Any

import gevent
import pytest
from gevent import monkey
from greenlet import GreenletExit
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python import context

import greendefer
from greendefer import (
    CallTimeout,
    ExecutorFailed,
    ExecutorPool,
    GreendeferError,
    GreenIterator,
    GreenPool,
    NativeThreadPool,
    blocking_from_greenlet,
    doctor,
    green_deferred,
    green_iterator,
    wait_for_deferred,
    with_options,
)
from greendefer.carriers import threads
from greendefer.holdups import HoldupWatch
from greendefer.protocols import MANY
from greendefer.reactor import _installed
from greendefer.reactor._dispatch import call_with_logger
from greendefer.reactor._stock import native_kind
from greendefer.reactor.wait import READ, CooperativeWait
from greendefer.testing import ClockPool, InlinePool
from greendefer.threadpool import GreenThreadPool


def test_an_abandoned_call_is_killed_where_its_pool_is_closed_without_grace(
    gate: Any, result: Any
) -> None:
    pool = GreenPool(1)
    d = green_deferred(gate, pool=pool, on_cancel="abandon")()
    cancelled = result(d)
    assert gate.entered.wait(20)
    d.cancel()
    assert cancelled.error() is CancelledError
    assert pool.stats().lingering == 1
    greendefer.wait_for_deferred(pool.close(grace=0), 20)
    assert gate.ended.wait(20)


def test_start_reactor_in_another_thread_than_the_reactors() -> None:
    with pytest.raises(GreendeferError, match="another thread"):
        gevent.get_hub().threadpool.apply(greendefer.start_reactor)


def test_a_greenlet_of_another_threads_hub_can_not_be_waited_for() -> None:
    theirs = gevent.get_hub().threadpool.apply(gevent.Greenlet, (int,))
    with pytest.raises(GreendeferError, match="hub of another thread"):
        greendefer.wait_for_greenlet(theirs)


def test_a_wait_for_a_greenlet_that_is_cancelled_as_that_one_ends(result: Any) -> None:
    g = gevent.spawn(int, "7")
    d = greendefer.wait_for_greenlet(g)
    cancelled = result(d)
    g.join()  # what it returned is on its way to the reactor
    d.cancel()
    assert cancelled.error() is CancelledError
    gevent.sleep(0.01)
    assert len(cancelled.values) == 1


def test_messages_name_the_function_inside_of_a_partial(gate: Any, result: Any) -> None:
    pool = GreenPool(1, max_queued=0)
    running = pool.submit(gate)
    full = result(pool.submit(partial(partial(sorted, [2, 1]), reverse=True)))
    assert full.get().getErrorMessage().startswith("sorted: ")
    gate.opened.set()
    greendefer.wait_for_deferred(running)


def test_a_coroutine_that_would_not_be_closed_is_refused_all_the_same() -> None:
    @types.coroutine
    def pause() -> Generator[None, None, None]:
        yield

    async def stubborn() -> None:
        for _ in range(2):
            try:
                await pause()
            except GeneratorExit:
                pass

    def begun() -> Any:
        coroutine = stubborn()
        coroutine.send(None)
        return coroutine

    with pytest.raises(TypeError, match="is async already"):
        greendefer.wait_for_deferred(GreenPool(1).submit(begun))


def test_a_worker_is_entered_once(in_reactor: Callable[..., Any]) -> None:
    pool = GreenPool(1)

    def twice() -> Any:
        worker = pool.worker()
        worker.open().addErrback(lambda failure: failure.trap(CancelledError))
        with pytest.raises(RuntimeError, match="was entered before"):
            worker.open()
        return worker.leave()

    in_reactor(twice)
    assert pool.stats().running == 0


def test_a_proxy_can_not_be_left_by_a_plain_with() -> None:
    proxy = greendefer.green_proxy(object())
    with pytest.raises(TypeError, match="async with"):
        proxy.__exit__(None, None, None)


class Selectable:
    def logPrefix(self) -> str:
        return "mine"


class AnotherTracker:
    """As whoever calls twisted.python.context.installContextTracker() may have it."""

    def callWithContext(self, ctx: Any, f: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        return f(*args, **kw)

    def getContext(self, key: Any, default: Any = None) -> Any:
        return {} if default is None else default


def test_an_event_under_somebody_elses_context_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "theContextTracker", AnotherTracker())
    monkeypatch.setattr(context, "call", AnotherTracker().callWithContext)
    monkeypatch.setattr(context, "get", AnotherTracker().getContext)
    assert call_with_logger(Selectable(), int, "7") == 7


def test_what_an_event_raises_is_logged_with_its_prefix(logged: list[dict[str, Any]]) -> None:
    call_with_logger(Selectable(), lambda: 1 // 0)
    (error,) = [event for event in logged if event["isError"]]
    logged.remove(error)
    assert error["failure"].check(ZeroDivisionError)
    assert error["system"] == "mine"


def test_a_keyboard_interrupt_is_no_error_of_an_event() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_with_logger(Selectable(), interrupted)


@pytest.mark.parametrize(
    ("has", "kind"), [("epoll", "epoll"), ("kqueue", "kqueue"), ("", "select")]
)
def test_the_native_poller(has: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_original(module: str, name: str) -> Any:
        if name != has:
            raise AttributeError(name)

    monkeypatch.setattr(monkey, "get_original", get_original)
    assert native_kind() == kind


# Waiting.


def test_a_wait_whose_deferred_fires_as_its_time_is_up(in_reactor: Callable[..., Any]) -> None:
    """Two deadlines are due at once, and what the first one cancels fires the second one's."""
    second: Deferred[str] = Deferred()
    first: Deferred[None] = Deferred(lambda _: second.callback("just in time"))
    with_errors: list[Any] = []

    def wait_for_first() -> None:
        with pytest.raises(CallTimeout):
            wait_for_deferred(first, 0.01)
        with_errors.append(1)

    waiting = gevent.spawn(wait_for_first)
    second_waiting = gevent.spawn(wait_for_deferred, second, 0.01)
    gevent.sleep(0)
    in_reactor(monkey.get_original("time", "sleep"), 0.05)
    assert second_waiting.get(timeout=20) == "just in time"
    waiting.join(20)
    assert with_errors == [1]


@pytest.mark.parametrize("timeout", [None, 0.01])
def test_what_is_raised_while_the_slot_is_still_lent(timeout: float | None, gates: Any) -> None:
    """The first of it, and only when the borrower has ended."""
    pool = GreenPool(1)
    at_work, at_its_end = gates(2)
    seen: list[str] = []

    def borrower() -> None:
        try:
            at_work()
        finally:
            at_its_end()
            seen.append("borrower")

    def lender() -> None:
        try:
            with gevent.Timeout(0.04, KeyError()), gevent.Timeout(0.02, IndexError()):
                wait_for_deferred(green_deferred(borrower, pool=pool)(), timeout)
        except IndexError:
            seen.append("IndexError")

    running = pool.submit(lender)
    assert at_its_end.entered.wait(20)
    gevent.spawn_later(0.1, seen.append, "both times are up").join()
    assert seen == ["both times are up"]
    at_its_end.opened.set()
    wait_for_deferred(running, 20)
    assert seen[1:] == ["borrower", "IndexError"]


# Async things in blocking code.


def test_an_async_block_that_is_entered_too_late_is_left(in_reactor: Callable[..., Any]) -> None:
    left: list[Any] = []
    over = gevent.event.Event()
    entered: Deferred[None] = Deferred()

    class Slow:
        async def __aenter__(self) -> Slow:
            with contextlib.suppress(CancelledError):
                await entered
            return self

        async def __aexit__(self, *exc_info: object) -> None:
            left.append(exc_info[0])
            over.set()

    with pytest.raises(CallTimeout), blocking_from_greenlet(Slow, timeout=0.01)():
        raise AssertionError("it was not entered")
    assert over.wait(20)
    assert left == [CancelledError]


def test_what_fails_when_nobody_waits_for_it_is_logged(logged: list[dict[str, Any]]) -> None:
    over = gevent.event.Event()
    never: Deferred[None] = Deferred()

    @blocking_from_greenlet(timeout=0.01)
    async def numbers() -> AsyncIterator[int]:
        try:
            await never
            yield 1
        except CancelledError:
            over.set()
            raise ValueError("as it was cancelled") from None

    with pytest.raises(CallTimeout):
        next(numbers())
    assert over.wait(20)
    gevent.sleep(0)
    (error,) = [event for event in logged if event["isError"]]
    logged.remove(error)
    assert error["log_failure"].check(ValueError)


# Executors.


def test_calls_that_an_executor_drops(gate: Any, result: Any) -> None:
    if monkey.is_module_patched("threading"):
        pytest.skip("its threads are greenlets, and it waits for them")
    executor = ThreadPoolExecutor(1)
    pool = ExecutorPool(executor, 2)
    go = threading.Event()
    running = pool.submit(go.wait)
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


class HereExecutor(ThreadPoolExecutor):
    """One of another kind than those that are known to have threads: calls go there as bytes."""

    def submit(self, f: Any, /, *args: Any, **kwargs: Any) -> Any:
        return super().submit(f, *args, **kwargs)


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
    with HereExecutor(1) as executor:
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


NativeQueue: Any = threads.SimpleQueue


@pytest.fixture
def mailboxes(monkeypatch: pytest.MonkeyPatch) -> list[HeldMailbox]:
    HeldMailbox.made = []
    monkeypatch.setattr(threads, "SimpleQueue", HeldMailbox)
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
    mailboxes: Any, result: Any, in_reactor: Callable[..., Any]
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


# Options, hooks, iterators.


def test_options_of_a_decorated_function_that_is_bound_by_hand() -> None:
    """As Python 3.13 has a classmethod around one."""
    call = with_options(types.MethodType(green_deferred(pow), 2), timeout=20)
    assert wait_for_deferred(call(10)) == 1024


def test_hooks_with_a_logger_and_calls_that_never_ran(result: Any) -> None:
    prometheus = pytest.importorskip("prometheus_client")
    from greendefer.instrumentation import PrometheusHook, StructlogHook, set_hooks

    class Lines:
        def __init__(self) -> None:
            self.lines: list[tuple[str, Any]] = []

        def debug(self, event: str, **keys: Any) -> None:
            self.lines.append((event, keys.get("how")))

        warning = debug

    registry = prometheus.CollectorRegistry()
    lines = Lines()
    set_hooks([StructlogHook(lines), PrometheusHook(registry)])
    try:
        pool = ClockPool(Clock(), 1, name="z")
        pool.submit(len, "")
        queued = pool.submit(len, "")
        queued.addErrback(lambda failure: failure.trap(CancelledError))
        queued.cancel()
    finally:
        set_hooks([])
    labels = {"pool": "z", "function": "len"}
    assert lines.lines[-1] == ("call ended", "cancelled")
    count = registry.get_sample_value
    assert count("greendefer_calls_total", {**labels, "outcome": "cancelled"}) == 1
    assert count("greendefer_call_running_seconds_count", labels) is None


@pytest.mark.parametrize("options", [{"prefetch": 1}, {"timeout": 20}, {}])
def test_an_iteration_that_can_not_begin_can_be_asked_again(
    options: Any, in_reactor: Callable[..., Any]
) -> None:
    items = green_iterator(pool=ExecutorPool(ThreadPoolExecutor(1), 1), **options)(range)(3)

    async def ask() -> None:
        for _ in range(2):
            with pytest.raises(TypeError, match=r"no worker\(\)"):
                await items.__anext__()

    in_reactor(lambda: Deferred.fromCoroutine(ask()))


def test_an_iterator_that_was_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    object.__new__(GreenIterator)
    assert unraisable == []


# Protocols.


class Bare:
    """No protocol: it has no transport."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.last = gevent.event.Event()

    @greendefer.in_order
    def work(self, n: int) -> None:
        if n < 0:
            raise ValueError(n)
        self.done.append(n)
        if n == MANY:
            self.last.set()


def test_methods_in_order_of_what_has_no_transport(
    in_reactor: Callable[..., Any], logged: list[dict[str, Any]]
) -> None:
    bare = Bare()

    def calls() -> None:
        bare.work(-1)
        for n in range(MANY + 1):
            bare.work(n)

    in_reactor(calls)
    assert bare.last.wait(20)
    assert bare.done == list(range(MANY + 1))
    (error,) = [event for event in logged if event["isError"]]
    logged.remove(error)
    assert error["log_failure"].check(ValueError)


class Connection:
    connected = True
    paused = 0
    resumed = 0

    def pauseProducing(self) -> None:
        self.paused += 1

    def resumeProducing(self) -> None:
        self.resumed += 1


@pytest.mark.parametrize("closes", [False, True])
def test_a_connection_that_is_gone_is_not_resumed(
    closes: bool, in_reactor: Callable[..., Any]
) -> None:
    bare, transport = Bare(), Connection()
    bare.transport = transport  # type: ignore[attr-defined]

    def calls() -> None:
        for n in range(MANY + 1):
            bare.work(n)
        assert transport.paused == 1
        transport.connected = not closes

    in_reactor(calls)
    assert bare.last.wait(20)
    in_reactor(lambda: wait_a_turn())
    assert transport.resumed == (not closes)


def wait_a_turn() -> Deferred[None]:
    from twisted.internet import reactor, task

    return task.deferLater(reactor, 0)  # type: ignore[arg-type]


# Pools for tests, and Twisted's thread pool.


def test_a_call_closes_the_inline_pool_that_it_runs_in() -> None:
    pool = InlinePool()
    d = pool.submit(lambda: pool.close(grace=0))
    assert d.called
    d.addErrback(lambda failure: None)
    assert pool.stats().running == 0


def test_a_green_thread_pool_by_itself(
    gate: Any, logged: list[dict[str, Any]], in_reactor: Callable[..., Any]
) -> None:
    pool = GreenThreadPool(1, 2)
    pool.start()
    results: list[Any] = []

    def got(success: bool, result: Any) -> None:
        results.append((success, result))
        raise ValueError("of the callback")

    pool.adjustPoolsize(minthreads=1)
    assert (pool.min, pool.max) == (1, 2)
    pool.adjustPoolsize(maxthreads=3)
    assert (pool.min, pool.max) == (1, 3)
    pool.callInThreadWithCallback(got, gate)
    assert gate.entered.wait(20)
    assert (pool.workers, len(pool.working), pool.waiters) == (1, 1, [])
    gate.opened.set()
    pool.callInThread(lambda: 1 // 0)
    wait_for_deferred(pool.pool.when_idle(), 20)
    assert results == [(True, "through")]
    errors = [event for event in logged if event["isError"]]
    for error in errors:
        logged.remove(error)
    assert {error["failure"].type for error in errors} == {ValueError, ZeroDivisionError}
    wait_for_deferred(pool.stopped(), 20)
    pool.callInThreadWithCallback(got, len, "")
    assert pool.pool.stats().submitted == 2


# The reactor.


def test_one_connection_closes_another_that_is_ready_too(in_reactor: Callable[..., Any]) -> None:
    from twisted.internet import reactor as this_reactor

    reactor: Any = this_reactor
    pairs = [socket.socketpair() for _ in range(2)]
    got: list[bytes] = []

    class Mine(Protocol):
        def dataReceived(self, data: bytes) -> None:
            got.append(data)
            for each in mine:
                if each is not self:
                    each.transport.abortConnection()  # type: ignore[union-attr]

    mine: list[Mine] = []

    def adopt() -> None:
        for ours, _ in pairs:
            protocol = Mine()
            mine.append(protocol)
            reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, ServerOf(protocol))
            ours.close()
        for _, theirs in pairs:
            theirs.send(b"x")

    in_reactor(adopt)
    deadline = time.monotonic() + 20
    while not got and time.monotonic() < deadline:
        gevent.sleep(0)
    in_reactor(wait_a_turn)
    assert got == [b"x"]
    for protocol in mine:
        in_reactor(protocol.transport.abortConnection)  # type: ignore[union-attr]
    for _, theirs in pairs:
        theirs.close()


class ServerOf:
    """A factory of one protocol."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol

    def buildProtocol(self, _: object) -> Protocol:
        return self.protocol

    def doStart(self) -> None:
        pass

    doStop = doStart


def test_a_module_without_a_file_that_has_the_reactor(monkeypatch: pytest.MonkeyPatch) -> None:
    from twisted.internet import reactor

    module = types.ModuleType("made_up")
    module.reactor = reactor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up", module)
    assert "made_up" in _installed._modules_with(reactor)


def test_pools_that_change_while_the_watch_looks_at_them(reactor: Any) -> None:
    class Changing:
        def __iter__(self) -> Iterator[Any]:
            raise RuntimeError("Set changed size during iteration")

    home: Any = types.SimpleNamespace(wait=types.SimpleNamespace(), pools=Changing())
    assert HoldupWatch(home)._has_calls()


def test_the_doctor_where_no_driver_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda module: False)
    assert list(doctor._in_c()) == []


def test_a_write_that_closes_another_connection_which_has_something_to_write(
    in_reactor: Callable[..., Any],
) -> None:
    from twisted.internet import reactor as this_reactor

    reactor: Any = this_reactor
    pairs = [socket.socketpair() for _ in range(2)]
    transports: list[Any] = []

    def write() -> None:
        for ours, _ in pairs:
            protocol = Protocol()
            reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, ServerOf(protocol))
            ours.close()
            transports.append(protocol.transport)
        first, second = transports
        do_write = first.doWrite

        def write_and_close() -> Any:
            second.abortConnection()
            return do_write()

        first.doWrite = write_and_close
        first.write(b"first")
        second.write(b"second")

    in_reactor(write)
    in_reactor(wait_a_turn)
    theirs = [theirs for _, theirs in pairs]
    for each in theirs:
        each.settimeout(20)
    assert theirs[0].recv(100) == b"first"
    with contextlib.suppress(ConnectionResetError):
        assert theirs[1].recv(100) == b""
    in_reactor(transports[0].abortConnection)
    in_reactor(wait_a_turn)
    for each in theirs:
        each.close()


def test_a_wait_for_nothing_and_for_what_is_closed() -> None:
    wait = CooperativeWait()
    wait.watch_each(list)
    wait.wait(0.001)
    wait.watch_each(lambda: [(-1, READ)])
    wait.wait(None)
    assert wait.turns == 2


def test_a_keyboard_interrupt_as_it_is_asked_for_its_prefix() -> None:
    class Interrupted:
        def logPrefix(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_with_logger(Interrupted(), int)


# Workers, and who waits for whom.


def test_a_worker_is_killed_while_its_call_swallows_its_own_kill(
    gates: Any, in_reactor: Callable[..., Any]
) -> None:
    """The worker's turn comes when the call has swallowed its kill, wherever that is by then."""
    pool = GreenPool(1)
    at_work, handling, going_on = gates(3)
    seen: list[str] = []

    def stubborn() -> None:
        try:
            at_work()
        except GreenletExit:
            handling()
        seen.append("swallowed")
        try:
            going_on()
        finally:
            seen.append("ended")

    worker = pool.worker()
    in_reactor(worker.open)
    (d,) = in_reactor(lambda: [worker.submit(stubborn)])
    d.addErrback(lambda failure: failure.trap(CancelledError) and None)
    assert at_work.entered.wait(20)
    in_reactor(d.cancel)
    assert handling.entered.wait(20)
    host: Any = worker.host
    in_reactor(host.cancel)
    gevent.sleep(0.01)
    assert seen == []
    handling.opened.set()
    assert going_on.ended.wait(20)
    in_reactor(pool.close)
    assert seen == ["swallowed", "ended"]


def test_a_worker_that_is_given_up_as_it_comes(in_reactor: Callable[..., Any]) -> None:
    pool = GreenPool(1)
    outcome: list[Any] = []

    def open_and_cancel() -> Any:
        entered = pool.worker().open()
        entered.addBoth(outcome.append)
        gevent.spawn(entered.cancel)  # after it has begun to serve, and before that is heard of
        return pool.when_idle()

    in_reactor(open_and_cancel)
    (failure,) = outcome
    assert failure.check(CancelledError)
    assert wait_for_deferred(pool.submit(len, "four"), 20) == 4


def test_calls_of_one_worker_that_wait_for_the_same_one(
    gates: Any, in_reactor: Callable[..., Any]
) -> None:
    busy, between, outer = GreenPool(1), GreenPool(1), GreenPool(1)
    holds, go = gates(2)
    busy.submit(holds)

    def waits() -> int:
        go()
        return wait_for_deferred(busy.submit(len, "four"))

    async def main() -> Any:
        d = between.submit(waits)
        async with outer.worker() as worker:
            first, second = worker.submit(lambda: d), worker.submit(lambda: d)
            while worker.stats().completed < 2:
                await wait_a_turn()
            go.opened.set()
            while busy.stats().queued == 0:
                await wait_a_turn()
            holds.opened.set()
            return await first, await second

    assert in_reactor(lambda: Deferred.fromCoroutine(main()))[0] == 4


def test_an_iteration_that_has_not_begun_is_closed_twice(in_reactor: Callable[..., Any]) -> None:
    items = green_iterator(range)(3)
    in_reactor(items.aclose)
    in_reactor(items.aclose)
    assert wait_for_deferred(Deferred.fromCoroutine(all_of(items)), 20) == []


async def all_of(items: Any) -> list[Any]:
    return [item async for item in items]


def test_an_async_iterator_that_two_threads_close_at_once(in_reactor: Callable[..., Any]) -> None:
    closed: list[int] = []

    @blocking_from_greenlet
    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            closed.append(1)

    items: Any = numbers()
    assert next(items) == 1
    threadpool = gevent.get_hub().threadpool
    closing: list[Any] = []

    def hold_until_both_ask() -> None:
        from twisted.internet import reactor

        asked: Any = reactor.threadCallQueue  # type: ignore[attr-defined]
        n = len(asked)
        closing.extend(threadpool.spawn(items.close) for _ in range(2))
        until = time.monotonic() + 20
        while len(asked) < n + 2 and time.monotonic() < until:
            monkey.get_original("time", "sleep")(0.001)

    in_reactor(hold_until_both_ask)
    for each in closing:
        each.get(timeout=20)
    assert closed == [1]
