"""greendefer.testing: without a reactor, greenlets, threads or time."""

from __future__ import annotations

from collections.abc import AsyncIterable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from greenlet import GreenletExit
from twisted.internet.defer import CancelledError, Deferred, gatherResults, inlineCallbacks
from twisted.internet.task import Clock
from twisted.python import context
from twisted.python.failure import Failure

from greendefer import (
    CallTimeout,
    ExecutorPool,
    GreenIterator,
    PoolClosed,
    PoolFull,
    Timeouts,
    green_deferred,
    green_iterator,
    green_proxy,
    testing,
    with_options,
)
from greendefer._worker import PoolWorker
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


def begin(coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
    return Deferred.fromCoroutine(coroutine)


def outcome(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return result_of(begin(coroutine))


async def collect(iterable: AsyncIterable[Any]) -> list[Any]:
    return [item async for item in iterable]


class Source:
    """What a generator function does, and where."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.greenlets: set[Any] = set()

    def note(self, what: Any) -> None:
        self.log.append(what)
        self.greenlets.add(gevent.getcurrent())

    @green_iterator
    def numbers(self, n: int) -> Iterator[int]:
        try:
            for i in range(n):
                self.note(i)
                yield i
            if n == 0:
                raise ValueError("none")
        finally:
            self.note("closed")


class Session:
    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def __enter__(self) -> Session:
        self.log.append("enter")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.log.append(("exit", exc_info[0]))

    def execute(self, sql: str) -> str:
        self.log.append(sql)
        return sql.upper()


class Page:
    """Live only because it is asked for."""

    def text(self) -> str:
        return "text"


class Client:
    def __init__(self) -> None:
        self.log: list[Any] = []

    @property
    def version(self) -> int:
        return 3

    def get(self, key: str) -> str:
        if key == "ink":
            raise KeyError(key)
        self.log.append(key)
        return key.upper()

    def session(self) -> Session:
        return Session(self.log)

    def numbers(self, n: int) -> Iterator[int]:
        try:
            yield from range(n)
        finally:
            self.log.append("closed")

    def pages(self) -> list[Page]:
        return [Page(), Page()]


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

    def test_the_next_one_is_cancelled_as_one_ends(self, stats: Any) -> None:
        pool = InlinePool()
        pool.resize(1)
        cancelled: list[Any] = []
        ran: list[int] = []

        def submit_two() -> None:
            first, second = pool.submit(ran.append, 1), pool.submit(ran.append, 2)
            first.addCallback(lambda _: second.cancel())
            second.addErrback(lambda failure: cancelled.append(failure.type))

        assert result_of(pool.submit(submit_two)) is None
        assert (ran, cancelled) == ([1], [CancelledError])
        stats(pool)

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

        assert outcome(use()) == 4
        assert result_of(pool.close()) is None
        assert isinstance(result_of(pool.submit(len, "")), PoolClosed)
        assert isinstance(outcome(use()), PoolClosed)


class TestInlineWorkers:
    def test_it_is_a_real_one(self, stats: Any) -> None:
        """It has one slot, one greenlet, and its calls end before they return."""
        pool = InlinePool()

        async def use() -> None:
            worker = pool.worker()
            assert type(worker) is PoolWorker
            with pytest.raises(RuntimeError, match="inside of its block"):
                worker.submit(len, "")
            async with worker as w:
                greenlets = [result_of(w.submit(gevent.getcurrent)) for _ in range(3)]
                assert greenlets[0] is not gevent.getcurrent()
                assert len(set(greenlets)) == 1
                s = stats(pool)
                assert (s.submitted, s.running) == (1, 1)
                assert isinstance(result_of(w.submit(int, "x")), ValueError)
            assert stats(pool).running == 0

        assert outcome(use()) is None
        assert stats(pool).completed == 1

    def test_what_is_around_it(self) -> None:
        pool = InlinePool()
        log: list[Any] = []
        seen: ContextVar[str] = ContextVar("seen")

        @contextmanager
        def around() -> Iterator[None]:
            log.append("in")
            try:
                yield
            except GreenletExit:
                log.append("killed")
                raise
            finally:
                log.append("out")

        pool.around = around

        async def use(how: str) -> None:
            seen.set(how)
            async with pool.worker() as w:
                await w.submit(lambda: log.append(seen.get()))
                await w.submit(log.append, 2)
                if how == "badly":
                    raise ValueError

        assert outcome(use("well")) is None
        assert log == ["in", "well", 2, "out"]
        log.clear()
        assert isinstance(outcome(use("badly")), ValueError)
        assert log == ["in", "badly", 2, "killed", "out"]

    def test_its_log_context_is_in_nobodys_way(self) -> None:
        """It has that of who entered it, as on a real pool; others keep their own."""
        pool = InlinePool()

        async def use() -> Any:
            async with pool.worker() as w:
                later: Deferred[None] = Deferred()
                go_on.append(later)
                await later
                return await w.submit(context.get, "name")

        go_on: list[Deferred[None]] = []
        d = context.call({"name": "outer"}, begin, use())
        assert context.get("name") is None
        go_on[0].callback(None)
        assert result_of(d) == "outer"
        assert context.get("name") is None

    def test_a_call_that_waits_for_the_hub(self) -> None:
        pool = InlinePool()
        spawned: list[Any] = []

        def f() -> str:
            g = gevent.spawn(gevent.getcurrent)
            spawned.append(g)
            return "waited" if g.get() is g else "not"

        async def use() -> str:
            async with pool.worker() as w:
                return await w.submit(f)

        assert outcome(use()) == "waited"

    def test_calls_from_its_calls(self) -> None:
        """Those on the same worker come next; others are made where they are."""
        pool = InlinePool()
        log: list[Any] = []

        async def use() -> None:
            async with pool.worker() as w, pool.worker() as other:

                def f() -> None:
                    w.submit(log.append, "next")
                    assert result_of(pool.submit(len, "four")) == 4
                    assert result_of(other.submit(len, "four")) == 4
                    log.append("first")

                await w.submit(f)
                assert log == ["first", "next"]

        assert outcome(use()) is None

    def test_a_call_cancels_one_of_its_own(self, stats: Any) -> None:
        """The worker is at work, so that one has not begun."""
        pool = InlinePool()
        ends: list[Any] = []

        async def main() -> str:
            async with pool.worker() as w:

                def cancel_one() -> None:
                    d = w.submit(ends.append, "has run")
                    d.addErrback(lambda failure: ends.append(failure.type))
                    d.cancel()

                await w.submit(cancel_one)
            return "left"

        assert outcome(main()) == "left"
        assert ends == [CancelledError]
        stats(pool)

    def test_a_call_that_closes_the_pool(self, stats: Any) -> None:
        pool = InlinePool()
        log: list[Any] = []

        async def use() -> None:
            async with pool.worker() as w:
                w.submit(pool.close, grace=0).addErrback(lambda failure: None)
                with pytest.raises(PoolClosed):
                    await w.submit(log.append, "never")

        assert isinstance(outcome(use()), PoolClosed)
        assert log == []
        assert stats(pool).running == 0


class TestInlineIterators:
    @pytest.mark.parametrize(
        "options", [{}, {"prefetch": 2}, {"timeout": 1}, {"prefetch": 9, "timeout": 1}]
    )
    def test_all_of_it(self, options: dict[str, Any], stats: Any) -> None:
        """Opened, stepped and closed in one greenlet, which is one call on the pool."""
        pool, source = InlinePool(), Source()
        numbers = with_options(source.numbers, pool=pool, **options)
        assert outcome(collect(numbers(100))) == list(range(100))
        assert source.log == [*range(100), "closed"]
        assert len(source.greenlets) == 1
        s = stats(pool)
        assert (s.submitted, s.completed) == (1, 1)

    @pytest.mark.parametrize("prefetch", [0, 2])
    @pytest.mark.parametrize("timeout", [None, 1])
    def test_half_of_it(self, prefetch: int, timeout: float | None, stats: Any) -> None:
        """It is never further ahead than it may be, and is closed when nobody wants more."""
        pool, source = InlinePool(), Source()
        numbers = with_options(source.numbers, pool=pool, prefetch=prefetch, timeout=timeout)

        async def use() -> None:
            async for n in numbers(100):
                assert source.log[-1] <= n + prefetch
                if n == 5:
                    break

        assert outcome(use()) is None
        assert source.log[-1] == "closed"
        assert len(source.log) <= 7 + prefetch
        assert stats(pool).running == 0

        async def in_block() -> None:
            async with numbers(100) as some:
                assert await anext(some) == 0
                assert source.log[-1] != "closed"
            assert source.log[-1] == "closed"

        assert outcome(in_block()) is None
        assert stats(pool).running == 0

    def test_one_that_fails(self, stats: Any) -> None:
        pool, source = InlinePool(), Source()
        numbers = with_options(source.numbers, pool=pool)
        assert isinstance(outcome(collect(numbers(0))), ValueError)
        assert source.log == ["closed"]
        assert stats(pool).running == 0

    def test_the_pool_is_closed(self, stats: Any) -> None:
        pool, source = InlinePool(), Source()
        numbers = with_options(source.numbers, pool=pool)

        async def use() -> None:
            some = numbers(9)
            assert await anext(some) == 0
            assert result_of(pool.close(grace=0)) is None
            assert source.log == [0, "closed"]
            with pytest.raises(PoolClosed):
                await anext(some)

        assert outcome(use()) is None
        assert isinstance(outcome(collect(numbers(9))), PoolClosed)
        assert stats(pool).running == 0

    def test_a_pool_without_workers(self) -> None:
        pool = ExecutorPool(lambda: None, 1)  # type: ignore[arg-type, return-value]
        numbers = with_options(Source().numbers, pool=pool)
        error = outcome(collect(numbers(1)))
        assert isinstance(error, TypeError)
        assert "in a test, one of greendefer.testing" in str(error)


class TestInlineProxies:
    def test_methods(self, stats: Any) -> None:
        pool = InlinePool()
        client = green_proxy(Client(), pool=pool, properties=["version"])
        assert result_of(client.get("tea")) == "TEA"
        assert isinstance(result_of(client.get("ink")), KeyError)
        assert result_of(client.version) == 3
        assert result_of(client.get("a").addCallback(client.get)) == "A"
        assert result_of(gatherResults([client.get("b"), client.get("c")])) == ["B", "C"]
        client.get("nobody waits")
        assert client.log == ["tea", "a", "A", "b", "c", "nobody waits"]
        s = stats(pool)
        assert (s.completed, s.failed, s.running) == (7, 1, 0)

    def test_in_coroutines_of_both_kinds(self) -> None:
        client = green_proxy(Client(), pool=InlinePool())

        async def use() -> str:
            await client.get("one")
            return await client.get("two")  # type: ignore[no-any-return]

        @inlineCallbacks
        def use_too() -> Any:
            yield client.get("three")
            return (yield client.get("four"))

        assert (outcome(use()), result_of(use_too())) == ("TWO", "FOUR")

    def test_iterating_over_results(self, stats: Any) -> None:
        pool = InlinePool()
        client = green_proxy(Client(), pool=pool, results=Page)

        async def use() -> None:
            assert await collect(client.numbers(3)) == [0, 1, 2]
            assert client.log == ["closed"]
            numbers = await client.numbers(3)
            assert isinstance(numbers, GreenIterator)
            assert await collect(numbers) == [0, 1, 2]
            async with client.numbers(9) as some:
                async for n in some:
                    if n == 3:
                        break
            assert client.log == ["closed"] * 3
            assert [await page.text() async for page in client.pages()] == ["text"] * 2

        assert outcome(use()) is None
        assert stats(pool).running == 0

    @pytest.mark.parametrize("plain", [(), (Session,)])
    def test_blocks(self, plain: Any, stats: Any) -> None:
        pool = InlinePool()
        client = green_proxy(Client(), pool=pool, plain=plain)

        async def use() -> None:
            async with client.session() as session:
                sql = session.execute("one")
                assert (sql if plain else await sql) == "ONE"
                assert stats(pool).running == 1
            raise LookupError

        assert isinstance(outcome(use()), LookupError)
        assert client.log == ["enter", "one", ("exit", None)]
        assert stats(pool).running == 0

    def test_a_proxy_in_a_block(self, stats: Any) -> None:
        pool = InlinePool()
        log: list[Any] = []
        proxy = green_proxy(Session(log), pool=pool)

        async def use() -> None:
            async with proxy as session:
                assert await session.execute("one") == "ONE"
                assert await proxy.execute("two") == "TWO"
                assert stats(pool).submitted == 1  # all of it on one worker
                raise LookupError

        assert isinstance(outcome(use()), LookupError)
        assert log == ["enter", "one", "two", ("exit", LookupError)]
        assert stats(pool).running == 0

    def test_what_can_not_be_entered(self) -> None:
        client = green_proxy(Client(), pool=InlinePool())

        async def use() -> None:
            async with client.get("tea"):
                pass

        error = outcome(use())
        assert isinstance(error, TypeError)
        assert "no context manager: await it" in str(error)


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

    def test_a_call_that_closes_its_pool(self, stats: Any) -> None:
        """It runs: there is nobody who could end it. That it takes its time is cut short."""
        pool = ClockPool(Clock())
        d = pool.submit(pool.close, grace=0)
        pool.step(takes=5)
        assert isinstance(result_of(d), PoolClosed)
        pool.clock.advance(5)
        assert stats(pool).lingering == 0


class TestClockWorkers:
    def test_one_needs_a_slot_and_its_calls_steps(self, stats: Any) -> None:
        pool = ClockPool(Clock(), 1)
        log: list[Any] = []

        async def use(name: str) -> None:
            async with pool.worker() as w:
                log.append(name)
                w.submit(log.append, f"{name} 1")
                w.submit(log.append, f"{name} 2")
                log.append(f"{name} leaves")
            log.append(f"{name} has left")

        first, second = begin(use("a")), begin(use("b"))
        assert (log, pool.waiting, stats(pool).queued) == (["a", "a leaves"], 1, 1)
        pool.step()
        assert log[2:] == ["a 1"]
        pool.step()
        assert log[3:] == ["a 2", "a has left", "b", "b leaves"]
        pool.run()
        assert log[7:] == ["b 1", "b 2", "b has left"]
        assert (result_of(first), result_of(second)) == (None, None)
        assert stats(pool).completed == 2

    def test_given_up_before_it_has_begun(self, stats: Any) -> None:
        clock = Clock()
        pool = ClockPool(clock, 1)
        d = pool.submit(len, "four")
        entered = pool.worker()._open()
        d.addCallback(lambda _: entered.cancel())
        pool.step()
        assert type(result_of(entered)) is CancelledError
        assert not pool.waiting
        stats(pool)

    def test_a_call_is_cancelled_before_the_worker_is_there(self, stats: Any) -> None:
        pool = ClockPool(Clock(), 1)
        d = pool.submit(len, "four")
        worker = pool.worker()
        entered = worker._open()
        call = worker.submit(len, "never")
        call.cancel()
        assert type(result_of(call)) is CancelledError
        pool.run()
        assert (result_of(d), result_of(entered)) == (4, None)
        assert result_of(worker._leave()) is None
        stats(pool)

    def test_a_call_that_was_due_and_is_withdrawn_before_the_stack_is_free(self) -> None:
        stack: Any = SimpleNamespace(is_parked=False, killed=False)
        carrier: Any = testing._WorkerCarrier(None, None)  # type: ignore[arg-type]
        carrier._stack = stack
        withdrawn = SimpleNamespace(begin=lambda: False)
        carrier._run(withdrawn, 0.0)
        assert list(carrier._due) == [(withdrawn, 0.0)]
        stack.is_parked = True  # and has nothing to enter a call with
        carrier._go_on()
        assert not carrier._due

    def test_a_call_that_takes_its_time(self, stats: Any) -> None:
        clock = Clock()
        pool = ClockPool(clock)

        async def use() -> list[Any]:
            async with pool.worker() as w:
                return [await w.submit(len, "four"), await w.submit(len, "")]

        d = begin(use())
        pool.step(takes=2)
        assert pool.waiting == 0
        clock.advance(2)
        pool.step(takes=1)
        assert not d.called
        assert stats(pool).running == 1
        clock.advance(1)
        assert result_of(d) == [4, 0]

    @pytest.mark.parametrize("steps", [0, 1])
    def test_cancelling_its_calls(self, steps: int, stats: Any) -> None:
        """One that waits for its step, or takes its time, and then the last one."""
        pool = ClockPool(Clock(), 1)
        calls: list[Deferred[Any]] = []

        async def use() -> None:
            async with pool.worker() as w:
                calls.extend(w.submit(len, "four") for _ in range(3))

        d = begin(use())
        for _ in range(steps):
            pool.step(takes=1)
        calls[0].cancel()
        assert isinstance(result_of(calls[0]), CancelledError)
        pool.step()
        assert result_of(calls[1]) == 4
        assert not d.called
        for _ in range(steps):
            pool.step(takes=1)
        calls[2].cancel()
        assert isinstance(result_of(calls[2]), CancelledError)
        assert result_of(d) is None
        assert stats(pool).running == stats(pool).lingering == pool.waiting == 0
        assert not pool.clock.getDelayedCalls()

    def test_out_of_time_for_a_slot(self, stats: Any) -> None:
        clock = Clock()
        pool = ClockPool(clock, 1)
        source = Source()
        numbers = with_options(source.numbers, pool=pool, timeout=Timeouts(queued=3))
        pool.submit(len, "")
        d = begin(collect(numbers(3)))
        assert pool.waiting == 1
        clock.advance(3)
        assert isinstance(result_of(d), CallTimeout)
        assert stats(pool).queued == 0
        pool.run()
        assert source.log == []

    def test_the_pool_is_closed(self, stats: Any) -> None:
        """With a grace that is the clock's. Its call was run, and takes its time."""
        clock = Clock()
        pool = ClockPool(clock)
        log: list[Any] = []

        async def use() -> None:
            async with pool.worker() as w:
                w._at_exit(lambda: log.append("exit"))
                w.submit(len, "").addErrback(lambda failure: log.append(failure.type))
                await w.submit(len, "four")

        d = begin(use())
        pool.step(takes=9)
        closed = pool.close(grace=5)
        clock.advance(4)
        assert not closed.called
        assert log == []
        clock.advance(1)
        assert log == ["exit", PoolClosed]
        assert result_of(closed) is None
        assert isinstance(result_of(d), PoolClosed)
        assert stats(pool).running == stats(pool).lingering == 0


class TestClockIterators:
    def test_item_by_item(self, stats: Any) -> None:
        pool, source = ClockPool(Clock()), Source()
        got: list[int] = []

        async def use() -> None:
            async for n in with_options(source.numbers, pool=pool)(3):
                got.append(n)  # noqa: PERF401 - one by one

        d = begin(use())
        assert source.log == []
        for n in range(3):
            pool.step()
            assert got == list(range(n + 1))
            assert source.log == got
        pool.step()
        assert source.log == [0, 1, 2, "closed"]
        assert result_of(d) is None
        assert pool.waiting == 0
        assert stats(pool).completed == 1

    @pytest.mark.parametrize("timeout", [5, Timeouts(running=5)])
    def test_each_item_has_its_time(self, timeout: Any, stats: Any) -> None:
        clock = Clock()
        pool, source = ClockPool(clock), Source()
        some = with_options(source.numbers, pool=pool, timeout=timeout)(9)
        for n in range(2):
            d = begin(anext(some))
            clock.advance(4)
            pool.step(takes=0.5)
            clock.advance(0.5)
            assert result_of(d) == n
            clock.advance(100)  # nobody waits for an item meanwhile
        d = begin(anext(some))
        pool.step(takes=6)
        clock.advance(4.9)
        assert not d.called
        clock.advance(0.1)
        assert isinstance(result_of(d), CallTimeout)
        assert source.log[-1] == "closed"
        assert stats(pool).running == 0
        assert not clock.getDelayedCalls()

    def test_prefetch(self) -> None:
        """What is there already takes no time; what is not has the limit from then on."""
        clock = Clock()
        pool, source = ClockPool(clock), Source()
        some = with_options(source.numbers, pool=pool, timeout=5, prefetch=2)(9)
        d = begin(anext(some))
        pool.step()
        assert source.log == [0, 1, 2]
        assert [result_of(each) for each in (d, begin(anext(some)), begin(anext(some)))] == [
            0,
            1,
            2,
        ]
        clock.advance(100)
        d = begin(anext(some))
        clock.advance(4.9)
        assert not d.called
        clock.advance(0.1)
        assert isinstance(result_of(d), CallTimeout)
        assert source.log == [0, 1, 2, "closed"]

    def test_cancelling_and_closing(self, stats: Any) -> None:
        """Neither needs a step."""
        pool, source = ClockPool(Clock(), 1), Source()
        numbers = with_options(source.numbers, pool=pool)
        some, others = numbers(9), numbers(9)
        first, other = begin(anext(some)), begin(anext(others))
        pool.step()
        assert result_of(first) == 0
        waiting = begin(anext(some))
        waiting.cancel()
        assert isinstance(result_of(waiting), CancelledError)
        assert source.log == [0, "closed"]
        pool.step()
        assert result_of(other) == 0
        assert result_of(others.aclose()) is None
        assert source.log == [0, "closed"] * 2
        assert stats(pool).running == pool.waiting == 0


class TestClockProxies:
    def test_methods(self, stats: Any) -> None:
        clock = Clock()
        pool = ClockPool(clock, 1)
        client = green_proxy(Client(), pool=pool, timeout=5)
        late = client.get("late")
        assert pool.waiting == 1
        clock.advance(5)
        assert isinstance(result_of(late), CallTimeout)
        first, second = client.get("one"), client.get("two")
        pool.step(takes=1)
        assert stats(pool).queued == 1
        second.cancel()
        assert isinstance(result_of(second), CancelledError)
        clock.advance(1)
        assert result_of(first) == "ONE"
        assert client.log == ["one"]

    def test_a_methods_own_time_counts_for_its_items(self) -> None:
        clock = Clock()
        pool = ClockPool(clock)
        obj = Client()
        client = green_proxy(obj, methods={"numbers": {"timeout": 3, "pool": pool}})
        got: list[int] = []

        async def use(iterable: Any) -> None:
            async for n in iterable:
                got.append(n)  # noqa: PERF401 - one by one

        async def use_later() -> None:
            await use(await client.numbers(9))

        for way in lambda: use(client.numbers(9)), use_later:
            d = begin(way())
            while not got:
                pool.step()
            clock.advance(2.9)
            assert not d.called
            clock.advance(0.1)
            assert isinstance(result_of(d), CallTimeout)
            assert obj.log == ["closed"]
            obj.log.clear()
            got.clear()

    def test_a_block(self, stats: Any) -> None:
        clock = Clock()
        pool = ClockPool(clock, 1)
        log: list[Any] = []
        proxy = green_proxy(Session(log), pool=pool, timeout=5)

        async def use() -> None:
            async with proxy as session:
                await session.execute("one")

        d = begin(use())
        other = pool.submit(len, "four")
        pool.step()
        assert log == ["enter"]
        pool.step(takes=4)
        clock.advance(4)
        assert log == ["enter", "one"]
        assert stats(pool).queued == 1
        pool.step()
        assert result_of(d) is None
        pool.step()
        assert result_of(other) == 4
        d = begin(use())
        pool.step()
        clock.advance(5)
        assert not d.called  # it is being left
        pool.step()
        assert isinstance(result_of(d), CallTimeout)
        assert log[3:] == ["enter", ("exit", CallTimeout)]
        assert stats(pool).running == 0


def test_no_reactor_is_needed(run_program: Any) -> None:
    run_program(
        """
        import sys
        from greendefer import *
        from greendefer.testing import ClockPool, InlinePool
        from twisted.internet.defer import Deferred
        from twisted.internet.task import Clock

        @green_iterator(timeout=5)
        def numbers():
            yield from range(3)

        class Client:
            def get(self):
                return 4
            def numbers(self):
                yield from range(3)
            def __enter__(self):
                return self
            def __exit__(self, *exc_info):
                pass

        async def use(pool):
            client = green_proxy(Client(), pool=pool)
            assert await pool.submit(len, "four") == 4
            async with pool.worker() as w:
                assert await w.submit(len, "four") == 4
            assert [n async for n in with_options(numbers, pool=pool)()] == [0, 1, 2]
            assert await client.get() == 4
            assert [n async for n in client.numbers()] == [0, 1, 2]
            async with client as entered, client.numbers() as some:
                assert await entered.get() == 4
                async for n in some:
                    break
            return n

        async def out_of_time(pool):
            try:
                async for n in with_options(numbers, pool=pool)():
                    clock.advance(5)
            except CallTimeout:
                return "out of time"

        clock = Clock()
        fired = []
        Deferred.fromCoroutine(use(InlinePool())).addBoth(fired.append)
        pool = ClockPool(clock)
        Deferred.fromCoroutine(use(pool)).addBoth(fired.append)
        pool.run()
        Deferred.fromCoroutine(out_of_time(pool)).addBoth(fired.append)
        clock.advance(5)
        assert fired == [0, 0, "out of time"], fired
        assert pool.stats().running == 0
        assert "twisted.internet.reactor" not in sys.modules
        """
    )


def test_a_call_closes_the_inline_pool_that_it_runs_in() -> None:
    pool = InlinePool()
    d = pool.submit(lambda: pool.close(grace=0))
    assert d.called
    d.addErrback(lambda failure: None)
    assert pool.stats().running == 0
