"""Blocking code that waits for Twisted: for a Deferred that has fired, and for a later one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from harness import Bench, Round, Side, run


def source(later: bool) -> Callable[[], Any]:
    """What is waited for: a function that returns a Deferred."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred, succeed

    call_later = reactor.callLater

    def ready() -> Deferred[int]:
        return succeed(1)

    def next_turn() -> Deferred[int]:
        d: Deferred[int] = Deferred()
        call_later(0, d.callback, 1)
        return d

    return next_turn if later else ready


def loop(wait: Callable[[], Any], waits: int) -> Callable[[], Round]:
    """A round, in blocking code: one wait after the other."""

    def round() -> Round:
        began = perf_counter()
        for _ in range(waits):
            wait()
        return {"us": (perf_counter() - began) / waits * 1e6}

    return round


def green(later: bool, waits: int) -> Callable[[], Awaitable[Round]]:
    import greendefer

    wait = greendefer.blocking_from_greenlet(source(later))
    return greendefer.green_deferred(loop(wait, waits))


def green_function(later: bool, waits: int) -> Callable[[], Awaitable[Round]]:
    import greendefer

    f = source(later)
    return greendefer.green_deferred(loop(lambda: greendefer.wait_for_deferred(f()), waits))


def bare(later: bool, waits: int) -> Callable[[], Awaitable[Round]]:
    """The least that a greenlet can wait with: nobody can end the wait, and no failure passes."""
    from gevent import get_hub
    from gevent.hub import Waiter

    import greendefer

    f = source(later)
    hub = get_hub()

    def wait() -> Any:
        waiter: Waiter[Any] = Waiter(hub)
        f().addCallback(lambda result: hub.loop.run_callback(waiter.switch, result))
        return waiter.get()

    return greendefer.green_deferred(loop(wait, waits))


def turns(later: bool, waits: int) -> Callable[[], Awaitable[Round]]:
    """The turns of the reactor alone: nobody waits but it."""
    from twisted.internet.defer import Deferred

    f = source(later)

    def round() -> Deferred[Round]:
        done: Deferred[Round] = Deferred()
        began = perf_counter()
        left = waits

        def again(_: object) -> None:
            nonlocal left
            left -= 1
            if left:
                f().addCallback(again)
            else:
                done.callback({"us": (perf_counter() - began) / waits * 1e6})

        f().addCallback(again)
        return done

    return round


def twisted(later: bool, waits: int) -> Callable[[], Awaitable[Round]]:
    from twisted.internet import reactor
    from twisted.internet.threads import blockingCallFromThread, deferToThread

    f = source(later)
    round = loop(lambda: blockingCallFromThread(reactor, f), waits)
    return lambda: deferToThread(round)


def crochet(later: bool, waits: int) -> Callable[[], Round]:
    """Its reactor runs in a thread, and this is the main one."""
    from twisted.internet import epollreactor

    epollreactor.install()

    import crochet

    crochet.setup()
    return loop(crochet.wait_for(timeout=30)(source(later)), waits)


def main(bench: Bench) -> None:
    for later, what in ((False, "a Deferred that has fired"), (True, "one that fires later")):
        options = {"later": later, "waits": bench.size(1000, 10)}
        sides = [
            Side("greendefer", "green", "green", options=options),
            Side("wait_for_deferred", "green_function", "green", options=options),
            Side("blockingCallFromThread", "twisted", "epoll", options=options),
            Side("crochet", "crochet", options=options),
        ]
        if later:  # what of it is the reactor's turn, and the least that waiting can add
            sides += [
                Side("a bare Waiter", "bare", "green", options=options),
                Side("the reactor's turn alone", "turns", "epoll", options=options),
            ]
        samples = bench.measure(sides)
        for peer in ("blockingCallFromThread", "crochet"):
            bench.row(
                f"blocking_from_greenlet, {what}",
                *(samples, "greendefer", peer, "us", "us"),
                at_least=10,
            )
        peer = "blockingCallFromThread"
        bench.row(f"wait_for_deferred, {what}", samples, "wait_for_deferred", peer, "us", "us")
        for floor in [side.name for side in sides[4:]]:
            bench.row(f"{floor}, {what}", samples, floor, peer, "us", "us")


if __name__ == "__main__":
    run(__file__, main)
