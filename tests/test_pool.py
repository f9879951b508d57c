"""Admission: what becomes of a call at each stage, and that the statistics add up."""

from __future__ import annotations

import gc
import threading
import types
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import gevent
import gevent.local
import pytest
from gevent import monkey
from gevent.event import Event
from greenlet import GreenletExit
from twisted.internet.defer import CancelledError, Deferred, gatherResults

import greendefer
from greendefer import (
    CallTimeout,
    ExecutorPool,
    GreenPool,
    NativeThreadPool,
    PoolClosed,
    PoolFull,
    PoolWorker,
    Timeouts,
    green_deferred,
    wait_for_deferred,
    with_options,
)


def submit(pool: GreenPool, f: Any, *args: Any, **options: Any) -> Deferred[Any]:
    """Submit with options, as a decorated function does."""
    return greendefer.green_deferred(pool=pool, **options)(f)(*args)


def wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        gevent.sleep(0)


class TestLimits:
    def test_size_at_once_and_the_others_in_order(self, gates: Any, stats: Any) -> None:
        pool = GreenPool(2)
        started: list[int] = []
        all_gates = gates(5)

        def call(n: int) -> int:
            started.append(n)
            all_gates[n]()
            assert stats(pool).running <= 2
            return n

        calls = [pool.submit(call, n) for n in range(5)]
        assert all_gates[1].entered.wait(10)
        assert started == [0, 1]
        assert (stats(pool).running, stats(pool).queued) == (2, 3)
        for n in range(5):
            all_gates[n].opened.set()
            assert greendefer.wait_for_deferred(calls[n]) == n
        assert started == [0, 1, 2, 3, 4]
        assert stats(pool).completed == 5

    def test_full(self, gate: Any, stats: Any, result: Any) -> None:
        pool = GreenPool(1, max_queued=1, name="small")
        running, queued = pool.submit(gate), pool.submit(len, "four")
        rejected = result(pool.submit(len, "two"))
        # At once, where it was called.
        assert rejected.values
        assert rejected.greenlets == [gevent.getcurrent()]
        assert rejected.error() is PoolFull
        assert "len" in str(rejected.get().value)
        assert "small" in str(rejected.get().value)
        assert stats(pool).rejected == 1
        gate.opened.set()
        assert greendefer.wait_for_deferred(running) == "through"
        assert greendefer.wait_for_deferred(queued) == 4

    def test_no_queue_at_all(self, gate: Any, result: Any, stats: Any) -> None:
        pool = GreenPool(1, max_queued=0)
        running = pool.submit(gate)
        assert result(pool.submit(len, "")).error() is PoolFull
        gate.opened.set()
        assert greendefer.wait_for_deferred(running) == "through"
        assert greendefer.wait_for_deferred(pool.submit(len, "")) == 0
        assert stats(pool).completed == 2

    def test_its_bound_is_set_later(self, gate: Any, result: Any, stats: Any) -> None:
        """It counts for what comes then; what waits already does so."""
        pool = GreenPool(1)
        running, queued = pool.submit(gate), pool.submit(len, "four")
        pool.max_queued = 0
        assert result(pool.submit(len, "")).error() is PoolFull
        pool.max_queued = None
        another = pool.submit(len, "two")
        gate.opened.set()
        assert greendefer.wait_for_deferred(running) == "through"
        assert [greendefer.wait_for_deferred(each) for each in (queued, another)] == [4, 3]
        assert (stats(pool).completed, stats(pool).rejected) == (3, 1)

    def test_what_it_is_set_to_is_checked_where_it_is_set(self, stats: Any) -> None:
        """A call must not find out, half-way: it has been counted then."""
        pool = GreenPool(1, max_queued=3, name="small")
        allowed = "a whole number, or None for no bound, not '5'"
        with pytest.raises(TypeError, match=rf"GreenPool\.max_queued must be {allowed}"):
            pool.max_queued = "5"  # type: ignore[assignment]
        with pytest.raises(ValueError, match="at least 0, or None for no bound, not -1"):
            pool.max_queued = -1
        with pytest.raises(TypeError, match=r"GreenPool\.name must be a string or None, not 5"):
            pool.name = 5  # type: ignore[assignment]
        assert (pool.max_queued, pool.name) == (3, "small")
        pool.name = "smaller"
        assert "smaller" in repr(pool)

    def test_resize_up_starts_queued_calls(self, gates: Any, stats: Any) -> None:
        pool = GreenPool(1)
        all_gates = gates(3)
        calls = [pool.submit(each) for each in all_gates]
        assert all_gates[0].entered.wait(10)
        pool.resize(3)
        assert pool.size == 3
        assert all_gates[2].entered.wait(10)
        assert stats(pool).running == 3
        for each in all_gates:
            each.opened.set()
        greendefer.wait_for_deferred(gatherResults(calls))

    def test_resize_down_lets_running_calls_end(self, gates: Any) -> None:
        pool = GreenPool(3)
        all_gates = gates(4)
        calls = [pool.submit(each) for each in all_gates]
        assert all_gates[2].entered.wait(10)
        pool.resize(1)
        assert pool.stats().running == 3
        for n in range(3):
            assert not all_gates[3].entered.is_set()
            all_gates[n].opened.set()
            greendefer.wait_for_deferred(calls[n])
        assert all_gates[3].entered.wait(10)
        all_gates[3].opened.set()
        greendefer.wait_for_deferred(calls[3])

    def test_a_call_from_a_call_and_from_a_callback(self, stats: Any) -> None:
        pool = GreenPool(1)
        inner: list[Deferred[Any]] = []
        outer = pool.submit(lambda: inner.append(pool.submit(len, "inner")))
        after = outer.addCallback(lambda _: pool.submit(len, "callback"))
        assert greendefer.wait_for_deferred(after) == 8
        assert greendefer.wait_for_deferred(inner[0]) == 5
        assert stats(pool).completed == 3

    def test_ten_thousand_short_calls(self, stats: Any, reactor: Any) -> None:
        pool = GreenPool(7)
        greenlets = set()
        calls = [pool.submit(int, n) for n in range(10_000)]
        for call in calls:
            call.addCallback(lambda n: greenlets.add(gevent.getcurrent()) or n)
        assert greendefer.wait_for_deferred(gatherResults(calls)) == list(range(10_000))
        assert greenlets == {reactor.cooperative_wait.greenlet}
        assert stats(pool).completed == 10_000


def at_stage(
    stage: str,
    pool: GreenPool,
    gate: Any,
    hear: Callable[[Deferred[Any]], object] = lambda d: None,
    **options: Any,
) -> Deferred[Any]:
    """A call that has got as far as `stage`. `hear` is called with it at once."""
    if stage == "queued":
        blocker = pool.submit(gate)
        call = submit(pool, len, "queued", **options)
        hear(call)
        assert gate.entered.wait(10)
        blocker.addErrback(lambda f: f.trap(CancelledError, PoolClosed))
        return call
    if stage == "about to start":
        call = submit(pool, gate, **options)
        hear(call)
        return call
    if stage == "running":
        call = submit(pool, gate, **options)
        hear(call)
        assert gate.entered.wait(10)
        return call
    if stage == "swallowing the kill":

        def swallow() -> str:
            while not gate.opened.is_set():
                try:
                    gate()
                except gevent.GreenletExit:
                    pass
            return "late"

        call = submit(pool, swallow, **options)
        hear(call)
        assert gate.entered.wait(10)
        return call
    assert stage == "just finished"
    done = Event()
    call = submit(pool, done.set, **options)
    assert done.wait(10)
    # Its result is on its way to the reactor's greenlet.
    assert not call.called
    assert pool.stats().completed == 1
    return call


