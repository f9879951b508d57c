"""green_iterator: one worker, true backpressure, and a source that is closed once, whatever ends
it. And the reverse: async generators and context managers in blocking code."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import inspect
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gevent
import pytest
from gevent import monkey
from gevent.event import Event
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, gatherResults, succeed
from twisted.python.failure import Failure

import greendefer
from greendefer import (
    BlockingIterator,
    CallTimeout,
    ExecutorPool,
    GreendeferError,
    GreenIterator,
    GreenPool,
    NativeThreadPool,
    PoolClosed,
    PoolFull,
    Timeouts,
    WouldDeadlock,
    blocking_from_greenlet,
    green_deferred,
    green_iterator,
    wait_for_deferred,
    with_options,
)


class Source:
    """An iterator to order: counts its steps, waits at a gate, fails where it is told to."""

    def __init__(self, n: int = 10, pause: bool = True) -> None:
        self.n = n
        self.pause = pause
        self.produced = 0
        self.closed = 0
        self.greenlets: set[Any] = set()
        self.blocks_at: int | None = None
        self.fails_at: int | None = None
        self.close_error: BaseException | None = None
        self.blocked = Event()
        self.go = Event()
        self.ended = Event()

    def __iter__(self) -> Source:
        self.greenlets.add(gevent.getcurrent())
        return self

    def __next__(self) -> int:
        self.greenlets.add(gevent.getcurrent())
        if self.pause:
            gevent.sleep(0)
        if self.produced == self.blocks_at:
            self.blocked.set()
            self.go.wait()
        if self.produced == self.fails_at:
            raise KeyError("step")
        if self.produced == self.n:
            raise StopIteration
        self.produced += 1
        return self.produced - 1

    def close(self) -> None:
        self.greenlets.add(gevent.getcurrent())
        self.closed += 1
        self.ended.set()
        if self.close_error is not None:
            raise self.close_error


def over(source: Any, pool: GreenPool, **options: Any) -> GreenIterator[int]:
    return green_iterator(pool=pool, **options)(lambda: source)()


async def collect(it: Any) -> list[Any]:
    return [item async for item in it]


async def collect_into(got: list[Any], it: Any) -> None:
    async for item in it:
        got.append(item)  # noqa: PERF401  # what came before an error stays


@pytest.fixture(params=[0, 1, 7, 1000])
def prefetch(request: Any) -> Any:
    return request.param


@pytest.fixture
def pool(stats: Any) -> Iterator[GreenPool]:
    """A pool of one, which must be free again at the end."""
    pool = GreenPool(1)
    yield pool
    while pool.stats().running or pool.stats().lingering:
        gevent.sleep(0)
    assert stats(pool).queued == 0


class TestItems:
    def test_all_of_them_on_one_worker(
        self, pool: GreenPool, prefetch: int, in_reactor: Any, stats: Any
    ) -> None:
        source = Source(100)
        it = over(source, pool, prefetch=prefetch)
        assert stats(pool).submitted == 0  # nothing runs before the first item is asked for
        assert in_reactor(collect, it) == list(range(100))
        assert source.closed == 1
        assert len(source.greenlets) == 1
        # StopAsyncIteration comes when the slot is free again; it was one call.
        assert (stats(pool).running, stats(pool).submitted, stats(pool).completed) == (0, 1, 1)
        assert in_reactor(collect, it) == []  # as an exhausted generator
        assert source.closed == 1

    @pytest.mark.parametrize("make", [lambda: [1, 2], lambda: iter((1, 2)), lambda: {1: 0, 2: 0}])
    def test_any_iterable(self, pool: GreenPool, make: Any, in_reactor: Any) -> None:
        assert in_reactor(collect, green_iterator(pool=pool)(make)()) == [1, 2]

    def test_a_generator_function_and_its_arguments(self, pool: GreenPool, in_reactor: Any) -> None:
        @green_iterator(pool=pool)
        def count(start: int, *, stop: int) -> Iterator[int]:
            """Counts."""
            yield from range(start, stop)

        assert in_reactor(collect, count(2, stop=5)) == [2, 3, 4]
        assert count.__doc__ == "Counts."
        assert inspect.signature(count) == inspect.signature(count.__wrapped__)  # type: ignore[attr-defined]
        assert "count, not begun" in repr(count(1, stop=1))

    def test_methods(self, in_reactor: Any) -> None:
        class Client:
            pool = GreenPool(1)
            n = 3

            @green_iterator(pool=lambda self: self.pool)
            def items(self) -> Iterator[int]:
                yield from range(self.n)

            @classmethod
            @green_iterator
            def of_class(cls) -> Iterator[str]:
                yield cls.__name__

            @green_iterator(prefetch=2)
            @staticmethod
            def static() -> Iterable[int]:
                return [7]

        assert in_reactor(collect, Client().items()) == [0, 1, 2]
        assert Client.pool.stats().completed == 1
        assert in_reactor(collect, Client.of_class()) == ["Client"]
        assert in_reactor(collect, Client().static()) == [7]
        other = GreenPool(1)
        assert in_reactor(collect, with_options(Client().items, pool=other)()) == [0, 1, 2]
        assert other.stats().completed == 1

    def test_it_is_never_further_ahead_than_prefetch(
        self, pool: GreenPool, prefetch: int, in_reactor: Any
    ) -> None:
        source = Source(3000, pause=False)

        async def slow() -> None:
            consumed = 0
            async for _ in over(source, pool, prefetch=prefetch):
                consumed += 1
                # It does go ahead; not always all the way, since a worker gives way after a while,
                # and is sent on only when half of it is consumed.
                while consumed == 1 and source.produced - consumed < prefetch // 2:
                    await green_deferred(gevent.sleep)(0)
                for _ in range(3):
                    await green_deferred(gevent.sleep)(0)
                assert source.produced - consumed <= prefetch  # ... and no further
                if consumed == 50:
                    break

        in_reactor(slow)

    def test_a_consumer_that_stops_stops_the_source(self, pool: GreenPool, in_reactor: Any) -> None:
        source = Source(1000)

        async def main() -> None:
            async with over(source, pool, prefetch=5) as it:
                assert await it.__anext__() == 0
                while source.produced - 1 < 5 // 2:  # as above
                    await green_deferred(gevent.sleep)(0)
                for _ in range(100):
                    await green_deferred(gevent.sleep)(0)
                produced = source.produced
                assert produced <= 6
                for _ in range(100):
                    await green_deferred(gevent.sleep)(0)
                assert source.produced == produced
                assert await it.__anext__() == 1

        in_reactor(main)

    def test_an_item_is_there_before_the_next_step_ends(
        self, pool: GreenPool, in_reactor: Any
    ) -> None:
        """Prefetching is no reason to wait for more than was asked for."""
        source = Source()
        source.blocks_at = 3

        async def main() -> list[int]:
            async with over(source, pool, prefetch=100) as it:
                got = [await it.__anext__() for _ in range(3)]
                source.go.set()
                return got + await collect(it)

        assert in_reactor(main) == list(range(10))

    def test_a_source_that_never_waits_gives_way(
        self, pool: GreenPool, in_reactor: Any, reactor: Any
    ) -> None:
        """However much it may prefetch, it stops after a slice of time."""
        source = Source(10**9, pause=False)

        async def main() -> int:
            async with over(source, pool, prefetch=10**9) as it:
                await it.__anext__()
                turn: Deferred[None] = Deferred()
                reactor.callLater(0, turn.callback, None)
                await turn
                return source.produced

        assert 0 < in_reactor(main) < 10**6

    def test_two_at_once_share_a_pool(self, in_reactor: Any) -> None:
        pool = GreenPool(2)
        sources = [Source(50), Source(50), Source(50)]

        async def main() -> Any:
            every = [ensureDeferred(collect(over(s, pool, prefetch=3))) for s in sources]
            return await gatherResults(every)

        assert in_reactor(main) == [list(range(50))] * 3

    def test_one_context(self, pool: GreenPool, in_reactor: Any) -> None:
        """All steps see the contextvars of the caller, and what the source sets is its own."""
        var = contextvars.ContextVar("var", default="unset")

        @green_iterator(pool=pool)
        def source() -> Iterator[str]:
            yield var.get()
            token = var.set("source")
            yield var.get()
            yield var.get()
            var.reset(token)
            yield var.get()

        async def main() -> list[str]:
            var.set("caller")
            it = source()
            var.set("later")
            seen = [await it.__anext__()]
            return seen + await collect(it) + [var.get()]

        assert in_reactor(main) == ["caller", "source", "source", "caller", "later"]

    def test_a_step_may_wait_for_twisted_and_for_its_own_pool(
        self, in_reactor: Any, reactor: Any
    ) -> None:
        pool = GreenPool(1)

        @green_iterator(pool=pool)
        def source() -> Iterator[int]:
            later: Deferred[int] = Deferred()
            reactor.callLater(0, later.callback, 1)
            yield wait_for_deferred(later)
            yield wait_for_deferred(pool.submit(len, "xy"))  # the pool is full: it lends its slot

        assert in_reactor(collect, source()) == [1, 2]

    def test_one_consumer_at_a_time(self, pool: GreenPool, prefetch: int, in_reactor: Any) -> None:
        source = Source()
        source.blocks_at = 0

        async def main() -> list[int]:
            it = over(source, pool, prefetch=prefetch)
            first = ensureDeferred(it.__anext__())
            with pytest.raises(RuntimeError, match="one consumer"):
                await it.__anext__()
            source.go.set()
            return [await first] + await collect(it)

        assert in_reactor(main) == list(range(10))

    def test_many_thousand(self, in_reactor: Any) -> None:
        for prefetch in 0, 100:
            it = green_iterator(prefetch=prefetch)(range)(20_000)
            assert in_reactor(collect, it) == list(range(20_000))


class TestErrors:
    def test_in_a_step(self, pool: GreenPool, prefetch: int, in_reactor: Any, stats: Any) -> None:
        """It comes after the items before it, once, when the source is closed."""
        source = Source()
        source.fails_at = 4
        got: list[int] = []

        async def main() -> None:
            it = over(source, pool, prefetch=prefetch)
            try:
                await collect_into(got, it)
            finally:
                assert source.closed == 1
                assert stats(pool).running == 0
                assert await collect(it) == []

        with pytest.raises(KeyError, match="step") as caught:
            in_reactor(main)
        assert got == [0, 1, 2, 3]
        assert "__next__" in [entry.name for entry in caught.traceback]

    def test_the_end_of_another_iteration(self, in_reactor: Any) -> None:
        """It would be taken for that of this one."""
        error = StopAsyncIteration()

        class Source:
            def __iter__(self) -> Any:
                return self

            def __next__(self) -> int:
                raise error

        it = green_iterator(Source)
        with pytest.raises(RuntimeError, match="Source raised StopAsyncIteration") as caught:
            in_reactor(lambda: Deferred.fromCoroutine(collect(it())))
        assert caught.value.__cause__ is error

    @pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
    def test_of_any_kind(self, pool: GreenPool, error: BaseException, in_reactor: Any) -> None:
        @green_iterator(pool=pool)
        def source() -> Iterator[int]:
            yield 1
            raise error

        async def main() -> Any:
            it = source()
            await it.__anext__()
            try:
                await it.__anext__()
            except BaseException as e:
                return e

        assert in_reactor(main) is error

    def test_when_it_is_opened(self, pool: GreenPool, prefetch: int, in_reactor: Any) -> None:
        for make, error in (
            (lambda: 1 / 0, ZeroDivisionError),
            (lambda: 5, TypeError),
            (lambda missing: [], TypeError),
        ):
            it: Any = green_iterator(pool=pool, prefetch=prefetch)(make)()  # type: ignore[arg-type]
            with pytest.raises(error):
                in_reactor(collect, it)
            assert in_reactor(collect, it) == []

    def test_in_close_after_the_last_item(
        self, pool: GreenPool, prefetch: int, in_reactor: Any
    ) -> None:
        source = Source(3)
        source.close_error = OSError("close")
        got: list[int] = []

        async def main() -> None:
            async with over(source, pool, prefetch=prefetch) as it:
                await collect_into(got, it)

        with pytest.raises(OSError, match="close"):
            in_reactor(main)
        assert got == [0, 1, 2]
        assert source.closed == 1

    def test_in_close_half_way(self, pool: GreenPool, prefetch: int, in_reactor: Any) -> None:
        source = Source(300)
        source.close_error = OSError("close")

        async def main() -> None:
            it = over(source, pool, prefetch=prefetch)
            await it.__anext__()
            with pytest.raises(OSError, match="close"):
                await it.aclose()
            await it.aclose()  # it was heard

        in_reactor(main)
        assert source.closed == 1

    def test_in_a_step_and_in_close(self, pool: GreenPool, in_reactor: Any) -> None:
        source = Source()
        source.fails_at = 1
        source.close_error = OSError("close")

        async def main() -> None:
            async with over(source, pool) as it:
                await collect(it)

        with pytest.raises(KeyError):
            in_reactor(main)

    def test_in_close_after_a_bare_break_is_logged(
        self, pool: GreenPool, in_reactor: Any, logged: Any
    ) -> None:
        source = Source()
        source.close_error = OSError("close")

        async def main() -> None:
            async for _ in over(source, pool):
                break

        in_reactor(main)
        assert source.ended.wait(10)
        while not any(event["isError"] for event in logged):
            gevent.sleep(0)
        (event,) = [event for event in logged if event["isError"]]
        logged.remove(event)
        assert event["log_failure"].check(OSError)


ENDS = ["aclose", "async with", "break", "cancel", "exception", "close of the pool"]


class TestItsEnd:
    @pytest.mark.parametrize("how", ENDS)
    def test_half_way(
        self, pool: GreenPool, prefetch: int, how: str, in_reactor: Any, stats: Any
    ) -> None:
        """The source's `finally` runs, once, on its own worker; the slot is free."""
        finals: list[Any] = []
        began: list[Any] = []

        @green_iterator(pool=pool, prefetch=prefetch)
        def source() -> Iterator[int]:
            began.append(gevent.getcurrent())
            try:
                for n in range(10_000):
                    gevent.sleep(0)
                    yield n
            finally:
                gevent.sleep(0)
                finals.append(gevent.getcurrent())

        async def main() -> None:
            it = source()
            if how == "async with":
                async with it:
                    await it.__anext__()
            elif how == "exception":
                async with it:
                    await it.__anext__()
                    raise KeyError
            elif how == "break":
                async for _ in it:
                    break
                del it
            else:
                await it.__anext__()
                if how == "aclose":
                    await it.aclose()
                    assert stats(pool).running == 0
                elif how == "cancel":
                    while prefetch and it._stream.items:
                        await it.__anext__()
                    step = ensureDeferred(it.__anext__())
                    step.cancel()
                    await step
                else:
                    pool.close(grace=0)
                    await collect(it)

        expected = {"cancel": CancelledError, "exception": KeyError, ENDS[-1]: PoolClosed}.get(how)
        if expected is None:
            in_reactor(main)
        else:
            with pytest.raises(expected):
                in_reactor(main)
        while not finals or pool.stats().running or pool.stats().lingering:
            gevent.sleep(0)
        assert finals == began
        stats(pool)

    @pytest.mark.parametrize("how", ["aclose", "cancel", "timeout", "pool"])
    def test_during_a_step(
        self, pool: GreenPool, prefetch: int, how: str, in_reactor: Any, stats: Any
    ) -> None:
        """A step that runs is ended first; close() comes after it, on the same worker."""
        source = Source()
        source.blocks_at = 2
        order: list[str] = []

        @green_iterator(pool=pool, prefetch=prefetch, timeout=1.0 if how == "timeout" else None)
        def steps() -> Iterator[int]:
            try:
                yield from source
            except gevent.GreenletExit:
                order.append("killed")
                raise
            finally:
                source.close()
                order.append("closed")

        async def main() -> None:
            it = steps()
            await it.__anext__()
            await it.__anext__()
            step = ensureDeferred(it.__anext__())
            await green_deferred(source.blocked.wait)()
            if how == "aclose":
                await it.aclose()
                assert order == ["killed", "closed"]
                assert stats(pool).running == 0
            elif how == "cancel":
                step.cancel()
            elif how == "pool":
                await pool.close(grace=0)
            await step

        expected = {"timeout": CallTimeout, "pool": PoolClosed}.get(how, CancelledError)
        with pytest.raises(expected):
            in_reactor(main)
        assert source.ended.wait(10)
        while len(order) < 2:
            gevent.sleep(0)
        assert order == ["killed", "closed"]
        assert source.closed == 1

    def test_an_error_of_a_step_that_is_ended(self, pool: GreenPool, in_reactor: Any) -> None:
        blocked = Event()

        @green_iterator(pool=pool)
        def source() -> Iterator[int]:
            try:
                blocked.set()
                Event().wait()
                yield 1
            finally:
                raise OSError("cleanup")

        async def main() -> None:
            it = source()
            step = ensureDeferred(it.__anext__())
            step.addErrback(lambda failure: failure.trap(CancelledError) and None)
            await green_deferred(blocked.wait)()
            await it.aclose()

        with pytest.raises(OSError, match="cleanup"):
            in_reactor(main)

    def test_a_step_that_swallows_the_kill(
        self, pool: GreenPool, in_reactor: Any, logged: Any
    ) -> None:
        source = Source()
        source.blocks_at = 0
        kills: list[str] = []

        @green_iterator(pool=pool)
        def stubborn() -> Iterator[int]:
            try:
                while True:
                    try:
                        yield next(source)
                    except gevent.GreenletExit:
                        kills.append("swallowed")
            finally:
                source.close()

        async def main() -> None:
            it = stubborn()
            step = ensureDeferred(it.__anext__())
            step.addErrback(lambda failure: failure.trap(CancelledError) and None)
            await green_deferred(source.blocked.wait)()
            closing = it.aclose()
            await green_deferred(gevent.sleep)(0)
            assert not closing.called
            source.go.set()
            await closing
            assert await collect(it) == []

        in_reactor(main)
        assert kills == ["swallowed"]
        assert source.closed == 1

    def test_a_late_aclose_and_several(self, pool: GreenPool, in_reactor: Any) -> None:
        source = Source(5)

        async def main() -> None:
            it = over(source, pool)
            await it.__anext__()
            one, two = it.aclose(), it.aclose()
            await two
            assert one.called
            await it.aclose()
            unused = over(source, pool)
            await unused.aclose()
            assert await collect(unused) == []

        in_reactor(main)
        assert source.closed == 1
        assert pool.stats().submitted == 1

    def test_cancelling_aclose_does_not_stop_it(self, pool: GreenPool, in_reactor: Any) -> None:
        done = Event()

        @green_iterator(pool=pool)
        def source() -> Iterator[int]:
            try:
                yield 1
                yield 2
            finally:
                gevent.sleep(0.001)
                done.set()

        async def main() -> None:
            it = source()
            await it.__anext__()
            closing = it.aclose()
            closing.addErrback(lambda failure: failure.trap(CancelledError) and None)
            closing.cancel()
            await it.aclose()
            assert done.is_set()

        in_reactor(main)

    def test_both_the_iterator_and_what_was_returned_are_closed(
        self, pool: GreenPool, in_reactor: Any
    ) -> None:
        closed: list[str] = []

        class Result:
            def __iter__(self) -> Iterator[int]:
                try:
                    yield from range(10)
                finally:
                    closed.append("iterator")

            def close(self) -> None:
                closed.append("result")

        async def main() -> None:
            async with green_iterator(pool=pool)(Result)() as it:
                await it.__anext__()

        in_reactor(main)
        assert closed == ["iterator", "result"]

    @pytest.mark.parametrize("how", ["async with", "break", "cancel"])
    def test_a_thousand_paginators_that_stop_half_way(
        self, how: str, in_reactor: Any, stats: Any
    ) -> None:
        """Nothing is left open: no page, no slot, no greenlet, no wait."""
        pool = GreenPool(50)
        open_pages: set[object] = set()
        opened = 0

        @green_iterator(pool=pool, prefetch=3)
        def pages() -> Iterator[int]:
            nonlocal opened
            page = object()
            open_pages.add(page)
            opened += 1
            try:
                for n in range(100):
                    gevent.sleep(0)
                    yield n
            finally:
                gevent.sleep(0)
                open_pages.discard(page)

        async def consume() -> None:
            if how == "async with":
                async with pages() as it:
                    async for n in it:
                        if n == 10:
                            return
            elif how == "break":
                async for n in pages():
                    if n == 10:
                        return
            else:
                it = pages()
                while await it.__anext__() < 10:
                    pass
                while it._stream.items:
                    await it.__anext__()
                step = ensureDeferred(it.__anext__())
                step.cancel()
                with contextlib.suppress(CancelledError):
                    await step

        async def main() -> None:
            await gatherResults([ensureDeferred(consume()) for _ in range(1000)])

        in_reactor(main)
        while open_pages or pool.stats().running or pool.stats().lingering:
            gevent.sleep(0)
        assert opened == 1000
        s = stats(pool)
        assert (s.submitted, s.queued) == (1000, 0)
        assert pool._bound_to is not None
        assert not pool._bound_to.waits
        gc.collect()
        idle = pool._carrier.idle  # type: ignore[attr-defined]
        assert len(idle) == pool._carrier.workers  # type: ignore[attr-defined]
        iterators = [x for x in gc.get_objects() if isinstance(x, GreenIterator)]
        assert [x for x in iterators if "pages" in repr(x)] == []


