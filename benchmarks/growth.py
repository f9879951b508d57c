"""What one more call costs, with 10 to 100,000 in flight: does anything grow with their number?

Those in flight sleep, and have a timeout each: so there are as many timers in gevent's loop, and as
many deadlines in greendefer. Every round is in a process of its own. Once with Python's garbage
collector, which looks at everything again whenever there is a quarter more of it; once without.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from statistics import median
from time import perf_counter
from typing import Any

from harness import Bench, Round, Side, middle, run

AT_ONCE, BATCHES = 10, 200
COSTS = {
    "start": "start it, until it sleeps",
    "call": "one more call",
    "timeout": "one more, with a timeout",
    "sleep": "one more, with a gevent timer",
    "reactor timer": "callLater and cancel",
    "end": "end it, until its Deferred fires",
}


def green(in_flight: int, collector: bool) -> Callable[[], Awaitable[Round]]:
    import gc

    import gevent
    from gevent.event import Event
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    import greendefer

    call_soon = reactor.callFromThread
    call_later = reactor.callLater
    pool = greendefer.GreenPool(in_flight + AT_ONCE)
    gate = Event()
    if not collector:
        gc.disable()

    async def each(call: Callable[[], Deferred[Any]]) -> float:
        """The cost of one, in microseconds: the median of a number of batches."""
        batches = []
        for _ in range(BATCHES):
            left = AT_ONCE
            done: Deferred[None] = Deferred()

            def fired(_: object, done: Deferred[None] = done) -> None:
                nonlocal left
                left -= 1
                if not left:
                    done.callback(None)

            began = perf_counter()
            for _ in range(AT_ONCE):
                call().addCallback(fired)
            await done
            batches.append((perf_counter() - began) / AT_ONCE * 1e6)
        return median(batches)

    async def round() -> Round:
        sleeping = ended = 0
        all_sleep: Deferred[None] = Deferred()
        all_ended: Deferred[None] = Deferred()

        def sleep() -> None:
            nonlocal sleeping
            sleeping += 1
            if sleeping == in_flight:
                call_soon(all_sleep.callback, None)
            gate.wait(3600)

        def fired(_: object) -> None:
            nonlocal ended
            ended += 1
            if ended == in_flight:
                all_ended.callback(None)

        await pool.submit(int)  # the first one of all takes longer
        call = greendefer.green_deferred(pool=pool, timeout=3600)(sleep)
        began = perf_counter()
        for _ in range(in_flight):
            call().addCallback(fired)
        await all_sleep
        costs = {"start": (perf_counter() - began) / in_flight * 1e6}

        costs["call"] = await each(greendefer.green_deferred(pool=pool)(int))
        costs["timeout"] = await each(greendefer.green_deferred(pool=pool, timeout=30)(int))
        tiny = greendefer.green_deferred(pool=pool)(lambda: gevent.sleep(1e-6))
        costs["sleep"] = await each(tiny)
        timers = [call_later(3600, int) for _ in range(in_flight)]
        batches = []
        for _ in range(BATCHES):
            began = perf_counter()
            for _ in range(AT_ONCE):
                call_later(30, int).cancel()
            batches.append((perf_counter() - began) / AT_ONCE * 1e6)
        costs["reactor timer"] = median(batches)
        for timer in timers:
            timer.cancel()

        began = perf_counter()
        gate.set()
        await all_ended
        costs["end"] = (perf_counter() - began) / in_flight * 1e6
        return costs

    return round


def main(bench: Bench) -> None:
    sizes = (10, 100) if bench.small else (10, 100, 1_000, 10_000, 100_000)
    bench.series["growth"] = {}
    for collector, how in ((True, ""), (False, ", no garbage collection")):
        sides = {
            n: Side(
                *(f"{n:,} in flight", "green", "green"),
                options={"in_flight": n, "collector": collector},
            )
            for n in sizes
        }
        samples = bench.measure(list(sides.values()), rounds=5, fresh=True)
        names = [side.name for side in sides.values()]
        base = names[min(2, len(names) - 1)]
        for cost, what in COSTS.items():
            for name in names:
                if name != base:
                    row = (f"{what}, {name}{how}", samples, name, base, cost, "us")
                    bench.row(*row, grows=True, cpu=False)
        bench.series["growth"]["on" if collector else "off"] = {
            cost: {str(n): middle(samples, side.name, cost) for n, side in sides.items()}
            for cost in COSTS
        }


if __name__ == "__main__":
    run(__file__, main)
