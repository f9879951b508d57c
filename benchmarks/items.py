"""An item of a blocking iterator: green_iterator, and next() in a thread for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from time import perf_counter
from typing import Any

from harness import Bench, Round, Side, run


def source(items: int) -> Iterator[int]:
    yield from range(items)


def green(items: int, prefetch: int) -> Callable[[], Awaitable[Round]]:
    import greendefer

    iterate = greendefer.green_iterator(prefetch=prefetch)(source)

    async def round() -> Round:
        began = perf_counter()
        n = 0
        async with iterate(items) as iterator:
            async for _ in iterator:
                n += 1
        assert n == items
        return {"us": (perf_counter() - began) / items * 1e6}

    return round


def threads(items: int) -> Callable[[], Awaitable[Round]]:
    from twisted.internet.threads import deferToThread

    async def round() -> Round:
        end: Any = object()
        began = perf_counter()
        n = 0
        iterator = source(items)
        while await deferToThread(next, iterator, end) is not end:
            n += 1
        assert n == items
        return {"us": (perf_counter() - began) / items * 1e6}

    return round


def main(bench: Bench) -> None:
    size = {"items": bench.size(2000, 20)}
    samples = bench.measure(
        [
            Side("green_iterator", "green", "green", options={**size, "prefetch": 0}),
            Side("prefetch=100", "green", "green", options={**size, "prefetch": 100}),
            Side("next() in deferToThread", "threads", "epoll", options=size),
        ]
    )
    theirs = "next() in deferToThread"
    what = "green_iterator, an item"
    bench.row(what, samples, "green_iterator", theirs, "us", "us", at_least=8)
    bench.row(f"{what}, prefetch=100", samples, "prefetch=100", theirs, "us", "us", at_least=20)


if __name__ == "__main__":
    run(__file__, main)
