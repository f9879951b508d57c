"""The reactor's lateness with 10,000 calls in flight, of which 5,000 end in each second.

Each call sleeps for 1 to 3 seconds, and another one is made when it has ended.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from harness import Bench, Round, Side, run


def green(calls: int, settle: float, seconds: float) -> Callable[[], Awaitable[Round]]:
    import gevent
    from tickers import Ticker
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.task import deferLater

    import greendefer

    ended = 0
    goes_on = True
    pool = greendefer.GreenPool(calls or 1)

    @greendefer.green_deferred(pool=pool)
    def sleep() -> None:
        gevent.sleep(random.uniform(1, 3))

    def start() -> None:
        sleep().addCallbacks(again, lambda _: None)  # those that still run are killed in the end

    def again(_: None) -> None:
        nonlocal ended
        ended += 1
        if goes_on:
            start()

    async def round() -> Round:
        nonlocal goes_on, ended
        for _ in range(calls):
            start()
        await deferLater(reactor, settle)
        ended = 0
        ticker = Ticker(reactor.callLater)
        await deferLater(reactor, seconds)
        lateness = ticker.stop()
        per_second = ended / seconds
        goes_on = False
        closed: Deferred[None] = pool.close(grace=0)
        await closed
        return {**lateness, "calls a second": per_second}

    return round


def main(bench: Bench) -> None:
    time = {"settle": bench.size(4, 0), "seconds": bench.size(5, 3)}
    busy = {**time, "calls": bench.size(10_000, 100)}
    samples = bench.measure(
        [
            Side("greendefer", "green", "green", options=busy),
            Side("patched", "green", "green", True, options=busy),
            Side("nothing in flight", "green", "green", options={**time, "calls": 0}),
        ],
        rounds=5,
        fresh=True,
    )
    what = "lateness, p99, 10,000 calls in flight, 5,000 end in a second"
    unit = "ms"
    for side, target in (("greendefer", 5), ("patched", 5), ("nothing in flight", None)):
        late = [each["p99 ms"] for each in samples[side]]
        bench.value(f"{what}: {side}", late, unit, at_most=target)
    worst = [each["worst ms"] for each in samples["greendefer"]]
    bench.value("the same: the worst", worst, unit)
    rate = [each["calls a second"] for each in samples["greendefer"]]
    bench.value("the same: calls that ended", rate, "a second")


if __name__ == "__main__":
    run(__file__, main)
