"""How late each side gets under a load: ``fairness.py REACTOR LOAD [collected] [patched]``, in
milliseconds.

Two tickers, one in the reactor and one in a greenlet, tick every 5 ms. What counts is how late they
are, less the time that other processes had our core, and less that of Python's cyclic garbage
collector: with 100,000 calls in memory it stops everything for a tenth of a second or two at once.
It is off, or "collected": on. Then how late they are with its pauses is told, too.
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
from typing import Any

import gevent
from gevent import monkey
from gevent.event import Event
from schedstat import run_delay
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.task import deferLater

from greendefer import GreenPool, NativeThreadPool

reactor: Any = _reactor
EVERY = 0.005


def let_run() -> float:
    """A clock that stands still while this thread could run, and is not let."""
    return time.monotonic() - run_delay()


class Collector:
    """What Python's garbage collector takes."""

    def __init__(self) -> None:
        self.seconds = self.longest = self.began = 0.0
        gc.callbacks.append(self.note)

    def note(self, phase: str, info: Any) -> None:
        if phase == "start":
            self.began = let_run()
        else:
            pause = let_run() - self.began
            self.seconds += pause
            self.longest = max(self.longest, pause)


collector = Collector()


class Ticker:
    """How late somebody is at worst, who wants to run every 5 ms."""

    clocks: tuple[Callable[[], float], ...] = (let_run,)
    if sys.argv[2] == "storm":
        # Our thread waits for Python's lock there, and it is another one of this process, always
        # busy, that is not let run: what none of them was given is nobody's own either.
        clocks += (time.process_time,)

    def __init__(self) -> None:
        self.worst = self.worst_with_pauses = self.ran = 0.0
        self.ticks = 0
        self.arm(0)

    def arm(self, seconds: float) -> None:
        self.due, self.collected = [now() + seconds for now in self.clocks], collector.seconds
        self.has_run = time.thread_time()

    def look(self) -> None:
        """How late it is if this is its tick, or if it has still to wait for that."""
        late = min(now() - due for now, due in zip(self.clocks, self.due, strict=True))
        self.worst_with_pauses = max(self.worst_with_pauses, late)
        late -= collector.seconds - self.collected
        if late > self.worst:
            self.worst, self.ran = late, time.thread_time() - self.has_run

    def tick(self) -> None:
        self.look()
        self.ticks += 1
        self.arm(EVERY)


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


MANY = 100_000


@inlineCallbacks
def all_due_at(make: Callable[[float], Any], end: Callable[[], Any]) -> Generator[Any, Any, None]:
    """A hundred thousand of what `make(at)` makes a hundred of, in several turns. All have to be
    there when they are due, on however slow a machine: else once more, with more time for that."""
    seconds, are_in_time = 3.0, False
    while not are_in_time:
        at = time.monotonic() + seconds
        made = 0
        while made < MANY and time.monotonic() < at:
            make(at)
            made += 100
            yield deferLater(reactor, 0)
        are_in_time = made == MANY and time.monotonic() < at
        yield end()
        seconds *= 2


@inlineCallbacks
def until(is_so: Callable[[], bool]) -> Generator[Any, Any, None]:
    while not is_so():
        yield deferLater(reactor, 0.01)


def timeouts() -> Any:
    """100,000 calls whose time is over at once."""
    pool = GreenPool(1)
    hold = pool.submit(gevent.sleep, 3600).addErrback(lambda _: None)
    left = [0]

    def expired(failure: Any) -> None:
        failure.trap(greendefer.CallTimeout)
        left[0] -= 1

    def make(at: float) -> None:
        timeout = max(0.0, at - time.monotonic())
        wait = greendefer.green_deferred(pool=pool, timeout=timeout)(gevent.sleep)
        left[0] += 100
        for _ in range(100):
            wait(0).addErrback(expired)

    return all_due_at(make, lambda: until(lambda: not left[0])).addCallback(lambda _: hold.cancel())


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
    loop = gevent.get_hub().loop
    timers: list[Any] = []
    left = [0]

    def due() -> None:
        left[0] -= 1

    def make(at: float) -> None:
        left[0] += 100
        for _ in range(100):
            timers.append(loop.timer(max(0.001, at - time.monotonic())))
            timers[-1].start(due, update=True)

    def close(_: Any) -> None:
        for timer in timers:
            timer.close()
        del timers[:]

    return all_due_at(make, lambda: until(lambda: not left[0]).addCallback(close))


def sleepers() -> Any:
    """100,000 calls that sleep, all until the same time."""
    pool = GreenPool(MANY)

    def sleep(at: float) -> None:
        gevent.sleep(max(0.0, at - time.monotonic()))

    def make(at: float) -> None:
        for _ in range(100):
            pool.submit(sleep, at)

    return all_due_at(make, lambda: until(lambda: not pool.stats().running))


@inlineCallbacks
def idle_workers() -> Generator[Any, Any, None]:
    """100,000 greenlets of a pool that nobody needs any more, and which all go."""
    pool = GreenPool(MANY)
    events = [Event() for _ in range(MANY // 100)]
    for event in events:
        for _ in range(100):
            pool.submit(event.wait)
        yield deferLater(reactor, 0)
    carrier: Any = pool._carrier
    yield until(lambda: carrier.workers == MANY)
    for event in events:
        event.set()
        yield deferLater(reactor, 0)
    yield until(lambda: len(carrier.idle) == MANY)
    carrier._fewest_idle = MANY  # as it is when it is looked at, ten to twenty seconds later
    carrier._loop.run_callback(carrier._trim)
    yield until(lambda: not carrier.workers)


def storm() -> Any:
    """8 threads that have the reactor call something, all the time."""
    pool = NativeThreadPool(8)
    made, called = [0], [0]
    over = time.process_time() + 1  # what a busy machine gives us less of, it gives for longer

    def count() -> None:
        called[0] += 1

    def call() -> int:
        n = 0
        while time.process_time() < over:
            for _ in range(100):
                reactor.callFromThread(count)
            n += 100
        return n

    def ended(each: list[int]) -> Any:
        made[0] = sum(each)
        return until(lambda: called[0] >= made[0])

    def are_all_called(_: Any) -> None:
        assert called == made, (called, made)

    threads = gatherResults([pool.submit(call) for _ in range(8)])
    return threads.addCallback(ended).addCallback(are_all_called)


@inlineCallbacks
def main(load: str) -> Generator[Any, Any, None]:
    if "collected" not in sys.argv[3:]:
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
    # Both have run, whatever it took until the load was made; if one never does, this does not end.
    yield until(lambda: min(reactors.ticks, greenlets.ticks) > 5)
    print(
        json.dumps(
            {
                "reactor": round(1000 * reactors.worst),
                "greenlet": round(1000 * greenlets.worst),
                "ticks": [reactors.ticks, greenlets.ticks],
                "with_pauses": [
                    round(1000 * each.worst_with_pauses) for each in (reactors, greenlets)
                ],
                "longest_pause": round(1000 * collector.longest),
                # For how long our thread has run until the worst tick, since the one before that:
                # who was late for longer was held up by something else.
                "ran": [round(1000 * each.ran) for each in (reactors, greenlets)],
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