STAGES = ["queued", "about to start", "running", "swallowing the kill", "just finished"]


def drain(pool: GreenPool, gate: Any, stats: Any) -> None:
    """Let all end that is there, and see that a call gets through the pool."""
    gate.opened.set()
    assert greendefer.wait_for_deferred(pool.submit(len, "after")) == 5
    s = stats(pool)
    assert (s.running, s.lingering, s.queued) == (0, 0, 0)


@pytest.mark.parametrize("stage", STAGES)
class TestEveryStage:
    def test_cancel(
        self, stage: str, gate: Any, stats: Any, result: Any, logged: list[Any]
    ) -> None:
        pool = GreenPool(1, name="one")
        call = at_stage(stage, pool, gate)
        heard = result(call)
        call.cancel()
        assert heard.error() is CancelledError
        assert heard.greenlets == [gevent.getcurrent()]
        s = stats(pool)
        assert s.cancelled == 1
        assert s.lingering == (stage in ("running", "swallowing the kill"))
        if stage == "running":
            assert gate.ended.wait(10)
        if stage == "swallowing the kill":
            while not logged_swallowed(logged):
                gevent.sleep(0)
            assert "swallow" in logged_swallowed(logged)[0]
            assert stats(pool).lingering == 1
        drain(pool, gate, stats)
        assert len(heard.values) == 1
        assert stats(pool).cancelled == 1
        if stage in ("queued", "about to start"):
            assert not logged_swallowed(logged)
        if stage == "about to start":
            assert not gate.entered.is_set()

    def test_cancel_and_abandon(self, stage: str, gate: Any, stats: Any, result: Any) -> None:
        pool = GreenPool(1)
        call = at_stage(stage, pool, gate, on_cancel="abandon")
        heard = result(call)
        call.cancel()
        assert heard.error() is CancelledError
        gevent.sleep(0.001)
        if stage == "running":
            assert not gate.ended.is_set()
            assert stats(pool).lingering == 1
        drain(pool, gate, stats)
        assert len(heard.values) == 1

    @pytest.mark.parametrize("on_expiry", ["kill", "abandon", None])
    def test_time_out(
        self, stage: str, on_expiry: Any, gate: Any, stats: Any, result: Any, reactor: Any
    ) -> None:
        pool = GreenPool(1)
        if stage == "just finished":
            # The result was first: it wins, however late it is delivered.
            call = at_stage(stage, pool, gate, timeout=Timeouts(total=3600, on_expiry=on_expiry))
            assert result(call).get() is None
            assert stats(pool).completed == 1
            return
        # One that is to run has its time from when it does: on however slow a machine.
        limits = {"about to start": {"total": 0.0}, "queued": {"total": 0.05}}
        limit = limits.get(stage, {"running": 0.05})
        heards: list[Any] = []
        at_stage(
            stage,
            pool,
            gate,
            lambda d: heards.append(result(d)),
            timeout=Timeouts(**limit, on_expiry=on_expiry),
        )
        (heard,) = heards
        assert heard.error() is CallTimeout
        assert heard.greenlets == [reactor.cooperative_wait.greenlet]
        assert isinstance(heard.get().value, TimeoutError)
        s = stats(pool)
        assert s.timed_out == 1
        if stage == "running":
            if on_expiry == "abandon":
                assert s.lingering == 1
                assert not gate.ended.is_set()
            else:
                assert gate.ended.wait(10)
        drain(pool, gate, stats)
        assert len(heard.values) == 1

    @pytest.mark.parametrize("grace", [None, 0, 0.001])
    def test_close(
        self, stage: str, grace: float | None, gate: Any, stats: Any, result: Any, reactor: Any
    ) -> None:
        pool = GreenPool(1)
        heard = result(at_stage(stage, pool, gate))
        closed = result(pool.close(grace=grace))
        if grace is None:
            assert bool(closed.values) is False
            gate.opened.set()
        assert closed.get() is None
        assert closed.greenlets == [reactor.cooperative_wait.greenlet]
        value = heard.get()
        if stage == "queued" or (grace is not None and stage != "just finished"):
            assert value.type is PoolClosed
        assert heard.greenlets == [reactor.cooperative_wait.greenlet]
        assert result(pool.submit(len, "")).error() is PoolClosed
        gate.opened.set()
        assert result(pool.close()).get() is None
        s = stats(pool)
        assert (s.running, s.queued, s.lingering) == (0, 0, 0)
        assert s.rejected == 1 + (stage == "queued")
        assert len(heard.values) == 1


def logged_swallowed(logged: list[Any]) -> list[str]:
    return [
        str(event["log_format"]) for event in logged if "swallow" in event.get("log_format", "")
    ]