class TestTimeouts:
    def test_the_time_of_the_consumer_is_not_counted(
        self, pool: GreenPool, prefetch: int, in_reactor: Any
    ) -> None:
        source = Source(3, pause=False)

        async def main() -> list[int]:
            got = []
            async for item in over(source, pool, prefetch=prefetch, timeout=0.5):
                got.append(item)
                await green_deferred(gevent.sleep)(0.2)
            return got

        assert in_reactor(main) == [0, 1, 2]

    @pytest.mark.parametrize("limit", ["total", "running"])
    def test_one_step_too_long(
        self, pool: GreenPool, prefetch: int, limit: str, in_reactor: Any
    ) -> None:
        source = Source()
        source.blocks_at = 2
        got: list[int] = []

        async def main() -> None:
            it = over(source, pool, prefetch=prefetch, timeout=Timeouts(**{limit: 0.5}))
            try:
                await collect_into(got, it)
            finally:
                assert await collect(it) == []
                assert source.closed == 1

        with pytest.raises(CallTimeout, match=r"0\.5"):
            in_reactor(main)
        assert got == [0, 1]

    def test_abandon(self, pool: GreenPool, in_reactor: Any) -> None:
        """The step finishes unheard, then the source is closed."""
        source = Source()
        source.blocks_at = 1

        async def main() -> None:
            options = Timeouts(total=0.5, on_expiry="abandon")
            it = over(source, pool, timeout=options)
            await it.__anext__()
            with pytest.raises(CallTimeout):
                await it.__anext__()
            assert source.closed == 0
            source.go.set()
            await it.aclose()
            assert (source.produced, source.closed) == (2, 1)

        in_reactor(main)

    @pytest.mark.parametrize("options", [Timeouts(queued=0.01), 0.01])
    def test_in_the_queue(self, options: Any, gate: Any, in_reactor: Any) -> None:
        pool = GreenPool(1)
        blocker = pool.submit(gate)
        source = Source()
        with pytest.raises(CallTimeout):
            in_reactor(collect, over(source, pool, timeout=options))
        assert (source.closed, pool.stats().queued) == (0, 0)
        gate.opened.set()
        wait_for_deferred(blocker)
        # The wait for a slot is no running time.
        assert in_reactor(collect, over(source, pool, timeout=Timeouts(running=20)))

    def test_the_queue_is_not_running_time(self, gate: Any, in_reactor: Any, reactor: Any) -> None:
        pool = GreenPool(1)
        blocker = pool.submit(gate)
        reactor.callFromThread(reactor.callLater, 0.7, gate.opened.set)
        it = over(Source(2, pause=False), pool, timeout=Timeouts(running=0.5))
        assert in_reactor(collect, it) == [0, 1]
        wait_for_deferred(blocker)


