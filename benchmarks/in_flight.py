"""50,000 calls in flight, each blocked: what they take of memory and of time.

Every round is in a process of its own, so all workers are new; the second time round they are not.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from harness import Bench, Round, Side, run


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def blocked(
    start: Callable[[Callable[[], None], Callable[[], None]], None], calls: int
) -> Callable[[], Awaitable[Round]]:
    """A round: start so many, until each of them is blocked; release them, until all have ended.

    :param start: starts one, and sees to it that its second argument is called when it has ended.
    """
    from gevent.event import Event
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    call_soon = reactor.callFromThread

    async def batch() -> tuple[float, int]:
        gate = Event()
        waiting = left = 0
        all_wait: Deferred[None] = Deferred()
        all_done: Deferred[None] = Deferred()

        def body() -> None:
            nonlocal waiting
            waiting += 1
            if waiting == calls:
                call_soon(all_wait.callback, None)
            gate.wait()

        def ended() -> None:
            nonlocal left
            left -= 1
            if not left:
                call_soon(all_done.callback, None)

        gc.collect()
        before = resident()
        left = calls
        began = perf_counter()
        for _ in range(calls):
            start(body, ended)
        await all_wait
        seconds = perf_counter() - began
        memory = resident() - before
        began = perf_counter()
        gate.set()
        await all_done
        return seconds + perf_counter() - began, memory

    async def round() -> Round:
        new, memory = await batch()
        again, _ = await batch()
        return {
            "us": new / calls * 1e6,
            "us again": again / calls * 1e6,
            "KB": memory / calls / 1e3,
        }

    return round


def green(calls: int, collector: bool = True) -> Callable[[], Awaitable[Round]]:
    import greendefer

    if not collector:
        gc.disable()

    pool = greendefer.GreenPool(calls)

    def start(body: Callable[[], None], ended: Callable[[], None]) -> None:
        pool.submit(body).addCallback(lambda _: ended())

    return blocked(start, calls)


def spawn(calls: int) -> Callable[[], Awaitable[Round]]:
    import gevent

    def start(body: Callable[[], None], ended: Callable[[], None]) -> None:
        def run() -> None:
            body()
            ended()

        gevent.spawn(run)

    return blocked(start, calls)


def main(bench: Bench) -> None:
    many: dict[str, Any] = {"calls": bench.size(50_000, 500)}
    few: dict[str, Any] = {"calls": bench.size(1_000, 100)}
    samples = bench.measure(
        [
            Side("greendefer", "green", "green", options=many),
            Side("gevent.spawn", "spawn", "green", options=many),
            Side("greendefer, 1,000 calls", "green", "green", options=few),
            Side("no garbage collection", "green", "green", options={**many, "collector": False}),
            Side("gevent.spawn, 1,000 calls", "spawn", "green", options=few),
        ],
        rounds=7,
        fresh=True,
    )
    what = "50,000 calls in flight"
    ours, theirs = "greendefer", "gevent.spawn"
    compare = {"at_most": 1.3, "cpu": False}
    bench.row(f"{what}: memory", samples, ours, theirs, "KB", "KB", **compare)
    bench.value(f"{what}: memory of each", [r["KB"] for r in samples[ours]], "KB", at_most=12)
    fewer = f"{ours}, 1,000 calls"
    bench.row(f"{what}: cost of each", samples, ours, fewer, "us", "us", **compare)
    bench.row(
        f"{what}: cost of each, workers reused", samples, ours, fewer, "us again", "us", **compare
    )
    what_else = f"{what}: cost of each, no garbage collection"
    bench.row(what_else, samples, "no garbage collection", fewer, "us", "us", **compare)
    bench.row(f"{what}: cost of each", samples, ours, theirs, "us", "us", cpu=False)
    theirs_fewer = f"{theirs}, 1,000 calls"
    what = "gevent.spawn, 50,000 in flight: cost of each"
    bench.row(what, samples, theirs, theirs_fewer, "us", "us", grows=True, cpu=False)


if __name__ == "__main__":
    run(__file__, main)