class TestCancelling:
    def test_finally_blocks_run_and_may_wait(self, gate: Any, stats: Any, logged: Any) -> None:
        pool = GreenPool(1)
        cleaning, cleaned = Event(), Event()

        def call() -> None:
            try:
                gate()
            finally:
                cleaning.set()
                gevent.sleep(0.001)
                cleaned.wait()

        d = pool.submit(call)
        assert gate.entered.wait(10)
        d.addErrback(lambda f: f.trap(CancelledError))
        d.cancel()
        assert cleaning.wait(10)
        assert stats(pool).lingering == 1  # it holds its slot until it has really ended
        cleaned.set()
        drain(pool, gate, stats)
        assert not logged_swallowed(logged)

    def test_a_kill_does_not_hit_the_next_call(self, gates: Any, stats: Any) -> None:
        """The call ends by itself in the same turn in which it is cancelled."""
        pool = GreenPool(1)
        first, second = gates(2)
        d = pool.submit(first)
        after = pool.submit(second)
        assert first.entered.wait(10)
        first.opened.set()  # it is runnable now, and the kill comes behind
        d.addErrback(lambda f: f.trap(CancelledError))
        d.cancel()
        assert second.entered.wait(10)
        second.opened.set()
        assert greendefer.wait_for_deferred(after) == "through"
        stats(pool)

    def test_swallowing_and_returning_at_once_is_logged_too(
        self, gate: Any, stats: Any, logged: Any
    ) -> None:
        pool = GreenPool(1)

        def swallow_once() -> str:
            try:
                gate()
            except BaseException:
                pass
            return "as if nothing had happened"

        d = pool.submit(swallow_once)
        assert gate.entered.wait(10)
        d.addErrback(lambda f: f.trap(CancelledError))
        d.cancel()
        drain(pool, gate, stats)
        (event,) = [e for e in logged if "swallow" in e.get("log_format", "")]
        assert "swallow_once" in event["name"]

    def test_cancelling_itself(self, stats: Any, result: Any) -> None:
        pool = GreenPool(1)
        box: list[Deferred[Any]] = []

        def call() -> None:
            box[0].cancel()
            gevent.sleep(0)
            raise AssertionError("not reached")

        box.append(pool.submit(call))
        assert result(box[0]).error() is CancelledError
        assert greendefer.wait_for_deferred(pool.submit(len, "")) == 0
        assert stats(pool).cancelled == 1

    def test_killed_by_somebody_else(self, gate: Any, stats: Any, result: Any) -> None:
        pool = GreenPool(1)
        greenlets = []
        d = pool.submit(lambda: (greenlets.append(gevent.getcurrent()), gate()))
        assert gate.entered.wait(10)
        gevent.kill(greenlets[0])
        assert result(d).error() is gevent.GreenletExit
        drain(pool, gate, stats)
        assert stats(pool).failed == 1

    def test_an_idle_worker_that_somebody_killed_is_replaced(self, stats: Any) -> None:
        pool = GreenPool(1)
        worker = greendefer.wait_for_deferred(pool.submit(gevent.getcurrent))
        while worker not in pool._carrier.idle:  # type: ignore[attr-defined]
            gevent.sleep(0)
        gevent.kill(worker)
        gevent.sleep(0)
        assert worker.dead
        assert greendefer.wait_for_deferred(pool.submit(gevent.getcurrent)) is not worker
        stats(pool)

    def test_an_idle_worker_that_somebody_switched_to(self, gates: Any, stats: Any) -> None:
        """It is still one worker, and has one call at a time."""
        pool = GreenPool(2)
        worker = greendefer.wait_for_deferred(pool.submit(gevent.getcurrent))
        carrier: Any = pool._carrier
        while worker not in carrier.idle:
            gevent.sleep(0)
        gevent.get_hub().loop.run_callback(worker.switch)
        gevent.sleep(0)
        assert carrier.idle == [worker]
        both = gates(2)
        calls = [pool.submit(gate) for gate in both]
        for gate in both:
            assert gate.entered.wait(10)
            gate.opened.set()
        assert greendefer.wait_for_deferred(gatherResults(calls)) == ["through", "through"]
        stats(pool)

    def test_an_idle_worker_that_a_call_switches_to(self, gates: Any, stats: Any) -> None:
        """While there are more calls to begin: none of them begins there."""
        pool = GreenPool(3)
        both = gates(2)
        first = [pool.submit(gate) for gate in both]
        for gate in both:
            assert gate.entered.wait(10)
            gate.opened.set()
        greendefer.wait_for_deferred(gatherResults(first))
        carrier: Any = pool._carrier
        while len(carrier.idle) < 2:
            gevent.sleep(0)

        def strays() -> None:
            gevent.get_hub().loop.run_callback(gevent.getcurrent().switch)
            carrier.idle[0].switch()

        both = gates(2)
        calls = [pool.submit(strays), *(pool.submit(gate) for gate in both)]
        for gate in both:
            assert gate.entered.wait(10)
            gate.opened.set()
        got = greendefer.wait_for_deferred(gatherResults(calls))
        assert got == [None, "through", "through"]
        stats(pool)

    def test_what_is_late_is_dropped_quietly(self, gates: Any, stats: Any) -> None:
        """A result, an exception, and a Deferred that fails: `logged` finds no unhandled error."""
        pool = GreenPool(3)
        all_gates = gates(3)
        failing: Deferred[Any] = Deferred()
        late = ["value", ValueError("late"), failing]
        calls = [
            submit(pool, each, value, on_cancel="abandon")
            for each, value in zip(all_gates, late, strict=True)
        ]
        for d, each in zip(calls, all_gates, strict=True):
            assert each.entered.wait(10)
            d.addErrback(lambda f: f.trap(CancelledError))
            d.cancel()
            each.opened.set()
        assert greendefer.wait_for_deferred(pool.submit(len, "")) == 0
        assert stats(pool).lingering == 0
        assert not failing.called
        failing.errback(ValueError("later still"))
        del calls, failing, late
        gc.collect()

    def test_an_abandoned_call_goes_on_in_the_deferred_that_it_has_returned(
        self, gate: Any, result: Any, stats: Any
    ) -> None:
        """Before it is abandoned, or after that; and if it is out of time."""
        pool = GreenPool(1)
        steps: list[Deferred[Any]] = []
        paid: list[int] = []

        def pay(gate: Any = None) -> Deferred[Any]:
            if gate is not None:
                gate()
            steps.append(Deferred())
            return steps[-1].addCallback(paid.append)

        d = submit(pool, pay, on_cancel="abandon")
        wait_until(lambda: len(steps) == 1)
        heard = result(d)
        d.cancel()
        assert heard.error() is CancelledError

        d = submit(pool, pay, gate, on_cancel="abandon")
        assert gate.entered.wait(10)
        heard = result(d)
        d.cancel()
        gate.opened.set()
        wait_until(lambda: len(steps) == 2)
        assert heard.error() is CancelledError

        timeouts = Timeouts(running=0.01, on_expiry="abandon")
        assert result(submit(pool, pay, timeout=timeouts)).error() is CallTimeout
        for n, step in enumerate(steps):
            step.callback(n)
        assert paid == [0, 1, 2]
        s = stats(pool)
        assert (s.cancelled, s.timed_out, s.completed) == (2, 1, 0)


class TestTimeouts:
    def test_queued(self, gate: Any, result: Any, stats: Any) -> None:
        pool = GreenPool(1)
        running = submit(pool, gate, timeout=Timeouts(queued=0.01))
        queued = result(submit(pool, len, "", timeout=Timeouts(queued=0.01)))
        assert queued.error() is CallTimeout
        assert "waited for a slot" in str(queued.get().value)
        gate.opened.set()
        assert greendefer.wait_for_deferred(running) == "through"
        assert stats(pool).timed_out == 1

    def test_running_starts_to_count_when_it_runs(
        self, gates: Any, result: Any, stats: Any
    ) -> None:
        pool = GreenPool(1)
        first, second = gates(2)
        blocker = pool.submit(first)
        queued = result(submit(pool, second, timeout=Timeouts(running=0.05)))
        gevent.sleep(0.1)
        assert not queued.values
        first.opened.set()
        assert second.entered.wait(10)
        assert queued.error() is CallTimeout
        assert "running" in str(queued.get().value)
        greendefer.wait_for_deferred(blocker)
        assert stats(pool).timed_out == 1

    def test_the_first_of_two_limits_counts(self, gate: Any, result: Any) -> None:
        pool = GreenPool(1)
        for limits in Timeouts(total=0.01, running=3600), Timeouts(total=3600, running=0.01):
            assert result(submit(pool, gate, timeout=limits)).error() is CallTimeout

    def test_a_deferred_that_the_call_returned_counts_for_total(
        self, result: Any, stats: Any
    ) -> None:
        pool = GreenPool(1)
        inner: Deferred[Any] = Deferred()
        heard = result(submit(pool, lambda: inner, timeout=0.5))
        assert greendefer.wait_for_deferred(pool.submit(len, "")) == 0  # its slot is free
        assert heard.error() is CallTimeout
        assert inner.called
        assert stats(pool).timed_out == 1

    def test_a_wall_clock_that_jumps_moves_nothing(
        self, gate: Any, result: Any, monkeypatch: Any
    ) -> None:
        pool = GreenPool(1)
        heard = result(submit(pool, gate, timeout=3600))
        import time

        really = time.time
        monkeypatch.setattr(time, "time", lambda: really() + 7200)
        assert gate.entered.wait(10)
        gevent.sleep(0.01)
        assert not heard.values
        gate.opened.set()
        assert heard.get() == "through"

    def test_thousands_of_them(self, result: Any, stats: Any) -> None:
        pool = GreenPool(5000)
        never = Event()
        heard = [result(submit(pool, never.wait, timeout=0.05 + n % 7 / 1000)) for n in range(2000)]
        quick = [submit(pool, len, "", timeout=3600) for _ in range(2000)]
        assert greendefer.wait_for_deferred(gatherResults(quick)) == [0] * 2000
        assert {each.error() for each in heard} == {CallTimeout}
        while stats(pool).lingering:
            gevent.sleep(0)
        assert stats(pool).timed_out == 2000
        assert pool._runtime is not None
        assert len(pool._runtime.deadlines._heap) < 2100