class TestThePool:
    def test_full(self, gate: Any, in_reactor: Any, prefetch: int) -> None:
        pool = GreenPool(1, max_queued=0)
        blocker = pool.submit(gate)
        source = Source()
        it = over(source, pool, prefetch=prefetch)
        with pytest.raises(PoolFull):
            in_reactor(collect, it)
        assert in_reactor(collect, it) == []
        in_reactor(it.aclose)
        gate.opened.set()
        wait_for_deferred(blocker)
        assert source.greenlets == set()

    def test_closed_before(self, in_reactor: Any, prefetch: int) -> None:
        pool = GreenPool(1)
        pool.close()
        with pytest.raises(PoolClosed):
            in_reactor(collect, over(Source(), pool, prefetch=prefetch))

    def test_closed_meanwhile_with_no_step_running(self, in_reactor: Any) -> None:
        """close() lets a running iteration go on; when its grace is over, that is closed."""
        pool = GreenPool(1)
        source = Source(10)

        async def main() -> None:
            it = over(source, pool)
            await it.__anext__()
            closed = pool.close()
            assert await it.__anext__() == 1
            await pool.close(grace=0)
            with pytest.raises(PoolClosed):
                await it.__anext__()
            await it.aclose()
            await closed

        in_reactor(main)
        assert source.ended.wait(10)
        assert source.closed == 1
        assert len(source.greenlets) == 1

    def test_asked_in_another_thread(self, in_reactor: Any) -> None:
        """It says so, and goes on where it belongs."""

        async def main() -> None:
            it = over(Source(3), GreenPool(1))
            assert await it.__anext__() == 0
            elsewhere = NativeThreadPool(1).submit(lambda: it.__anext__().send(None))
            with pytest.raises(GreendeferError, match="not the reactor's thread"):
                await elsewhere
            assert await collect(it) == [1, 2]

        in_reactor(main)

    def test_asked_as_the_reactor_stops(self, run_program: Any) -> None:
        """Once its pools are closed it says so, also if it has not heard of that itself."""
        run_program(
            """
            import greendefer, greendefer.shutdown
            greendefer.install()
            import gevent
            from twisted.internet import reactor
            from twisted.internet.defer import Deferred

            @greendefer.green_iterator
            def numbers():
                while True:
                    yield 1

            # Those that begin while the reactor stops go on until it does nothing more.
            greendefer.shutdown.set_shutdown_grace(0, 0)
            iterations = [numbers() for _ in range(30)]

            async def begin():
                for it in iterations:
                    await it.__anext__()
                d = greendefer.defer_to_greenlet(gevent.sleep, 3600)
                d.addErrback(ask)  # among the 30, as the pool is closed

            def ask(failure):
                failure.trap(greendefer.PoolClosed)
                for it in iterations:
                    d = Deferred.fromCoroutine(it.__anext__())
                    d.addErrback(lambda failure: ends.append(failure.type))

            ends = []
            reactor.addSystemEventTrigger(
                "before", "shutdown", lambda: Deferred.fromCoroutine(begin())
            )
            reactor.callLater(0, reactor.stop)
            reactor.run()
            assert ends == [greendefer.PoolClosed] * 30, ends
            """
        )

    def test_closed_while_it_waits_for_a_slot(self, gate: Any, in_reactor: Any) -> None:
        pool = GreenPool(1)
        blocker = pool.submit(gate)
        waiting = gevent.spawn(in_reactor, collect, over(Source(), pool))
        while not pool.stats().queued:
            gevent.sleep(0)
        closed = pool.close()
        with pytest.raises(PoolClosed):
            waiting.get()
        gate.opened.set()
        wait_for_deferred(blocker)
        wait_for_deferred(closed)

    def test_cancelled_while_it_waits_for_a_slot(
        self, gate: Any, in_reactor: Any, prefetch: int
    ) -> None:
        pool = GreenPool(1)
        blocker = pool.submit(gate)
        source = Source()

        async def main() -> None:
            it = over(source, pool, prefetch=prefetch)
            step = ensureDeferred(it.__anext__())
            assert pool.stats().queued == 1
            step.cancel()
            assert pool.stats().queued == 0
            with pytest.raises(CancelledError):
                await step

        in_reactor(main)
        gate.opened.set()
        wait_for_deferred(blocker)
        assert source.greenlets == set()

    def test_a_worker_that_somebody_entered(self, in_reactor: Any, prefetch: int) -> None:
        """Then it is stepped there, among the worker's other calls."""
        pool = GreenPool(1)
        source = Source(5)

        async def main() -> None:
            async with pool.worker() as w:
                mine = await w.submit(gevent.getcurrent)
                it = over(source, w, prefetch=prefetch)  # type: ignore[arg-type]
                assert await it.__anext__() == 0
                assert await w.submit(len, "xy") == 2
                assert await collect(it) == [1, 2, 3, 4]
                assert source.closed == 1
                another = Source()
                it = over(another, w, prefetch=prefetch)  # type: ignore[arg-type]
                await it.__anext__()
                await it.aclose()
                assert another.closed == 1
                left_open = Source()
                it = over(left_open, w, prefetch=prefetch)  # type: ignore[arg-type]
                await it.__anext__()
            assert left_open.closed == 1  # the worker closes it when it goes
            await it.aclose()
            assert source.greenlets | another.greenlets | left_open.greenlets == {mine}

        in_reactor(main)

    def test_a_pool_without_workers(self, in_reactor: Any) -> None:
        class NoWorkers(greendefer._admission.Pool):  # type: ignore[name-defined,misc]
            pass

        with pytest.raises(TypeError, match=r"no worker\(\)"):
            in_reactor(collect, over(Source(), NoWorkers()))


