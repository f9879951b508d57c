"""A program that ends with 1,000 calls in flight: ``ends.py REACTOR CARRIER HOW LAST [patched]``.

It prints what came of them, as JSON, and how long it took from being told to stop. LAST is what the
calls do: they block "for ever", have a short grace to run, and GRACE for what they do when killed;
or "until told", which they are as the reactor stops, and have GRACE to run.
"""

from __future__ import annotations

import sys

if sys.argv[-1] == "patched":
    from gevent import monkey

    monkey.patch_all()

import importlib
import json
import os
import signal
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import gevent
from gevent import monkey
from gevent.event import Event

CALLS = 1000
GRACE = 60
"""Seconds: more than twice of what any machine needs for the end of all calls."""
REACTORS = ("green-native", "green-asyncio", "stock-poll")
CARRIERS = ("greenlets", "workers", "threads", "processes")
HOW = ("stop", "SIGTERM", "SIGINT")

native_sleep = monkey.get_original("time", "sleep")
allocate_lock = monkey.get_original("_thread", "allocate_lock")


def block(begun: Any, ended: Any) -> None:
    """Block for ever; and, when killed, wait for a little, once for each side."""
    begun()
    try:
        gevent.sleep(3600)
    finally:
        gevent.sleep(0.01)
        wait_for_reactor()
        ended()


def block_natively(begun: Any) -> None:
    begun()
    native_sleep(3600)


def wait(begun: Any, told: Event) -> None:
    begun()
    told.wait()


def wait_natively(begun: Any, told: Any) -> None:
    begun()
    with told:
        pass


def wait_for_reactor() -> None:
    import greendefer

    @greendefer.blocking_from_greenlet
    def later() -> Any:
        from twisted.internet import reactor
        from twisted.internet.task import deferLater

        return deferLater(reactor, 0.01, int)

    assert later() == 0


class Program:
    def __init__(self, carrier: str, how: str, last: str) -> None:
        from twisted.internet import reactor
        from twisted.internet.defer import Deferred

        import greendefer

        self.reactor: Any = reactor
        self.pool: Any
        self.how = how
        self.are_told = last == "until told"
        self.told_to_stop = 0.0
        self.begun = self.ended = 0
        self.outcomes: Counter[str] = Counter()
        self.fired_late = 0
        self.never: Any = Deferred()  # kept: else Python finds the coroutine to be garbage
        self.to_begin = {"greenlets": 500, "workers": 100, "threads": 100, "processes": 2}[carrier]
        if carrier == "threads":
            self.pool = greendefer.NativeThreadPool(self.to_begin)
        elif carrier == "processes":
            self.pool = greendefer.ExecutorPool(executor, self.to_begin)
        else:
            self.pool = greendefer.GreenPool(self.to_begin)
        # On a reactor that is not green, and unpatched, these are native threads.
        self.is_native = carrier == "threads"

    def fired(self, result: Any) -> None:
        self.outcomes[getattr(result, "type", type(result)).__name__] += 1
        self.fired_late += not self.reactor.running

    def has_begun(self) -> None:
        self.begun += 1
        if self.begun == self.to_begin:
            self.reactor.callFromThread(self.end)

    def has_ended(self) -> None:
        self.ended += 1

    def end(self) -> None:
        self.told_to_stop = time.monotonic()
        if self.how == "stop":
            self.reactor.stop()
        else:
            os.kill(os.getpid(), getattr(signal, self.how))

    def when_it_stops(self, f: Any) -> None:
        """Calls that wait for a slot are refused by then."""
        self.reactor.addSystemEventTrigger("before", "shutdown", f)

    def greenlets(self) -> None:
        call: Any = partial(block, ended=self.has_ended)
        if self.are_told:
            told = Event()
            self.when_it_stops(told.set)
            call = partial(wait, told=told)
        for _ in range(CALLS):
            self.pool.submit(call, self.has_begun).addBoth(self.fired)

    def workers(self) -> None:
        from twisted.internet.defer import Deferred

        each = CALLS // self.to_begin

        async def work() -> None:
            async with self.pool.worker() as w:
                calls = [w.submit(block, self.has_begun, self.has_ended) for _ in range(each)]
                for call in calls:
                    call.addBoth(self.fired)
                await self.never

        for _ in range(self.to_begin):
            Deferred.fromCoroutine(work()).addErrback(lambda _: None)

    def threads(self) -> None:
        def begun() -> None:
            self.reactor.callFromThread(self.has_begun)

        call: Any = block_natively
        if self.are_told:
            told = allocate_lock()
            told.acquire()
            self.when_it_stops(told.release)
            call = partial(wait_natively, told=told)
        for _ in range(CALLS):
            self.pool.submit(call, begun).addBoth(self.fired)

    def processes(self) -> None:
        for _ in range(CALLS):
            self.pool.submit(gevent.sleep, 3600).addBoth(self.fired)
        # Nobody tells us when a process really starts: it did if it has answered before.
        self.reactor.callLater(0.2, self.end)


def executor() -> ProcessPoolExecutor:
    multiprocessing = importlib.import_module("multiprocessing")
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def main(kind: str, carrier: str, how: str, last: str) -> None:
    import greendefer
    from greendefer.shutdown import set_shutdown_grace

    if last == "until told":
        set_shutdown_grace(running=GRACE)
    else:
        set_shutdown_grace(running=0.1, ending=GRACE)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if kind.startswith("green-"):
        greendefer.install(kind.removeprefix("green-"))
    else:
        importlib.import_module(f"twisted.internet.{kind.removeprefix('stock-')}reactor").install()
    program = Program(carrier, how, last)
    reactor = program.reactor
    reactor.callWhenRunning(getattr(program, carrier))
    reactor.run()
    seconds = time.monotonic() - program.told_to_stop
    print(
        json.dumps(
            {
                "outcomes": program.outcomes,
                "fired_late": program.fired_late,
                "begun": program.begun,
                "ended": program.ended,
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:5])