class TestClose:
    def test_never_used(self, result: Any) -> None:
        pool = GreenPool(1)
        assert result(pool.close()).get() is None
        assert result(pool.submit(len, "")).error() is PoolClosed

    def test_twice(self, gate: Any, result: Any) -> None:
        pool = GreenPool(1)
        heard = result(pool.submit(gate))
        first, second = result(pool.close()), result(pool.close(grace=0.01))
        assert second.get() is None
        assert first.get() is None
        assert heard.error() is PoolClosed

    def test_whoever_does_not_wait_for_it_does_not_stop_it(
        self, gate: Any, result: Any, stats: Any
    ) -> None:
        pool = GreenPool(1)
        heard = result(pool.submit(gate))
        assert gate.entered.wait(10)
        closed = pool.close(grace=0.02)
        closed.addErrback(lambda f: f.trap(CancelledError))
        closed.cancel()
        assert heard.error() is PoolClosed
        assert gate.ended.wait(10)
        while stats(pool).lingering:
            gevent.sleep(0)

    def test_waits_for_those_that_linger(self, gate: Any, result: Any) -> None:
        pool = GreenPool(1)
        d = submit(pool, gate, on_cancel="abandon")
        assert gate.entered.wait(10)
        d.addErrback(lambda f: f.trap(CancelledError))
        d.cancel()
        closed = result(pool.close())
        gevent.sleep(0.001)
        assert not closed.values
        gate.opened.set()
        assert closed.get() is None


class TestNesting:
    """A call that waits for a call on the same pool."""

    @pytest.mark.parametrize("size", [1, 2, 10, 99, 100, 101])
    @pytest.mark.parametrize("how", ["wait_for_deferred", "blocking_from_greenlet"])
    def test_a_hundred_deep(self, size: int, how: str, stats: Callable[[GreenPool], Any]) -> None:
        pool = GreenPool(size)

        @greendefer.green_deferred(pool=pool)
        def nested(depth: int) -> int:
            stats(pool)
            if depth == 0:
                return 0
            if how == "wait_for_deferred":
                return 1 + greendefer.wait_for_deferred(nested(depth - 1))
            return 1 + greendefer.blocking_from_greenlet(nested)(depth - 1)

        assert greendefer.wait_for_deferred(nested(99)) == 99
        assert stats(pool).completed == 100

    def test_many_at_once_on_a_small_pool(self, stats: Any) -> None:
        pool = GreenPool(3)

        @greendefer.green_deferred(pool=pool)
        def nested(depth: int) -> int:
            gevent.sleep(0)
            stats(pool)
            return 1 + greendefer.wait_for_deferred(nested(depth - 1)) if depth else 0

        calls = [nested(5) for _ in range(20)]
        assert greendefer.wait_for_deferred(gatherResults(calls)) == [5] * 20
        assert stats(pool).completed == 120

    def test_over_another_pool_and_back(self, stats: Any) -> None:
        a, b = GreenPool(1), GreenPool(1)

        def back() -> str:
            return "back"

        def there() -> str:
            return greendefer.wait_for_deferred(a.submit(back))

        assert (
            greendefer.wait_for_deferred(
                a.submit(lambda: greendefer.wait_for_deferred(b.submit(there)))
            )
            == "back"
        )
        assert stats(a).completed == 2

    def test_behind_others_in_the_queue(self, stats: Any) -> None:
        pool = GreenPool(1)
        ran: list[str] = []

        def outer() -> None:
            others = [pool.submit(ran.append, "other") for _ in range(3)]
            greendefer.wait_for_deferred(pool.submit(ran.append, "waited for"))
            ran.append("outer")
            assert len(others) == 3

        greendefer.wait_for_deferred(pool.submit(outer))
        greendefer.wait_for_deferred(pool.submit(ran.append, "end"))
        assert ran == ["waited for", "outer", "other", "other", "other", "end"]
        stats(pool)

    def test_the_slot_comes_back_before_the_waiter_goes_on(self, gates: Any, stats: Any) -> None:
        """The wait times out, and the call in the slot takes its time to end."""
        pool = GreenPool(1)
        inner_gate, cleanup = gates(2)
        ran: list[str] = []

        def inner() -> None:
            try:
                inner_gate()
            finally:
                cleanup()
                ran.append("inner ended")

        def outer() -> None:
            try:
                greendefer.wait_for_deferred(pool.submit(inner), timeout=0.5)
            except CallTimeout:
                ran.append("outer timed out")

        d = pool.submit(outer)
        assert cleanup.entered.wait(10)
        assert ran == []
        s = stats(pool)
        assert (s.running, s.lingering) == (1, 0)
        cleanup.opened.set()
        greendefer.wait_for_deferred(d)
        assert ran == ["inner ended", "outer timed out"]
        stats(pool)

    def test_cancelling_the_waiter_cancels_both(self, gate: Any, stats: Any) -> None:
        pool = GreenPool(1)
        inner: list[Any] = []

        def outer() -> None:
            inner.append(pool.submit(gate))
            greendefer.wait_for_deferred(inner[0])

        d = pool.submit(outer)
        assert gate.entered.wait(10)
        d.addErrback(lambda f: f.trap(CancelledError))
        d.cancel()
        assert gate.ended.wait(10)
        drain(pool, gate, stats)
        assert stats(pool).cancelled == 2

    def test_what_cannot_be_seen_ends_by_timeout(self, result: Any, stats: Any) -> None:
        pool = GreenPool(1)

        def outer() -> None:
            queued = [pool.submit(len, "")]
            greendefer.wait_for_deferred(gatherResults(queued, consumeErrors=True), timeout=0.02)

        assert result(pool.submit(outer)).error() is CallTimeout
        assert greendefer.wait_for_deferred(pool.submit(len, "")) == 0
        stats(pool)


def slow_to_end(gate: Any, begun: Event | None = None) -> None:
    """A call that takes its time to clean up when it is killed."""
    try:
        if begun is not None:
            begun.set()
        gevent.sleep(3600)
    finally:
        gate()