class TestBadInput:
    def test_options(self) -> None:
        for options, error in (
            ({"prefetch": -1}, ValueError),
            ({"prefetch": 1.0}, TypeError),
            ({"prefetch": None}, TypeError),
            ({"timeout": -1}, ValueError),
            ({"pool": 5}, TypeError),
        ):
            with pytest.raises(error):
                green_iterator(**options)
            with pytest.raises(error):
                with_options(green_iterator(range), **options)
        with pytest.raises(TypeError, match="no option 'on_cancel'"):
            with_options(green_iterator(range), on_cancel="kill")

    def test_async_and_uncallable(self) -> None:
        async def agen() -> AsyncIterator[int]:
            yield 1

        with pytest.raises(TypeError, match="async already"):
            green_iterator(agen)  # type: ignore[type-var,arg-type]
        with pytest.raises(TypeError, match="something to call"):
            green_iterator(5)  # type: ignore[call-overload]


# The reverse.


class Tracked:
    """What an async generator or context manager did, and where."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.parked: Deferred[Any] = Deferred()
        self.closed = Event()


class TestBlockingIterator:
    def test_a_plain_iterator(self) -> None:
        @blocking_from_greenlet
        async def count(n: int) -> AsyncIterator[int]:
            for i in range(n):
                yield await green_deferred(int)(i)

        assert list(count(3)) == [0, 1, 2]
        assert not inspect.isasyncgenfunction(count)
        it = count(2)
        assert isinstance(it, BlockingIterator)
        assert iter(it) is it
        assert next(it) == 0
        it.close()
        assert list(it) == []
        it.close()
        assert count.__name__ == "count"

    def test_methods_and_what_returns_an_async_iterator(self) -> None:
        class Client:
            @blocking_from_greenlet
            async def items(self) -> AsyncIterator[int]:
                yield 1

            @blocking_from_greenlet
            def green(self) -> GreenIterator[int]:
                return green_iterator(range)(3)

        assert list(Client().items()) == [1]
        assert list(Client().green()) == [0, 1, 2]

    def test_from_a_thread(self) -> None:
        @blocking_from_greenlet
        async def count() -> AsyncIterator[int]:
            for i in range(3):
                yield await green_deferred(int)(i)

        assert gevent.get_hub().threadpool.apply(lambda: list(count())) == [0, 1, 2]

    def tracked(self, t: Tracked, park: bool = False) -> Any:
        @blocking_from_greenlet(timeout=20)
        async def steps() -> AsyncIterator[int]:
            try:
                for i in range(10):
                    t.steps.append(f"step {i}")
                    yield i
                    if park:
                        await t.parked
            except CancelledError:
                t.steps.append("cancelled")
                raise
            finally:
                await succeed(None)
                await green_deferred(gevent.sleep)(0)
                t.steps.append("finally")
                t.closed.set()

        return steps()

    def test_close_and_with(self) -> None:
        t = Tracked()
        with self.tracked(t) as it:
            assert next(it) == 0
        assert t.steps == ["step 0", "finally"]
        t = Tracked()
        with contextlib.closing(self.tracked(t)) as it:
            pass
        assert t.steps == []

    def test_break(self) -> None:
        t = Tracked()
        for _ in self.tracked(t):
            break
        assert t.closed.wait(10)

    def test_errors(self) -> None:
        @blocking_from_greenlet
        async def fails(at: str) -> AsyncIterator[int]:
            try:
                yield 1
                if at == "step":
                    raise KeyError("step")
            finally:
                if at == "close":
                    raise OSError("close")

        it = fails("step")
        assert next(it) == 1
        with pytest.raises(KeyError, match="step"):
            next(it)
        assert list(it) == []
        it = fails("close")
        next(it)
        with pytest.raises(OSError, match="close"):
            it.close()
        it = fails("close")
        next(it)
        with pytest.raises(OSError, match="close"):
            next(it)

    def test_a_killed_greenlet_cancels_the_step(self) -> None:
        t = Tracked()

        def consume() -> None:
            for _ in self.tracked(t, park=True):
                pass

        g = gevent.spawn(consume)
        while not t.steps:
            gevent.sleep(0)
        gevent.sleep(0)
        g.kill()
        assert t.closed.wait(10)
        assert t.steps[0] == "step 0"
        assert t.steps[-1] == "finally"

    def test_timeout(self) -> None:
        t = Tracked()
        never: Deferred[None] = Deferred()

        @blocking_from_greenlet(timeout=0.5)
        async def slow() -> AsyncIterator[int]:
            try:
                yield 1
                await never
            finally:
                t.closed.set()

        it = slow()
        assert next(it) == 1
        with pytest.raises(CallTimeout):
            next(it)
        assert t.closed.wait(10)
        assert list(it) == []
        it.close()

    def test_closed_from_another_greenlet_during_a_step(self) -> None:
        t = Tracked()
        it = self.tracked(t, park=True)
        assert next(it) == 0
        waiting = gevent.spawn(next, it)
        gevent.sleep(0)
        with pytest.raises(ValueError, match="waiting"):
            next(it)
        closing = gevent.spawn(it.close)
        it.close()
        closing.get()
        with pytest.raises(CancelledError):
            waiting.get()
        assert t.steps == ["step 0", "cancelled", "finally"]

    def test_one_context(self) -> None:
        var = contextvars.ContextVar("var", default="unset")

        @blocking_from_greenlet
        async def steps() -> AsyncIterator[str]:
            token = var.set("generator")
            try:
                yield var.get()
                yield var.get()
            finally:
                var.reset(token)

        with steps() as it:
            assert next(it) == "generator"
            assert var.get() == "unset"
            assert next(it) == "generator"

    def test_in_the_reactors_greenlet(self, in_reactor: Any) -> None:
        @blocking_from_greenlet
        async def count() -> AsyncIterator[int]:
            yield 1

        with pytest.raises(WouldDeadlock):
            in_reactor(count)


class TestBlockingContext:
    @staticmethod
    def manager(t: Tracked, **options: Any) -> Callable[..., Any]:
        @blocking_from_greenlet(**options)
        @contextlib.asynccontextmanager
        async def manage(swallow: bool = False) -> AsyncIterator[str]:
            await green_deferred(gevent.sleep)(0)
            t.steps.append("enter")
            try:
                yield "value"
            except KeyError as e:
                t.steps.append(repr(e))
                if not swallow:
                    raise
            finally:
                await green_deferred(gevent.sleep)(0)
                t.steps.append("exit")

        return manage

    def test_a_with_block(self) -> None:
        t = Tracked()
        with self.manager(t)() as value:
            assert value == "value"
            t.steps.append("inside")
        assert t.steps == ["enter", "inside", "exit"]

    def test_exceptions(self) -> None:
        t = Tracked()
        with pytest.raises(KeyError), self.manager(t)():
            raise KeyError("k")
        assert t.steps == ["enter", "KeyError('k')", "exit"]
        with self.manager(t)(swallow=True):
            raise KeyError("swallowed")

    def test_a_class(self) -> None:
        class Connection:
            async def __aenter__(self) -> Connection:
                await green_deferred(gevent.sleep)(0)
                return self

            async def __aexit__(self, *exc: object) -> bool:
                return isinstance(exc[1], ValueError)

        connect = blocking_from_greenlet(Connection)
        with connect() as connection:
            assert isinstance(connection, Connection)
            raise ValueError
        with pytest.raises(KeyError), connect():
            raise KeyError

    def test_errors_of_its_own(self) -> None:
        @blocking_from_greenlet
        @contextlib.asynccontextmanager
        async def fails(where: str) -> AsyncIterator[None]:
            if where == "enter":
                raise OSError("enter")
            yield
            raise OSError("exit")

        with pytest.raises(OSError, match="enter"), fails("enter"):
            pass
        with pytest.raises(OSError, match="exit"), fails("exit"):
            pass

    def test_a_killed_greenlet(self) -> None:
        t = Tracked()

        def block() -> None:
            with self.manager(t)():
                Event().wait()

        g = gevent.spawn(block)
        while not t.steps:
            gevent.sleep(0)
        g.kill()
        assert t.steps == ["enter", "exit"]

    def test_killed_when_it_has_entered_but_nobody_heard(self) -> None:
        t = Tracked()
        entered: list[Any] = []

        @blocking_from_greenlet
        @contextlib.asynccontextmanager
        async def manage() -> AsyncIterator[None]:
            with contextlib.suppress(CancelledError):
                await t.parked  # an __aenter__ that a cancellation does not stop
            try:
                yield
            finally:
                t.closed.set()

        def block() -> None:
            with manage():
                entered.append(1)

        g = gevent.spawn(block)
        gevent.sleep(0)
        g.kill()
        assert t.closed.wait(10)
        assert entered == []

    def test_plain_values_stay(self) -> None:
        for value in 5, None, [1], (i for i in "ab"):
            assert blocking_from_greenlet(lambda value=value: value)() is value


def test_failures_of_a_source_are_not_reported_twice(in_reactor: Any) -> None:
    """A step's failure was heard where it was awaited: the log (see conftest) stays empty."""
    source = Source()
    source.fails_at = 2
    heard: list[Failure] = []

    async def main() -> None:
        await ensureDeferred(collect(over(source, GreenPool(1)))).addErrback(heard.append)

    in_reactor(main)
    gc.collect()
    assert heard[0].check(KeyError)


