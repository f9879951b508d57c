"""A program that ends with 1,000 calls in flight: ``ends.py REACTOR CARRIER HOW LAST [patched]``.

It prints what came of them, as JSON, and when it was told to stop, by a clock which all processes
share. LAST is what the calls do: they block "for ever", have a short grace to run, and GRACE for
what they do when killed; or "until told", which they are as the reactor stops, and have GRACE to
run; or they "will not end", whatever they are told, and have SHORT to run, and SHORT to end.
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
GRACE = 30
"""Seconds: far more than any machine needs for the end of all calls, and of the process."""
SHORT = 0.25
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


def will_not_end(begun: Any, ended: Any) -> None:
    begun()
    while True:
        try:
            gevent.sleep(3600)
        except BaseException:
            ended()  # it has been told to


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
    def __init__(self, kind: str, carrier: str, how: str, last: str) -> None:
        from twisted.internet import reactor
        from twisted.internet.defer import Deferred

        import greendefer

        self.reactor: Any = reactor
        self.pool: Any
        self.how = how
        self.are_told = last == "until told"
        self.block = will_not_end if last == "will not end" else block
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
        # On a reactor that is not green, and unpatched, all are native threads.
        is_green = kind.startswith("green-") or monkey.is_module_patched("socket")
        self.is_native = carrier == "threads" or not is_green

    def fired(self, result: Any) -> None:
        self.outcomes[getattr(result, "type", type(result)).__name__] += 1
        self.fired_late += not self.reactor.running

    def has_begun(self) -> None:
        self.begun += 1
        if self.begun == self.to_begin:
            self.reactor.callFromThread(self.end)

    def has_begun_natively(self) -> None:
        self.reactor.callFromThread(self.has_begun)

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
        if self.is_native:
            self.threads()
            return
        call: Any = partial(self.block, ended=self.has_ended)
        if self.are_told:
            told = Event()
            self.when_it_stops(told.set)
            call = partial(wait, told=told)
        for _ in range(CALLS):
            self.pool.submit(call, self.has_begun).addBoth(self.fired)

    def workers(self) -> None:
        from twisted.internet.defer import Deferred

        each = CALLS // self.to_begin
        call: Any = partial(self.block, self.has_begun, self.has_ended)
        if self.is_native:
            call = partial(block_natively, self.has_begun_natively)

        async def work() -> None:
            async with self.pool.worker() as w:
                for submitted in [w.submit(call) for _ in range(each)]:
                    submitted.addBoth(self.fired)
                await self.never

        for _ in range(self.to_begin):
            Deferred.fromCoroutine(work()).addErrback(lambda _: None)

    def threads(self) -> None:
        call: Any = block_natively
        if self.are_told:
            told = allocate_lock()
            told.acquire()
            self.when_it_stops(told.release)
            call = partial(wait_natively, told=told)
        for _ in range(CALLS):
            self.pool.submit(call, self.has_begun_natively).addBoth(self.fired)

    def processes(self) -> None:
        def answered(_: Any) -> None:
            # Nobody tells us when a process begins with one: one that has answered is there.
            for _ in range(CALLS):
                self.pool.submit(gevent.sleep, 3600).addBoth(self.fired)
            self.reactor.callLater(0.1, self.end)

        self.pool.submit(os.getpid).addCallback(answered)


def executor() -> ProcessPoolExecutor:
    multiprocessing = importlib.import_module("multiprocessing")
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def main(kind: str, carrier: str, how: str, last: str) -> None:
    import greendefer
    from greendefer.shutdown import set_shutdown_grace

    if last == "until told":
        set_shutdown_grace(running=GRACE)
    elif last == "will not end":
        set_shutdown_grace(running=SHORT, ending=SHORT)
    else:
        set_shutdown_grace(running=0.1, ending=GRACE)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if kind.startswith("green-"):
        greendefer.install(kind.removeprefix("green-"))
    else:
        importlib.import_module(f"twisted.internet.{kind.removeprefix('stock-')}reactor").install()
    program = Program(kind, carrier, how, last)
    reactor = program.reactor
    reactor.callWhenRunning(getattr(program, carrier))
    reactor.run()
    print(
        json.dumps(
            {
                "outcomes": program.outcomes,
                "fired_late": program.fired_late,
                "begun": program.begun,
                "ended": program.ended,
                "told": program.told_to_stop,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:5])