class TestLending:
    """Who lends a slot is found among all that wait, whenever their waits begin."""

    @pytest.fixture
    def pools(self) -> tuple[GreenPool, GreenPool, GreenPool]:
        return GreenPool(1, name="p"), GreenPool(1, name="q"), GreenPool(1, name="r")

    def test_a_lender_that_begins_to_wait_last(self, pools: Any) -> None:
        p, q, _ = pools

        def outer() -> str:
            b = q.submit(lambda: greendefer.wait_for_deferred(p.submit(str, "end")))
            while not p.stats().queued:
                gevent.sleep(0)
            return greendefer.wait_for_deferred(b)

        assert greendefer.wait_for_deferred(p.submit(outer)) == "end"

    def test_two_waiters_for_one_call(self, pools: Any, gate: Any, stats: Any) -> None:
        p, q, r = pools

        def middle() -> str:
            gate()
            return greendefer.wait_for_deferred(p.submit(str, "end"))

        b = q.submit(middle)
        waiting = [pool.submit(greendefer.wait_for_deferred, b) for pool in (p, r)]
        while None in (next(iter(pool._active)).waits_for for pool in (p, r)):
            gevent.sleep(0)
        gate.opened.set()
        assert [greendefer.wait_for_deferred(d) for d in waiting] == ["end"] * 2
        assert stats(p).completed == 2

    def test_again_when_the_first_borrower_has_ended(self, pools: Any, gate: Any) -> None:
        p, q, _ = pools
        begun = Event()

        def middle() -> str:
            me: Any = gevent.getcurrent()
            call_in_hub = gevent.get_hub().loop.run_callback
            gevent.spawn(lambda: begun.wait(20) and call_in_hub(me.throw, gevent.Timeout()))
            try:
                greendefer.wait_for_deferred(p.submit(slow_to_end, gate, begun))
            except gevent.Timeout:
                pass
            return greendefer.wait_for_deferred(p.submit(str, "end"))

        d = p.submit(lambda: greendefer.wait_for_deferred(q.submit(middle)))
        assert gate.entered.wait(10)
        gevent.sleep(0.001)
        gate.opened.set()
        assert greendefer.wait_for_deferred(d) == "end"

    def test_a_call_that_returns_the_deferred_of_a_queued_one(self, pools: Any) -> None:
        p, _, _ = pools

        @greendefer.green_deferred(pool=p)
        def chain(n: int) -> Any:
            return chain(n - 1) if n else "end"

        d = p.submit(lambda: greendefer.wait_for_deferred(chain(3)))
        assert greendefer.wait_for_deferred(d) == "end"

    def test_a_workers_slot(self, pools: Any, in_reactor: Any, stats: Any) -> None:
        p, _, _ = pools

        async def main() -> str:
            async with p.worker() as w:
                return await w.submit(lambda: greendefer.wait_for_deferred(p.submit(str, "end")))

        assert in_reactor(main) == "end"
        assert stats(p).completed == 2

    def test_circles_are_refused(self, pools: Any, result: Any) -> None:
        p, q, _ = pools
        calls: list[Any] = []
        calls.append(p.submit(lambda: greendefer.wait_for_deferred(calls[0])))
        assert result(calls[0]).error() is greendefer.WouldDeadlock
        calls[:] = [
            p.submit(lambda: greendefer.wait_for_deferred(calls[1])),
            q.submit(lambda: greendefer.wait_for_deferred(calls[0])),
        ]
        # One of the two is told, and with that the other one has its result.
        heard = [result(call).get() for call in calls]
        assert {h.type for h in heard if h is not None} == {greendefer.WouldDeadlock}

    def test_a_kill_is_not_lost_while_the_slot_comes_back(
        self, pools: Any, gate: Any, stats: Any, logged: Any
    ) -> None:
        p, _, _ = pools
        ran: list[str] = []

        its_own = gevent.Timeout()
        outers: list[Any] = []
        begun = Event()

        def outer() -> None:
            outers.append(gevent.getcurrent())
            try:
                greendefer.wait_for_deferred(p.submit(slow_to_end, gate, begun))
            except gevent.Timeout:
                pass
            ran.append("not killed")

        d = p.submit(outer)
        assert begun.wait(20)
        d.addErrback(lambda f: f.trap(CancelledError))
        d.cancel()
        assert gate.entered.wait(10)
        gevent.get_hub().loop.run_callback(outers[0].throw, its_own)  # as if its time were over
        gevent.sleep(0.05)
        drain(p, gate, stats)
        assert ran == []
        assert not logged_swallowed(logged)


class TestCancellersThatRaise:
    """Somebody else's canceller fails: that is logged, and nothing else goes wrong."""

    @staticmethod
    def broken() -> Deferred[Any]:
        return Deferred(lambda _: 1 / 0)  # type: ignore[arg-type,return-value]

    @staticmethod
    def expect_logged(logged: list[Any]) -> None:
        errors = [event for event in logged if event["isError"]]
        assert [event["failure"].type for event in errors] == [ZeroDivisionError]
        logged[:] = [event for event in logged if not event["isError"]]

    def test_late(self, logged: Any) -> None:
        """Of a call that can't be killed, so it returns one although it was cancelled."""
        pool = NativeThreadPool(1)
        lock = monkey.get_original("_thread", "allocate_lock")()
        lock.acquire()
        d: Any = pool.submit(lambda: lock.acquire() and self.broken())
        wait_until(lambda: d.is_running)
        d.addErrback(lambda f: f.trap(CancelledError))
        d.cancel()
        lock.release()
        wait_for_deferred(pool.close(), 20)
        self.expect_logged(logged)

    def test_at_expiry(self, result: Any, stats: Any, logged: Any) -> None:
        pool = GreenPool(1)
        timeout = Timeouts(running=0.01)
        assert result(submit(pool, self.broken, timeout=timeout)).error() is CallTimeout
        assert stats(pool).timed_out == 1
        self.expect_logged(logged)

    def test_of_a_wait(self, logged: Any) -> None:
        with pytest.raises(CallTimeout):
            greendefer.wait_for_deferred(self.broken(), timeout=0.01)
        self.expect_logged(logged)

    def test_one_that_cancels_the_call_itself(self, result: Any, stats: Any) -> None:
        pool = GreenPool(1)
        calls: list[Any] = []
        timeout = Timeouts(running=0.01)
        calls.append(submit(pool, lambda: Deferred(lambda _: calls[0].cancel()), timeout=timeout))
        assert result(calls[0]).error() is CancelledError
        assert stats(pool).cancelled == 1


def test_errors_in_errbacks_of_a_closing_pool(result: Any, stats: Any) -> None:
    """An errback may cancel other calls that are about to be killed."""
    pool = GreenPool(10)
    calls = [pool.submit(gevent.sleep, 3600) for _ in range(10)]
    gevent.sleep(0)
    for call in calls:
        call.addErrback(lambda f: [each.cancel() for each in calls] and None)
    assert result(pool.close(grace=0)).get() is None
    while stats(pool).lingering:
        gevent.sleep(0)
    assert stats(pool).cancelled == 10