def test_mistakes_are_told_by_name(in_reactor: Any) -> None:
    pool = GreenPool(1)

    @green_iterator(pool=pool)
    def one() -> Any:
        return 1

    async def main() -> None:
        with pytest.raises(TypeError, match="use `async for`"):
            for _ in one():
                pass
        with pytest.raises(TypeError, match=r"one.* returned 1, which can't be iterated over"):
            async for _ in one():
                pass

    in_reactor(main)


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


def test_an_iterable_whose_own_code_raises_a_type_error(in_reactor: Callable[..., Any]) -> None:
    """It is not said to be none."""

    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise TypeError("of its own")

    async def main() -> None:
        async for _ in green_iterator(Broken)():
            pass

    with pytest.raises(TypeError, match="of its own"):
        in_reactor(lambda: Deferred.fromCoroutine(main()))


def test_whoever_iterates_over_a_method_does_not_ask_its_object(
    in_reactor: Callable[..., Any],
) -> None:
    """What it is called in messages is not for its ``repr()`` to say, which may take its time."""

    class Table:
        def __repr__(self) -> str:
            raise AssertionError("asked")

        @green_iterator
        def rows(self) -> Any:
            yield from (1, 2)

    assert in_reactor(lambda: collect(Table().rows())) == [1, 2]


def test_an_iterator_that_was_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    object.__new__(GreenIterator)
    assert unraisable == []


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
