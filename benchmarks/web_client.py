"""requests.get of a page of 50 ms, 1,000 at once: the time of all, and the reactor's lateness.

Against the same in threads, and against treq, which is native Twisted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from harness import Bench, Round, Side, middle, run
from slow_server import SlowServer


def all_pages(
    fetch: Callable[[str], Any], url: str, at_once: int, pages: int
) -> Callable[[], Awaitable[Round]]:
    """A round: so many pages, and never more than so many at once."""
    from at_once import make_calls
    from twisted.internet import reactor

    def call(*ends: Callable[[Any], None]) -> None:
        fetch(url).addCallbacks(*ends)

    async def round() -> Round:
        is_right = "slow, but worth it\n".__eq__
        seconds, lateness = await make_calls(call, is_right, reactor, at_once, pages)
        return {"s": seconds, **lateness}

    return round


def get(url: str) -> str:
    import requests

    return requests.get(url).text


def green(url: str, at_once: int, pages: int) -> Callable[[], Awaitable[Round]]:
    import greendefer

    fetch = greendefer.green_deferred(pool=greendefer.GreenPool(at_once))(get)
    return all_pages(fetch, url, at_once, pages)


def threads(url: str, at_once: int, pages: int) -> Callable[[], Awaitable[Round]]:
    from twisted.internet import reactor
    from twisted.internet.threads import deferToThread

    reactor.suggestThreadPoolSize(at_once)
    return all_pages(lambda url: deferToThread(get, url), url, at_once, pages)


def native(url: str, at_once: int, pages: int) -> Callable[[], Awaitable[Round]]:
    import treq

    return all_pages(lambda url: treq.get(url).addCallback(treq.text_content), url, at_once, pages)


def main(bench: Bench) -> None:
    with SlowServer(0.05) as server:
        options = {
            "url": server.url,
            "at_once": bench.size(1000, 20),
            "pages": bench.size(3000, 40),
        }
        samples = bench.measure(
            [
                Side("greendefer", "green", "green", True, options),
                Side("deferToThread", "threads", "epoll", options=options),
                Side("treq", "native", "epoll", options=options),
            ],
            rounds=9,
            warm_up=1,
        )
    ours = "greendefer"
    what = "3,000 requests of 50 ms, 1,000 at once"
    lateness = "the same: the reactor's worst lateness"
    for peer, faster, more_in_time in (("deferToThread", 1.3, 20), ("treq", None, 8)):
        if faster is not None:
            bench.row(what, samples, ours, peer, "s", "s", at_least=faster)
        else:
            bench.row(what, samples, ours, peer, "s", "s", at_most=1.1)
        bench.row(lateness, samples, ours, peer, "worst ms", "ms", at_least=more_in_time, cpu=False)
    bench.series["web_client"] = {
        side: {cost: middle(samples, side, cost) for cost in ("s", "worst ms", "p99 ms")}
        for side in samples
    }


if __name__ == "__main__":
    run(__file__, main)
