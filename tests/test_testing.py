"""greendefer.testing: without a reactor, greenlets, threads or time."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from greendefer import CallTimeout, PoolClosed, PoolFull, Timeouts, green_deferred, with_options
from greendefer.testing import ClockPool, InlinePool


@green_deferred(timeout=5)
def half(n: int) -> float:
    if n < 0:
        raise ValueError(n)
    return n / 2


def result_of(d: Deferred[Any]) -> Any:
    """What it has fired with; an exception for a failure."""
    results: list[Any] = []
    d.addBoth(results.append)
    (result,) = results
    return result.value if isinstance(result, Failure) else result


def test_a_clock_is_needed() -> None:
    with pytest.raises(TypeError, match=r"needs a twisted\.internet\.task\.Clock, not 5"):
        ClockPool(5)  # type: ignore[arg-type]


class TestInline:
    def test_it_has_fired_when_it_returns(self, stats: Any) -> None:
        pool = InlinePool()
        assert result_of(with_options(half, pool=pool)(4)) == 2
        assert isinstance(result_of(with_options(half, pool=pool)(-1)), ValueError)
        s = stats(pool)
        assert (s.completed, s.failed) == (1, 1)

    def test_calls_from_calls_and_from_callbacks(self, stats: Any) -> None:
        pool = InlinePool()
        call = with_options(half, pool=pool)
        assert result_of(pool.submit(lambda: call(8)).addCallback(call)) == 2
        inside: list[Any] = []
        call(8).addCallback(lambda n: inside.append(result_of(call(n))))
        assert inside == [2]
        assert stats(pool).completed == 5

    def test_a_deferred_that_has_not_fired(self, stats: Any) -> None:
        pool = InlinePool()
        later: Deferred[int] = Deferred()
        d = pool.submit(lambda: later)
        assert not d.called
        later.callback(1)
        assert result_of(d) == 1

    def test_worker_and_close(self) -> None:
        pool = InlinePool()

        async def use() -> int:
            async with pool.worker() as w:
                return await w.submit(len, "four")

        assert result_of(Deferred.fromCoroutine(use())) == 4
        assert result_of(pool.close()) is None
        assert isinstance(result_of(pool.submit(len, "")), PoolClosed)


class TestClock:
    def test_nothing_runs_before_its_step(self, stats: Any) -> None:
        pool = ClockPool(Clock(), 2)
        calls = [with_options(half, pool=pool)(n) for n in (2, 4, 6)]
        assert pool.waiting == 2
        assert stats(pool).queued == 1
        pool.step()
        assert [d.called for d in calls] == [True, False, False]
        assert pool.waiting == 2
        pool.run()
        assert [result_of(d) for d in calls] == [1, 2, 3]
        with pytest.raises(LookupError):
            pool.step()
        assert stats(pool).completed == 3

    def test_a_limit_while_it_waits_and_while_it_runs(self, stats: Any) -> None:
        clock = Clock()
        pool = ClockPool(clock, 1)
        call = with_options(half, pool=pool)
        first, second = call(2), call(4)
        pool.step(takes=6)
        clock.advance(4.9)
        assert stats(pool).running == 1
        clock.advance(0.1)
        assert isinstance(result_of(first), CallTimeout)
        assert isinstance(result_of(second), CallTimeout)
        assert not clock.getDelayedCalls()
        assert stats(pool).timed_out == 2

    def test_queued_apart_from_running(self) -> None:
        clock = Clock()
        pool = ClockPool(clock, 1)
        call = with_options(half, pool=pool, timeout=Timeouts(queued=1, running=10))
        first, second = call(2), call(4)
        pool.step(takes=9)
        clock.advance(1)
        assert not first.called
        assert isinstance(result_of(second), CallTimeout)
        clock.advance(8)
        assert result_of(first) == 1

    def test_an_abandoned_call_lingers(self, stats: Any) -> None:
        clock = Clock()
        pool = ClockPool(clock, 1)
        d = with_options(half, pool=pool, on_cancel="abandon")(2)
        queued = pool.submit(len, "four")
        pool.step(takes=3)
        d.cancel()
        assert isinstance(result_of(d), CancelledError)
        s = stats(pool)
        assert (s.lingering, s.queued) == (1, 1)
        clock.advance(3)
        pool.step()
        assert result_of(queued) == 4

    def test_a_cancelled_call_gives_its_slot_back(self, stats: Any) -> None:
        pool = ClockPool(Clock(), 1)
        running, queued = pool.submit(len, "a"), pool.submit(len, "four")
        pool.step(takes=1)
        running.cancel()
        assert isinstance(result_of(running), CancelledError)
        assert stats(pool).lingering == 0
        pool.step()
        assert result_of(queued) == 4

    def test_full(self) -> None:
        pool = ClockPool(Clock(), 1, max_queued=0)
        pool.submit(len, "")
        assert isinstance(result_of(pool.submit(len, "")), PoolFull)


def test_no_reactor_is_needed(run_program: Any) -> None:
    run_program(
        """
        import sys
        from greendefer.testing import InlinePool
        fired = []
        InlinePool().submit(len, "four").addCallback(fired.append)
        assert fired == [4]
        assert "twisted.internet.reactor" not in sys.modules
        """
    )


def test_a_worker_of_a_clock_pool() -> None:
    pool = ClockPool(Clock())
    worker = pool.worker()
    d = worker.submit(int, "7")
    pool.run()
    assert d.result == 7


def test_a_call_closes_the_inline_pool_that_it_runs_in() -> None:
    pool = InlinePool()
    d = pool.submit(lambda: pool.close(grace=0))
    assert d.called
    d.addErrback(lambda failure: None)
    assert pool.stats().running == 0