def test_names_of_strange_callables(gate: Any, result: Any) -> None:
    class Endless:
        def __call__(self) -> None: ...
        def __getattr__(self, name: str) -> Any:
            if name == "__qualname__":
                raise AttributeError(name)
            return self

        def __repr__(self) -> str:
            raise ValueError("no repr")

    pool = GreenPool(1, max_queued=0)
    blocker = pool.submit(gate)
    assert result(pool.submit(Endless())).error() is PoolFull
    gate.opened.set()
    greendefer.wait_for_deferred(blocker)


def test_running_counts_until_a_returned_deferred_fires(result: Any) -> None:
    pool = GreenPool(1)
    heard = result(submit(pool, Deferred, timeout=Timeouts(running=0.01)))
    assert heard.error() is CallTimeout


def test_nothing_is_kept_alive(stats: Any) -> None:
    """Neither arguments nor results outlive a call, whether it returned or raised."""
    import weakref

    class Thing:
        pass

    pool = GreenPool(1)
    gone = []

    def call(thing: Thing, fail: bool) -> Thing:
        if fail:
            raise ValueError(thing)
        return thing

    for fail in False, True:
        thing = Thing()
        gone.append(weakref.ref(thing))
        d = pool.submit(call, thing, fail)
        d.addBoth(lambda _: None)
        del thing
        greendefer.wait_for_deferred(d)
        del d
    gevent.sleep(0.001)
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


class TestWorkers:
    """The greenlets are used again, as threads are."""

    def test_locals_live_as_long_as_the_worker(self) -> None:
        pool = GreenPool(1)
        mine = gevent.local.local()

        def count() -> int:
            mine.n = getattr(mine, "n", 0) + 1
            return mine.n

        counts = [greendefer.wait_for_deferred(pool.submit(count)) for _ in range(3)]
        assert counts == [1, 2, 3]

    def test_at_most_size_of_them(self) -> None:
        pool = GreenPool(5)
        seen = set()

        def call() -> None:
            seen.add(gevent.getcurrent())
            gevent.sleep(0)

        calls = [pool.submit(call) for _ in range(100)]
        greendefer.wait_for_deferred(gatherResults(calls))
        assert len(seen) <= 5

    def test_idle_ones_end(self, monkeypatch: Any) -> None:
        from greendefer._carriers import greenlets

        monkeypatch.setattr(greenlets, "TRIM_SECONDS", 0.01)
        pool = GreenPool(50)
        calls = [pool.submit(gevent.sleep, 0.001) for _ in range(50)]
        greendefer.wait_for_deferred(gatherResults(calls))
        carrier: Any = pool._carrier
        assert carrier.workers > 1
        while carrier.workers:
            gevent.sleep(0.001)
        assert carrier._trimmer is None
        assert greendefer.wait_for_deferred(pool.submit(len, "")) == 0

    def test_many_idle_ones_end_a_slice_of_time_at_once(self, monkeypatch: Any) -> None:
        from greendefer._carriers import greenlets

        pool = GreenPool(3)
        event = Event()
        calls = [pool.submit(event.wait) for _ in range(3)]
        carrier: Any = pool._carrier
        while carrier.workers < 3:
            gevent.sleep(0.001)
        event.set()
        greendefer.wait_for_deferred(gatherResults(calls))
        while len(carrier.idle) < 3:
            gevent.sleep(0.001)
        monkeypatch.setattr(greenlets, "SLICE", 0.0)
        left: list[int] = []
        timers: list[Any] = []

        def let_go(going: Any) -> None:
            left.append(carrier.workers)
            greenlets.GreenletCarrier._let_go(carrier, going)

        def timer(*args: Any, **options: Any) -> Any:
            timers.append(loop.timer(*args, **options))
            return timers[-1]

        carrier._let_go = let_go
        loop, carrier._loop = carrier._loop, types.SimpleNamespace(timer=timer)
        carrier._fewest_idle = 3
        loop.run_callback(carrier._trim)
        while carrier._trimmer is not None:
            gevent.sleep(0.001)
        assert left == [3, 2, 1]
        assert [each.active for each in timers] == [False, False]


