"""Waiting for Deferreds in greenlets and threads, and for greenlets in Deferreds."""

from __future__ import annotations

import gc
import math
import traceback
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import monkey
from gevent.event import Event
from twisted.internet.defer import CancelledError, Deferred, fail, gatherResults, succeed
from twisted.python.failure import Failure

import greendefer
from greendefer import (
    CallTimeout,
    GreendeferError,
    GreenPool,
    NativeThreadPool,
    WouldDeadlock,
    _crossing,
    blocking_from_greenlet,
    defer_to_greenlet,
    green_deferred,
    wait_for_deferred,
    wait_for_greenlet,
    with_options,
)


def in_thread(f: Any, *args: Any) -> Any:
    """Call `f` in an OS thread that has no hub, and wait for it without holding the loop."""
    done, outcome = gevent.get_hub().loop.async_(), []

    def run() -> None:
        try:
            outcome.append((f(*args), None))
        except BaseException as e:
            outcome.append((None, e))
        done.send()

    ended = Event()
    with done:
        done.start(ended.set)  # first: what is sent before is lost
        monkey.get_original("_thread", "start_new_thread")(run, ())
        ended.wait()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


class TestWaitForDeferred:
    def test_one_that_has_fired(self) -> None:
        assert wait_for_deferred(succeed(1)) == 1
        with pytest.raises(KeyError):
            wait_for_deferred(fail(KeyError()))

    def test_one_that_fires_later(self, reactor: Any) -> None:
        d: Deferred[int] = Deferred()
        reactor.callLater(0, d.callback, 1)
        assert wait_for_deferred(d) == 1

    def test_the_result_passes_through(self, reactor: Any) -> None:
        d: Deferred[int] = Deferred()
        waiting = [gevent.spawn(wait_for_deferred, d) for _ in range(2)]
        gevent.sleep(0)
        d.callback(1)
        assert [g.get() for g in waiting] == [1, 1]
        assert wait_for_deferred(d) == 1
        later: list[int] = []
        d.addCallback(later.append)
        assert later == [1]

    def test_a_failure_passes_through_and_counts_as_handled(self) -> None:
        d: Deferred[int] = Deferred()
        waiting = [gevent.spawn(wait_for_deferred, d) for _ in range(2)]
        gevent.sleep(0)
        error = KeyError("x")
        d.errback(error)
        for g in waiting:
            g.join()
            assert g.exception is error
        with pytest.raises(KeyError):
            wait_for_deferred(d)
        later: list[Failure] = []
        d.addErrback(later.append)
        assert later[0].value is error

    def test_a_handled_failure_is_not_logged(self) -> None:
        with pytest.raises(KeyError):
            wait_for_deferred(fail(KeyError()))
        gc.collect()  # `logged` looks

    def test_the_exception_has_both_tracebacks(self) -> None:
        def raises() -> None:
            raise KeyError("x")

        d = defer_to_greenlet(raises)
        with pytest.raises(KeyError) as caught:
            wait_for_deferred(d)
        names = [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
        assert "raises" in names
        assert "test_the_exception_has_both_tracebacks" in names
        assert "wait_for_deferred" in names

    def test_timeout_cancels(self) -> None:
        cancelled: list[Any] = []
        d: Deferred[int] = Deferred(cancelled.append)
        with pytest.raises(CallTimeout, match=r"0\.01 s"):
            wait_for_deferred(d, timeout=0.01)
        assert cancelled == [d]
        failures: list[Any] = []
        d.addErrback(failures.append)
        assert failures[0].type is CancelledError

    def test_timeout_of_one_that_ignores_its_cancelling(self) -> None:
        d: Deferred[int] = Deferred()
        stubborn: Deferred[int] = Deferred()
        d.addErrback(lambda _: stubborn)
        with pytest.raises(CallTimeout):
            wait_for_deferred(d, timeout=0.01)

    def test_in_time(self, reactor: Any) -> None:
        d: Deferred[int] = Deferred()
        reactor.callLater(0, d.callback, 1)
        assert wait_for_deferred(d, timeout=3600) == 1

    def test_killing_the_waiter_cancels(self) -> None:
        cancelled: list[Any] = []
        d: Deferred[int] = Deferred(cancelled.append)
        g = gevent.spawn(wait_for_deferred, d)
        gevent.sleep(0)
        g.kill()
        while not cancelled:
            gevent.sleep(0)
        assert cancelled == [d]

    def test_a_gevent_timeout_around_it_cancels(self) -> None:
        cancelled: list[Any] = []
        d: Deferred[int] = Deferred(cancelled.append)
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            wait_for_deferred(d)
        while not cancelled:
            gevent.sleep(0)
        assert cancelled == [d]

    def test_one_that_fires_while_the_waiter_is_killed(self) -> None:
        d: Deferred[int] = Deferred()
        g = gevent.spawn(wait_for_deferred, d)
        gevent.sleep(0)
        d.callback(1)
        g.kill()
        assert isinstance(g.value, gevent.GreenletExit) or g.value == 1
        assert wait_for_deferred(d) == 1

    def test_in_the_reactors_greenlet(self, in_reactor: Any) -> None:
        for d in Deferred(), succeed(1):
            with pytest.raises(WouldDeadlock, match="green_deferred"):
                in_reactor(wait_for_deferred, d)
        with pytest.raises(WouldDeadlock):
            in_reactor(blocking_from_greenlet(lambda: succeed(1)))

    def test_in_the_hub(self) -> None:
        outcome = []

        def callback() -> None:
            try:
                wait_for_deferred(Deferred())
            except BaseException as e:
                outcome.append(e)

        gevent.get_hub().loop.run_callback(callback)
        gevent.sleep(0)
        assert isinstance(outcome[0], WouldDeadlock)

    def test_in_another_thread(self) -> None:
        with pytest.raises(GreendeferError, match="blocking_from_greenlet"):
            in_thread(wait_for_deferred, succeed(1))

    def test_bad_input(self) -> None:
        with pytest.raises(TypeError, match="needs a Deferred"):
            wait_for_deferred(1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="0 or more"):
            wait_for_deferred(succeed(1), timeout=-1)
        with pytest.raises(TypeError, match="number"):
            wait_for_deferred(succeed(1), timeout="1")  # type: ignore[arg-type]

    def test_a_thousand_at_once(self, reactor: Any) -> None:
        ds: list[Deferred[int]] = [Deferred() for _ in range(1000)]
        waiting = [gevent.spawn(wait_for_deferred, d, 3600) for d in ds]
        for n, d in enumerate(ds):
            reactor.callLater(0, d.callback, n)
        assert [g.get() for g in waiting] == list(range(1000))


@blocking_from_greenlet
def later(value: Any) -> Deferred[Any]:
    from twisted.internet import reactor

    d: Deferred[Any] = Deferred()
    fire = d.errback if isinstance(value, BaseException) else d.callback
    reactor.callLater(0, fire, value)  # type: ignore[attr-defined]
    return d


class TestBlockingFromGreenlet:
    def test_kinds_of_function(self) -> None:
        async def coroutine() -> int:
            return 1

        assert later(1) == 1
        assert blocking_from_greenlet(coroutine)() == 1
        assert blocking_from_greenlet(lambda: coroutine())() == 1
        assert blocking_from_greenlet(lambda: 1)() == 1
        assert blocking_from_greenlet(lambda: succeed(1))() == 1
        with pytest.raises(KeyError):
            later(KeyError())

    def test_no_hop_in_the_reactors_thread(self) -> None:
        assert blocking_from_greenlet(gevent.getcurrent)() is gevent.getcurrent()

    def test_in_a_call(self) -> None:
        assert wait_for_deferred(defer_to_greenlet(later, 1)) == 1

    def test_timeout(self) -> None:
        cancelled: list[Any] = []
        d: Deferred[int] = Deferred(cancelled.append)
        with pytest.raises(CallTimeout):
            blocking_from_greenlet(timeout=0.01)(lambda: d)()
        assert cancelled == [d]

    def test_in_a_thread(self) -> None:
        assert in_thread(later, 1) == 1
        with pytest.raises(KeyError) as caught:
            in_thread(later, KeyError())
        names = [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
        assert "call_in_thread_of" in names

    def test_in_a_thread_it_runs_in_the_reactors_greenlet(self, reactor: Any) -> None:
        seen = in_thread(blocking_from_greenlet(gevent.getcurrent))
        assert seen is reactor.cooperative_wait.greenlet

    @pytest.mark.parametrize("timeout", [math.inf, 1e10, 100_000.0])
    def test_a_long_timeout_in_a_thread(self, timeout: float) -> None:
        """Longer than a thread may sleep at once."""
        f = with_options(later, timeout=timeout)
        assert in_thread(f, 1) == 1

    def test_a_timeout_that_takes_more_than_one_sleep(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(_crossing, "LONGEST_SLEEP", 0.001)
        pool = NativeThreadPool(1)
        with pytest.raises(CallTimeout):
            wait_for_deferred(pool.submit(blocking_from_greenlet(timeout=0.01)(Deferred)), 20)
        assert wait_for_deferred(pool.submit(with_options(later, timeout=10), 1), 20) == 1

    def test_timeout_in_a_thread(self) -> None:
        cancelled = Event()
        d: Deferred[int] = Deferred(lambda _: cancelled.set())
        d.addErrback(lambda f: f.trap(CancelledError))
        with pytest.raises(CallTimeout):
            in_thread(blocking_from_greenlet(timeout=0.01)(lambda: d))
        assert cancelled.wait(10)

    def test_in_a_thread_with_a_hub_of_its_own(self) -> None:
        """While one of its greenlets waits, the others go on."""

        seen: list[int] = []

        def thread() -> int:
            busy = True

            def other() -> None:
                while busy:
                    seen.append(1)
                    gevent.sleep(0.001)

            g = gevent.spawn(other)
            gevent.sleep(0)
            result = blocking_from_greenlet(lambda: defer_to_greenlet(wait_for_five))()
            busy = False
            g.join()
            gevent.get_hub().destroy(destroy_loop=True)
            return result

        def wait_for_five() -> int:
            until = len(seen) + 5
            with gevent.Timeout(20):
                while len(seen) < until:
                    gevent.sleep(0.001)
            return 1

        assert in_thread(thread) == 1

    def test_no_answer_is_missed_in_threads_with_hubs(self) -> None:
        """What fires before the thread gets to sleep counts."""
        quick = blocking_from_greenlet(lambda: 1)

        def work() -> int:
            gevent.get_hub()
            return sum(quick() for _ in range(300))

        pool = gevent.get_hub().threadpool
        assert [r.get() for r in [pool.spawn(work) for _ in range(3)]] == [300] * 3

    def test_many_threads(self) -> None:
        pool = gevent.get_hub().threadpool
        assert sorted(pool.map(later, range(100))) == list(range(100))


class TestWaitForGreenlet:
    def test_result_and_exception(self, result: Any, reactor: Any) -> None:
        for g in gevent.spawn(len, "four"), gevent.spawn_later(0.001, len, "four"):
            heard = result(wait_for_greenlet(g))
            assert heard.get() == 4
            assert heard.greenlets == [reactor.cooperative_wait.greenlet]
        hub = gevent.get_hub()
        hub.exception_stream, stream = None, hub.exception_stream
        try:
            failure = result(wait_for_greenlet(gevent.spawn(int, "x"))).get()
        finally:
            hub.exception_stream = stream
        assert failure.type is ValueError

    def test_one_that_has_ended(self, result: Any) -> None:
        g = gevent.spawn(len, "four")
        g.join()
        assert result(wait_for_greenlet(g)).get() == 4

    def test_one_that_is_killed(self, result: Any) -> None:
        g = gevent.spawn(gevent.sleep, 3600)
        heard = result(wait_for_greenlet(g))
        gevent.sleep(0)
        g.kill()
        assert heard.error() is gevent.GreenletExit

    def test_one_that_returns_a_deferred(self, result: Any, reactor: Any) -> None:
        later: list[Deferred[int]] = [Deferred(), Deferred()]
        waits = [wait_for_greenlet(gevent.spawn(lambda d=d: d)) for d in later]
        heard = [result(d) for d in waits]
        gevent.sleep(0.01)
        waits[0].cancel()
        assert heard[0].error() is CancelledError
        for d in later:
            reactor.callFromThread(d.callback, 4)
        assert heard[1].get() == 4
        assert result(wait_for_greenlet(gevent.spawn(fail, KeyError()))).error() is KeyError

    def test_cancelling_leaves_the_greenlet(self, result: Any, gate: Any) -> None:
        g = gevent.spawn(gate)
        d = wait_for_greenlet(g)
        heard = result(d)
        d.cancel()
        assert heard.error() is CancelledError
        gate.opened.set()
        assert g.get() == "through"

    def test_bad_input(self) -> None:
        for g in 1, gevent.getcurrent(), len:
            with pytest.raises(TypeError, match=r"needs a gevent\.Greenlet"):
                wait_for_greenlet(g)  # type: ignore[arg-type]


class TestBothWays:
    def test_a_hundred_deep_through_both(self) -> None:
        @greendefer.green_deferred
        def down(depth: int) -> int:
            return up(depth - 1) + 1 if depth else 0

        @blocking_from_greenlet
        async def up(depth: int) -> int:
            return await down(depth)

        assert wait_for_deferred(down(99)) == 99

    def test_many_at_once(self) -> None:
        calls = [defer_to_greenlet(later, n) for n in range(500)]
        assert wait_for_deferred(gatherResults(calls)) == list(range(500))


class TestForeignThread:
    def test_a_decorated_call_is_refused(self) -> None:
        with pytest.raises(GreendeferError, match="callFromThread"):
            in_thread(greendefer.green_deferred(len), "")
        with pytest.raises(GreendeferError, match="blocking_from_greenlet"):
            in_thread(defer_to_greenlet, len, "")

    def test_what_the_message_says_to_write(self) -> None:
        assert in_thread(blocking_from_greenlet(lambda: defer_to_greenlet(len, "four"))) == 4


def test_a_pool_that_is_asked_in_another_thread() -> None:
    def elsewhere() -> None:
        with pytest.raises(GreendeferError, match=r"not the reactor's thread.*callFromThread"):
            GreenPool(1).submit(len, "four")

    assert wait_for_deferred(NativeThreadPool(1).submit(elsewhere), 20) is None


def test_a_thread_that_is_woken_before_it_sleeps() -> None:
    sleeper = _crossing._HubSleeper(gevent.get_hub())
    sleeper.wake()
    gevent.sleep(0.01)
    assert sleeper.sleep(20)
    sleeper.close()


def test_a_thread_whose_hub_is_gone_needs_no_waking() -> None:
    """As one has that was waited for from there until just now."""

    def in_thread() -> None:
        sleeper = _crossing._HubSleeper(gevent.get_hub())
        gevent.get_hub().destroy(destroy_loop=True)
        sleeper.wake()

    assert wait_for_deferred(NativeThreadPool(1).submit(in_thread), 20) is None


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


@pytest.mark.parametrize("timeout", [None, 0.5])
def test_what_is_raised_while_the_slot_is_still_lent(timeout: float | None, gates: Any) -> None:
    """The first of it, and only when the borrower has ended."""
    pool = GreenPool(1)
    at_work, at_its_end = gates(2)
    seen: list[str] = []
    lenders: list[Any] = []

    def borrower() -> None:
        try:
            at_work()
        finally:
            at_its_end()
            seen.append("borrower")

    def lender() -> None:
        lenders.append(gevent.getcurrent())
        try:
            wait_for_deferred(green_deferred(borrower, pool=pool)(), timeout)
        except IndexError:
            seen.append("IndexError")

    running = pool.submit(lender)
    # While it waits for the borrower; or, when its time is up, for the slot.
    assert (at_work if timeout is None else at_its_end).entered.wait(20)
    for e in IndexError(), KeyError():
        gevent.get_hub().loop.run_callback(lenders[0].throw, e)
    assert at_its_end.entered.wait(20)
    gevent.sleep(0)
    gevent.sleep(0)
    assert seen == []
    at_its_end.opened.set()
    wait_for_deferred(running, 20)
    assert seen == ["borrower", "IndexError"]
