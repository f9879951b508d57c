"""A call that does nothing: from the call to its fired Deferred, 10 and 1,000 at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from harness import Bench, Round, Side, middle, run


def noop() -> int:
    return 1


def batches(call: Callable[[], Any], at_once: int, calls: int) -> Callable[[], Awaitable[Round]]:
    """A round: batch after batch, each of so many Deferreds, until all of it have fired."""
    from twisted.internet.defer import Deferred

    async def round() -> Round:
        left = 0

        def fired(_: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.callback(None)

        began = perf_counter()
        for _ in range(calls // at_once):
            left = at_once
            done: Deferred[None] = Deferred()
            for _ in range(at_once):
                call().addCallback(fired)
            await done
        return {"us": (perf_counter() - began) / calls * 1e6}

    return round


def green(at_once: int, calls: int, timeout: float | None = None) -> Any:
    import greendefer

    pool = greendefer.GreenPool(at_once)
    call = greendefer.green_deferred(pool=pool, timeout=timeout)(noop)
    return batches(call, at_once, calls)


def raw(at_once: int, calls: int) -> Any:
    """The least that a call can be made of without worker greenlets: the floor."""
    import gevent
    from greenlet import greenlet
    from twisted.internet.defer import Deferred

    hub = gevent.get_hub()
    run_callback = hub.loop.run_callback

    def call() -> Deferred[int]:
        d: Deferred[int] = Deferred()
        run_callback(greenlet(lambda: d.callback(noop()), hub).switch)
        return d

    return batches(call, at_once, calls)


def threads(at_once: int, calls: int) -> Any:
    from twisted.internet import reactor
    from twisted.internet.threads import deferToThread

    reactor.suggestThreadPoolSize(at_once)
    return batches(lambda: deferToThread(noop), at_once, calls)


def spawn(at_once: int, calls: int) -> Any:
    """What one would write by hand: gevent.spawn, link, and a Deferred."""
    import gevent
    from twisted.internet.defer import Deferred

    def call() -> Deferred[int]:
        d: Deferred[int] = Deferred()
        gevent.spawn(noop).link_value(lambda g: d.callback(g.value))
        return d

    return batches(call, at_once, calls)


def tasks(call: Callable[[], Any], at_once: int, calls: int) -> Callable[[], Awaitable[Round]]:
    """The same round for what returns coroutines."""
    import asyncio

    async def round() -> Round:
        began = perf_counter()
        for _ in range(calls // at_once):
            await asyncio.gather(*(call() for _ in range(at_once)))
        return {"us": (perf_counter() - began) / calls * 1e6}

    return round


def asgiref(at_once: int, calls: int) -> Any:
    from concurrent.futures import ThreadPoolExecutor

    from asgiref.sync import sync_to_async

    call = sync_to_async(noop, thread_sensitive=False, executor=ThreadPoolExecutor(at_once))
    return tasks(call, at_once, calls)


def anyio(at_once: int, calls: int) -> Any:
    from anyio import CapacityLimiter, to_thread

    limiter: list[CapacityLimiter] = []

    async def call() -> int:
        if not limiter:  # it can only be made where a loop runs
            limiter.append(CapacityLimiter(at_once))
        return await to_thread.run_sync(noop, limiter=limiter[0])

    return tasks(call, at_once, calls)


def asyncio_gevent(at_once: int, calls: int) -> Any:
    """Its loop is asyncio's, on a selector that waits in gevent's hub."""
    import asyncio

    import asyncio_gevent

    asyncio.set_event_loop_policy(asyncio_gevent.EventLoopPolicy())
    round = tasks(asyncio_gevent.sync_to_async(noop), at_once, calls)
    loop = asyncio.new_event_loop()
    return lambda: loop.run_until_complete(round())


def main(bench: Bench) -> None:
    bench.series["calls"] = {}
    for at_once, calls, at_least in ((10, 2000, 10), (1000, 4000, 12)):
        size = {"at_once": at_once, "calls": bench.size(calls, at_once)}
        samples = bench.measure(
            [
                Side("greendefer", "green", "green", options=size),
                Side("with a timeout", "green", "green", options={**size, "timeout": 30}),
                Side("a raw greenlet", "raw", "green", options=size),
                Side("gevent.spawn", "spawn", "green", options=size),
                Side("deferToThread", "threads", "epoll", options=size),
                Side("asgiref", "asgiref", "asyncio", options=size),
                Side("anyio", "anyio", "asyncio", options=size),
                Side("asyncio-gevent", "asyncio_gevent", patched=True, options=size),
            ]
        )
        what = f"a call, {at_once:,} at once"
        bench.row(what, samples, "greendefer", "deferToThread", "us", "us", at_least=at_least)
        bench.row(what, samples, "greendefer", "a raw greenlet", "us", "us", at_most=0.7)
        bench.row(
            f"the same with a timeout, {at_once:,} at once",
            *(samples, "with a timeout", "a raw greenlet", "us", "us"),
            at_most=1.0,
        )
        for peer in ("gevent.spawn", "asgiref", "anyio", "asyncio-gevent"):
            bench.row(what, samples, "greendefer", peer, "us", "us")
        bench.series["calls"][at_once] = {side: middle(samples, side, "us") for side in samples}


if __name__ == "__main__":
    run(__file__, main)