class TestWorker:
    """``async with pool.worker() as w``"""

    def test_calls_run_on_one_greenlet_in_order(self, in_reactor: Any, stats: Any) -> None:
        pool = GreenPool(2)
        ran: list[int] = []

        def call(n: int) -> Any:
            gevent.sleep(0.001)
            ran.append(n)
            return gevent.getcurrent()

        async def main() -> list[Any]:
            async with pool.worker() as w:
                assert stats(pool).running == 1
                one = await w.submit(call, 1)
                others = await gatherResults([w.submit(call, n) for n in (2, 3, 4)])
                assert await pool.submit(gevent.getcurrent) is not one
                return [one, *others]

        assert len(set(in_reactor(main))) == 1
        assert ran == [1, 2, 3, 4]
        assert stats(pool).running == 0

    def test_it_waits_for_a_slot(self, in_reactor: Any, gate: Any) -> None:
        pool = GreenPool(1)
        blocker = pool.submit(gate)

        async def main() -> str:
            async with pool.worker() as w:
                return await w.submit(str, "in")

        assert gate.entered.wait(10)
        waiting = gevent.spawn(in_reactor, main)
        while pool.stats().queued == 0:
            gevent.sleep(0)
        gate.opened.set()
        assert waiting.get() == "in"
        greendefer.wait_for_deferred(blocker)

    def test_a_full_pool(self, in_reactor: Any, gate: Any) -> None:
        pool = GreenPool(1, max_queued=0)
        blocker = pool.submit(gate)

        async def main() -> None:
            async with pool.worker():
                raise AssertionError("not reached")

        with pytest.raises(PoolFull):
            in_reactor(main)
        gate.opened.set()
        greendefer.wait_for_deferred(blocker)

    def test_leaving_waits_for_what_was_submitted(self, in_reactor: Any, stats: Any) -> None:
        pool = GreenPool(1)
        ran: list[int] = []

        async def main() -> None:
            async with pool.worker() as w:
                for n in range(3):
                    w.submit(lambda n=n: (gevent.sleep(0.001), ran.append(n)))

        in_reactor(main)
        assert ran == [0, 1, 2]
        assert stats(pool).running == 0

    def test_an_exception_ends_it(
        self, in_reactor: Any, gate: Any, stats: Any, result: Any
    ) -> None:
        pool = GreenPool(1)
        heard: list[Any] = []

        async def main() -> None:
            async with pool.worker() as w:
                heard.append(result(w.submit(gate)))
                heard.append(result(w.submit(len, "")))
                await pool_turn()
                raise ValueError("leave")

        async def pool_turn() -> None:
            await greendefer.defer_to_greenlet(gate.entered.wait)

        with pytest.raises(ValueError, match="leave"):
            in_reactor(main)
        assert [each.error() for each in heard] == [PoolClosed, PoolClosed]
        assert gate.ended.wait(10)
        drain(pool, gate, stats)

    def test_cancelling_a_call_leaves_the_worker(self, in_reactor: Any, gate: Any) -> None:
        pool = GreenPool(1)

        async def main() -> Any:
            async with pool.worker() as w:
                before = await w.submit(gevent.getcurrent)
                call = w.submit(gate)
                call.addErrback(lambda f: f.trap(CancelledError))
                await greendefer.defer_to_greenlet(gate.entered.wait)
                call.cancel()
                return before, await w.submit(gevent.getcurrent)

        before, after = in_reactor(main)
        assert before is after
        assert gate.ended.is_set()

    def test_closing_the_pool_ends_it(self, in_reactor: Any, gate: Any, result: Any) -> None:
        pool = GreenPool(1)
        heard: list[Any] = []

        async def main() -> None:
            async with pool.worker() as w:
                heard.append(result(w.submit(gate)))
                heard.append(result(w.submit(len, "")))
                await greendefer.defer_to_greenlet(gate.entered.wait)
                await pool.close(grace=0)

        with pytest.raises(PoolClosed):
            in_reactor(main)
        assert [each.error() for each in heard] == [PoolClosed, PoolClosed]

    def test_waiting_for_a_call_behind_it_is_refused(self, in_reactor: Any) -> None:
        pool = GreenPool(1)

        async def main() -> None:
            async with pool.worker() as w:

                def outer() -> int:
                    return greendefer.wait_for_deferred(w.submit(len, ""))

                await w.submit(outer)

        with pytest.raises(greendefer.WouldDeadlock, match="outer"):
            in_reactor(main)

    @pytest.mark.parametrize("exit_with", ["cancel", "close"])
    def test_its_slot_comes_back_however_it_is_left(
        self, exit_with: str, gate: Any, stats: Any, reactor: Any
    ) -> None:
        pool = GreenPool(1)
        at_exit = Event()

        async def main() -> None:
            async with pool.worker() as w:
                w.submit(gate).addErrback(lambda f: f.trap(PoolClosed, CancelledError))
                at_exit.set()

        coroutine = main()
        d: Deferred[Any] = Deferred.fromCoroutine(coroutine)
        assert gate.entered.wait(10)
        assert at_exit.wait(10)
        # (Twisted goes on with the coroutine when that is closed behind its back, and fails.)
        d.addErrback(lambda f: f.trap(CancelledError, RuntimeError))
        d.cancel() if exit_with == "cancel" else coroutine.close()
        drain(pool, gate, stats)

    def test_nobody_enters_the_block(self, gate: Any, stats: Any) -> None:
        """The coroutine is closed while it waits for a slot."""
        pool = GreenPool(1)
        blocker = pool.submit(gate)

        async def main() -> None:
            async with pool.worker():
                raise AssertionError("not reached")

        coroutine = main()
        Deferred.fromCoroutine(coroutine)
        assert pool.stats().queued == 1
        coroutine.close()
        drain(pool, gate, stats)
        greendefer.wait_for_deferred(blocker)

    def test_its_pool_is_closed_and_its_call_swallows_the_kill(
        self, in_reactor: Any, gate: Any, result: Any, logged: Any
    ) -> None:
        pool = GreenPool(1)
        heard: list[Any] = []

        def swallow() -> None:
            while not gate.opened.is_set():
                try:
                    gate()
                except gevent.GreenletExit:
                    pass

        async def main() -> None:
            async with pool.worker() as w:
                heard.append(result(w.submit(swallow)))
                heard.append(result(w.submit(len, "")))
                await greendefer.defer_to_greenlet(gate.entered.wait)
                await pool.close(grace=0)
                heard.append(result(w.submit(len, "")))

        with pytest.raises(PoolClosed):
            in_reactor(main)
        assert [each.error() for each in heard] == [PoolClosed] * 3
        while not logged_swallowed(logged):
            gevent.sleep(0)
        gate.opened.set()
        assert "swallow" in next(e["name"] for e in logged if "swallow" in e.get("log_format", ""))

    def test_of_what_has_none(self) -> None:
        for pool in "pool", GreenPool, ExecutorPool(lambda: None, 1):  # type: ignore[arg-type,return-value]
            with pytest.raises(TypeError, match=r"PoolWorker\(pool\) needs a pool with a worker"):
                PoolWorker(pool)  # type: ignore[arg-type]

    def test_as_a_pool_and_resized(self, in_reactor: Any) -> None:
        pool = GreenPool(1)
        with pytest.raises(RuntimeError, match="async with"):
            greendefer.green_deferred(pool=pool.worker())(len)("")

        async def main() -> int:
            async with pool.worker() as w:
                with pytest.raises(RuntimeError, match="one call at a time"):
                    w.resize(2)
                return await greendefer.green_deferred(pool=w)(len)("four")

        assert in_reactor(main) == 4

    def test_in_its_parts(self, in_reactor: Any, stats: Any) -> None:
        """_open() and _leave(), for those who are not coroutines; _at_exit() runs on the worker."""
        pool = GreenPool(1)
        where: list[Any] = []

        async def main() -> None:
            w = pool.worker()
            entered = w._open()
            early = w.submit(gevent.getcurrent)  # before the worker is there
            await entered
            for n in range(3):
                w._at_exit(lambda n=n: where.append((n, gevent.getcurrent())))
            called = partial(where.append, "called already")
            w._at_exit(called)
            w._not_at_exit(called)
            greenlet = await early
            assert where == []
            await w._leave()
            assert where == [(2, greenlet), (1, greenlet), (0, greenlet)]
            assert stats(pool).running == 0

        in_reactor(main)

    def test_at_exit_when_the_pool_is_closed(self, in_reactor: Any, result: Any) -> None:
        pool = GreenPool(1)
        ran = Event()

        async def main() -> Any:
            w = pool.worker()
            await w._open()
            w._at_exit(ran.set)
            w._at_exit(lambda: 1 / 0)  # keeps nobody from running
            await pool.close(grace=0)
            return result(w._leave())

        assert in_reactor(main).error() is PoolClosed
        assert ran.wait(10)

    @pytest.mark.parametrize("first", ["pool", "call"])
    def test_one_kill_is_enough(self, first: str, in_reactor: Any, gate: Any, stats: Any) -> None:
        """What a call does about its kill is not cut off by that of its worker, or the reverse."""
        pool = GreenPool(1)
        running, ended = Event(), Event()
        exits: list[str] = []

        def call() -> None:
            running.set()
            try:
                Event().wait()
            finally:
                gate()
                ended.set()

        async def main() -> None:
            w = pool.worker()
            await w._open()
            w._at_exit(lambda: exits.append("exit"))
            d = w.submit(call)
            d.addErrback(lambda failure: failure.trap(PoolClosed, CancelledError))
            await greendefer.defer_to_greenlet(running.wait)
            if first == "pool":
                await pool.close(grace=0)
            else:
                d.cancel()
            await greendefer.defer_to_greenlet(gate.entered.wait)
            if first == "pool":
                d.cancel()
                w._leave(kill=True).addErrback(lambda failure: failure.trap(PoolClosed))
            else:
                await pool.close(grace=0)
                w._leave().addErrback(lambda failure: failure.trap(PoolClosed))

        in_reactor(main)
        for _ in range(20):
            gevent.sleep(0)
        gate.opened.set()
        assert ended.wait(10)
        while pool.stats().running or pool.stats().lingering:
            gevent.sleep(0)
        assert exits == ["exit"]
        stats(pool)

    def test_leave_raises_what_at_exit_raised(self, in_reactor: Any) -> None:
        pool = GreenPool(1)

        async def main() -> None:
            async with pool.worker() as w:
                w._at_exit(lambda: 1 / 0)

        with pytest.raises(ZeroDivisionError):
            in_reactor(main)

    def test_leave_before_it_is_there(self, in_reactor: Any, gate: Any, result: Any) -> None:
        pool = GreenPool(1)
        blocker = pool.submit(gate)

        async def main() -> Any:
            w = pool.worker()
            heard = [result(w._open()), result(w.submit(len, ""))]
            left = result(w._leave())
            return [*heard, left]

        opened, call, left = in_reactor(main)
        assert opened.error() is CancelledError
        assert call.error() is PoolClosed
        assert left.get() is None
        assert pool.stats().queued == 0
        gate.opened.set()
        greendefer.wait_for_deferred(blocker)

    def test_its_time_in_the_queue(self, in_reactor: Any, gate: Any, result: Any) -> None:
        pool = GreenPool(1)
        blocker = pool.submit(gate)

        async def main() -> Any:
            return result(pool.worker()._open(Timeouts(queued=0.01)))

        assert in_reactor(main).error() is CallTimeout
        gate.opened.set()
        greendefer.wait_for_deferred(blocker)

    def test_is_named_by_what_the_caller_wrote(self, in_reactor: Any, gate: Any) -> None:
        """In messages, and to hooks: not by a function that nobody outside has heard of."""
        pool = GreenPool(1, max_queued=0)
        blocker = pool.submit(gate)

        async def main() -> None:
            async with pool.worker():
                pass

        with pytest.raises(PoolFull, match=r"^worker\(\): all slots of"):
            in_reactor(main)
        gate.opened.set()
        greendefer.wait_for_deferred(blocker)

    def test_outside_of_its_block(self, in_reactor: Any) -> None:
        pool = GreenPool(1)
        with pytest.raises(RuntimeError, match="async with"):
            pool.worker().submit(len, "")

        async def main() -> Any:
            async with pool.worker() as w:
                pass
            return await w.submit(len, "")

        with pytest.raises(PoolClosed):
            in_reactor(main)


