"""How late each side gets under a load: ``fairness.py REACTOR LOAD [patched]``, in milliseconds.

Two tickers, one in the reactor and one in a greenlet, tick every 5 ms. What counts is how late they
are, less the time that other processes had our core.
"""

from __future__ import annotations

import sys

if sys.argv[-1] == "patched":
    from gevent import monkey

    monkey.patch_all()

import greendefer

greendefer.install(sys.argv[1])

import gc
import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import gevent
from gevent import monkey
from gevent.event import Event
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.task import deferLater

from greendefer import GreenPool, NativeThreadPool

reactor: Any = _reactor
EVERY = 0.005


def run_delay() -> float:
    """Seconds that this thread could have run, and was not let."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


class Ticker:
    """How late somebody is at worst, who wants to run every 5 ms."""

    def __init__(self) -> None:
        self.worst = 0.0
        self.ticks = 0
        self.due = time.monotonic()
        self.delayed = run_delay()

    def look(self) -> None:
        """How late it is if this is its tick, or if it has still to wait for that."""
        now, delayed = time.monotonic(), run_delay()
        self.worst = max(self.worst, now - self.due - (delayed - self.delayed))

    def tick(self) -> None:
        self.look()
        self.ticks += 1
        self.due, self.delayed = time.monotonic() + EVERY, run_delay()


def tick_in_reactor(ticker: Ticker) -> None:
    ticker.tick()
    reactor.callLater(EVERY, tick_in_reactor, ticker)


def tick_in_greenlet(ticker: Ticker) -> None:
    while True:
        ticker.tick()
        gevent.sleep(EVERY)


# The loads: each returns a Deferred for its end.


def ready_at_once() -> Any:
    """10,000 calls that wait for one event."""
    pool = GreenPool(10_000)
    event = Event()
    calls = [pool.submit(event.wait) for _ in range(10_000)]
    reactor.callLater(0.5, event.set)
    return gatherResults(calls)


def giving_way() -> Any:
    """50 calls and 50 greenlets that give way all the time, and nothing else."""
    pool = GreenPool(50)
    until = time.monotonic() + 1

    def spin() -> None:
        while time.monotonic() < until:
            gevent.sleep(0)

    others = [gevent.spawn(spin) for _ in range(50)]
    calls = [pool.submit(spin) for _ in range(50)]
    return gatherResults([*calls, *map(greendefer.wait_for_greenlet, others)])


def timeouts() -> Any:
    """100,000 calls whose time is over at once."""
    pool = GreenPool(1)
    left = [100_000]
    at = time.monotonic() + 5

    def expired(failure: Any) -> None:
        failure.trap(greendefer.CallTimeout)
        left[0] -= 1

    calls: list[Any] = []

    @inlineCallbacks  # type: ignore[arg-type]
    def make() -> Generator[Any, Any, Any]:
        hold = pool.submit(gevent.sleep, 3600)
        while len(calls) < 100_000:
            wait = greendefer.green_deferred(pool=pool, timeout=max(0.0, at - time.monotonic()))(
                gevent.sleep
            )
            calls.extend(wait(0).addErrback(expired) for _ in range(100))
            yield deferLater(reactor, 0)
        while left[0]:
            yield deferLater(reactor, 0.01)
        hold.addErrback(lambda _: None).cancel()

    return make()


def later_calls() -> Any:
    """100,000 of the reactor's own timers, due at once: Twisted calls all of them in one turn."""
    done: Deferred[None] = Deferred()
    left = [100_000]

    def due() -> None:
        left[0] -= 1
        if not left[0]:
            done.callback(None)

    at = reactor.seconds() + 2  # none of them is due before all are made
    for _ in range(left[0]):
        reactor.callLater(max(0.0, at - reactor.seconds()), due)
    return done.addCallback(lambda _: deferLater(reactor, 0.5))


def hub_timers() -> Any:
    """100,000 of gevent's timers, due at once: its loops call all of them in one round."""
    done: Deferred[None] = Deferred()
    loop = gevent.get_hub().loop
    timers: list[Any] = []
    left = [100_000]
    at = time.monotonic() + 8

    def due() -> None:
        left[0] -= 1
        if not left[0]:
            done.callback(None)

    @inlineCallbacks  # type: ignore[arg-type]
    def make() -> Generator[Any, Any, Any]:
        while len(timers) < 100_000:
            for _ in range(100):
                timers.append(loop.timer(max(0.001, at - time.monotonic())))
                timers[-1].start(due, update=True)
            yield deferLater(reactor, 0)
        yield done
        yield deferLater(reactor, 0.1)
        for timer in timers:
            timer.close()

    return make()


def sleepers() -> Any:
    """100,000 calls that sleep, all until the same time."""
    pool = GreenPool(100_000)
    at = time.monotonic() + 8
    calls: list[Any] = []

    def sleep() -> None:
        gevent.sleep(max(0.0, at - time.monotonic()))

    @inlineCallbacks  # type: ignore[arg-type]
    def make() -> Generator[Any, Any, Any]:
        while len(calls) < 100_000:
            calls.extend(pool.submit(sleep) for _ in range(100))
            yield deferLater(reactor, 0)
        while pool.stats().running:
            yield deferLater(reactor, 0.01)

    return make()


def storm() -> Any:
    """8 threads that have the reactor call something, all the time."""
    pool = NativeThreadPool(8)
    called = [0]

    def count() -> None:
        called[0] += 1

    pause: Callable[[float], None] = monkey.get_original("time", "sleep")

    def call() -> None:
        for n in range(10_000):
            reactor.callFromThread(count)
            if n % 100 == 0:
                pause(0.001)

    ended = gatherResults([pool.submit(call) for _ in range(8)])

    def all_called(_: Any) -> Any:
        return deferLater(reactor, 0.1).addCallback(lambda _: called[0] == 80_000 or 1 / 0)

    return ended.addCallback(all_called)


LOADS = (ready_at_once, giving_way, timeouts, later_calls, hub_timers, sleepers, storm)


@inlineCallbacks  # type: ignore[arg-type]
def main(load: str) -> Generator[Any, Any, None]:
    # With 100,000 calls in memory a collection of Python's takes a fifth of a second by itself.
    gc.disable()
    reactors, greenlets = Ticker(), Ticker()
    began = globals()[load]()
    reactors.__init__()  # type: ignore[misc]  # what it took to make the load is not the load
    tick_in_reactor(reactors)
    greenlets.__init__()  # type: ignore[misc]
    gevent.spawn(tick_in_greenlet, greenlets)
    yield began
    # Who was starved to the very end has not ticked since.
    reactors.look()
    greenlets.look()
    print(
        json.dumps(
            {
                "reactor": round(1000 * reactors.worst),
                "greenlet": round(1000 * greenlets.worst),
                "ticks": [reactors.ticks, greenlets.ticks],
            }
        )
    )
    reactor.stop()


if __name__ == "__main__":
    reactor.callWhenRunning(
        lambda: main(sys.argv[2]).addErrback(
            lambda failure: (failure.printTraceback(), reactor.stop())
        )
    )
    reactor.run()