class TestBadInput:
    @pytest.mark.parametrize("size", [0, -1])
    def test_size(self, size: int) -> None:
        with pytest.raises(ValueError, match=f"at least 1, not {size}"):
            GreenPool(size)
        with pytest.raises(ValueError, match="at least 1"):
            GreenPool(1).resize(size)

    @pytest.mark.parametrize("size", [1.5, "1", None, True, float("nan")])
    def test_size_of_another_type(self, size: Any) -> None:
        with pytest.raises(TypeError, match="whole number"):
            GreenPool(size)
        with pytest.raises(TypeError, match="whole number"):
            GreenPool(1).resize(size)

    def test_max_queued_and_name(self) -> None:
        with pytest.raises(ValueError, match="max_queued"):
            GreenPool(1, max_queued=-1)
        with pytest.raises(TypeError, match="max_queued"):
            GreenPool(1, max_queued=1.0)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="name"):
            GreenPool(1, name=1)  # type: ignore[arg-type]

    @pytest.mark.parametrize("seconds", [-1, -0.001, float("nan")])
    @pytest.mark.parametrize("limit", ["total", "queued", "running"])
    def test_seconds(self, limit: str, seconds: float) -> None:
        with pytest.raises(ValueError, match=limit):
            Timeouts(**{limit: seconds})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="grace"):
            GreenPool(1).close(grace=seconds)

    def test_seconds_of_another_type(self) -> None:
        with pytest.raises(ValueError, match="too large"):
            Timeouts(total=10**400)
        for seconds in "1", True, [1]:
            with pytest.raises(TypeError):
                Timeouts(total=seconds)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="on_expiry"):
            Timeouts(on_expiry="explode")  # type: ignore[arg-type]

    def test_submit_what_cannot_be_called(self, stats: Any) -> None:
        pool = GreenPool(1)
        with pytest.raises(TypeError, match="not 'f'"):
            pool.submit("f")  # type: ignore[arg-type]
        assert stats(pool).submitted == 0

    def test_repr_says_how_it_stands(self) -> None:
        assert repr(GreenPool(3, name="db")).startswith("<GreenPool 'db' size=3 running=0")


def test_threads_may_look_at_the_statistics() -> None:
    pool = GreenPool(1)
    seen = gevent.get_hub().threadpool.apply(pool.stats)
    assert seen == pool.stats()
    assert threading.current_thread() is not None


def test_with_options_on_a_pool_of_one(gate: Any, result: Any) -> None:
    pool = GreenPool(1)
    call = greendefer.green_deferred(pool=pool)(gate)
    assert result(with_options(call, timeout=0.01)()).error() is CallTimeout


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
        worker._open().addErrback(lambda failure: failure.trap(CancelledError))
        with pytest.raises(RuntimeError, match="was entered before"):
            worker._open()
        return worker._leave()

    in_reactor(twice)
    assert pool.stats().running == 0


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
    in_reactor(worker._open)
    (d,) = in_reactor(lambda: [worker.submit(stubborn)])
    d.addErrback(lambda failure: failure.trap(CancelledError) and None)
    assert at_work.entered.wait(20)
    in_reactor(d.cancel)
    assert handling.entered.wait(20)
    host: Any = worker._host
    in_reactor(host.cancel)
    gevent.sleep(0.01)
    assert seen == []
    handling.opened.set()
    assert going_on.ended.wait(20)
    in_reactor(pool.close)
    assert seen == ["swallowed", "ended"]


def test_a_killed_call_that_ends_just_when_it_is_known_to_have_swallowed_that(
    result: Any, logged: list[dict[str, Any]]
) -> None:
    """It is said once, by whichever of the two comes first."""
    pool = GreenPool(1)

    def swallow() -> None:
        try:
            gevent.sleep(3600)
        except GreenletExit:
            pass
        gevent.sleep(0)  # the hub lets go of the exception; the reactor is told after this

    d = pool.submit(swallow)
    fired = result(d)
    while not d.is_running:
        gevent.sleep(0)
    d.cancel()
    assert fired.error() is CancelledError
    wait_for_deferred(pool.close(), 20)
    warnings = [each for each in logged if "swallowed" in str(each.get("log_format"))]
    assert len(warnings) == 1


def test_a_worker_that_is_given_up_as_it_comes(in_reactor: Callable[..., Any]) -> None:
    pool = GreenPool(1)
    outcome: list[Any] = []

    def open_and_cancel() -> Any:
        entered = pool.worker()._open()
        entered.addBoth(outcome.append)
        gevent.spawn(entered.cancel)  # after it has begun to serve, and before that is heard of
        return pool._when_idle()

    in_reactor(open_and_cancel)
    (failure,) = outcome
    assert failure.check(CancelledError)
    assert wait_for_deferred(pool.submit(len, "four"), 20) == 4


def test_calls_of_one_worker_that_wait_for_the_same_one(
    gates: Any, in_reactor: Callable[..., Any], wait_a_turn: Any
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
