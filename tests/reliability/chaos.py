"""Calls of all kinds, treated badly by everybody: ``chaos.py CALLS [patched] [SEED]``.

The calls go over real sockets to ``hostile.py``; they are cancelled, timed out and killed at
random, their pools are resized, they raise whatever can be raised, wait for Twisted and are waited
for, and spawn processes on both sides. At the end every call must be accounted for, and nothing
may be left: it prints its figures as JSON, what is wrong among them, and exits with 1 if anything
is.
"""

from __future__ import annotations

import sys

if "patched" in sys.argv and __name__ == "__main__":  # not in the processes of the pools
    from gevent import monkey

    monkey.patch_all()

import greendefer

greendefer.install()

import ctypes
import errno
import gc
import json
import linecache
import multiprocessing
import multiprocessing.util
import os
import random
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import gevent
import gevent.os
import gevent.socket
import gevent.subprocess
from chaos_calls import (
    HalfAnswer,
    Unsendable,
    by_chaos,
    converse,
    dies,
    exits,
    fails,
    fails_oddly,
    fetches,
    returns_what_cannot_be_sent,
    sleeps,
)
from gevent import monkey
from gevent.hub import Hub
from greenlet import GreenletExit, greenlet
from schedstat import run_delay
from twisted.internet import error, protocol
from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.task import deferLater
from twisted.python import log
from twisted.python.failure import Failure

from greendefer import (
    CallTimeout,
    ExecutorFailed,
    ExecutorPool,
    GreendeferError,
    GreenPool,
    NativeThreadPool,
    PoolFull,
    Timeouts,
)
from greendefer._carriers import greenlets as green_carrier
from greendefer._carriers import native
from greendefer._carriers import threads as thread_carrier
from greendefer.instrumentation import warn_of_holdups

sys.path.append(str(Path(__file__).parents[1]))

from programs import MISSES_ENDS, PATCHED

# gevent says so of each sleep of its caller's, and some of ours here are.
warnings.filterwarnings("ignore", "libuv only supports millisecond timer resolution")

reactor: Any = _reactor
native_socket = monkey.get_original("socket", "create_connection")
subprocess: Any = gevent.subprocess
fork_and_watch = subprocess.fork_and_watch
spawnv_passfds = multiprocessing.util.spawnv_passfds  # type: ignore[attr-defined]

AT_ONCE = 300
EVERY = 500  # calls, between two children of each side
DIES_EVERY = 20_000  # calls, between two worker processes that die
LATEST = 0.25
"""Seconds that the reactor may be late by, of our own making."""
TICK = 0.01
MOST_GROWN = {"blocks": 2000, "objects": 500, "bytes of malloc": 2**19}
"""However many calls there were: one thing kept per 500 calls is found by 1,000,000 of them. What
comes and goes, by the chance of when it is counted, is a third of this at most."""
PER_LOST_EXIT = {"blocks": 30, "objects": 12, "bytes of malloc": 0}
"""What multiprocessing keeps for one, beside two descriptors: see lost_exits()."""
PER_CALL, SWAY = 4.0, 4 * 2**20
"""Bytes by which resident memory may grow with each call, and sway by in a run: fragments of it.
(It was 6.6 where a million calls had left 77 blocks and 9 kB of malloc() behind.)"""


class Odd(BaseException):
    """Not even an Exception."""


class Unprintable(Exception):
    """Neither its ``str()`` nor its ``repr()`` can be had."""

    def __str__(self) -> str:
        raise ValueError("no")

    __repr__ = __str__


def closed(timeout: gevent.Timeout) -> gevent.Timeout:
    """One that was never started has a timer, too. On libuv, a timer that is garbage before it is
    closed has others written to where it was: gevent's rule, and its issue 1805."""
    timeout.close()
    return timeout


RAISED: tuple[Callable[[], BaseException], ...] = (
    lambda: ValueError("as usual"),
    lambda: KeyError("in a chain"),
    lambda: SystemExit(3),
    KeyboardInterrupt,
    GreenletExit,
    lambda: Odd("odd"),
    Unprintable,
    StopIteration,
    lambda: closed(gevent.Timeout(1)),
    CancelledError,
    lambda: OSError(24, "too many open files, it says"),
)
IN_A_PROCESS = (fetches, fails, exits, fails_oddly, returns_what_cannot_be_sent, sleeps)


BADLY_SERVED = {"fetch", "fetch_by_twisted", "nest", "several_on_one_worker"} | (
    {"fetch_in_executor"} if PATCHED else set()  # else it asks for nothing but an answer
)
"""Where the server does what it does. All the others have nothing but answers."""


class Stalled(gevent.Timeout):
    """The one by which a call gives the server up."""


class Made:
    """One call: what was done to it, and so what it may fail with."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.has_limit = self.was_cancelled = False
        self.later: Any = None

    def may_fail_with(self, e: Any) -> bool:
        """By what the chaos has done itself, and by nothing else of the same type: an OSError of
        another errno is none of the server's, and a KeyError may be anybody's."""
        by = getattr(e, "by_chaos", None)
        if by is not None:
            # What is thrown into a greenlet out of turn may come when that has its next call.
            return by in (self.kind, "be_killed")
        kind = type(e)
        if kind is CancelledError:
            return self.was_cancelled
        if kind is CallTimeout:
            return self.has_limit or (
                # with_options() in there has one of its own
                self.kind in ("fetch_by_twisted", "nest") and str(e).startswith("The wait for ")
            )
        if kind is PoolFull:
            return "'second'" in str(e)  # the first one's queue has no end
        if self.kind in BADLY_SERVED:
            # It had half an answer and has closed ("half"; Twisted's side says ConnectionDone), or
            # it has reset the connection after the question was read ("reset": ECONNRESET where it
            # is waited for an answer, never EPIPE; ConnectionLost on Twisted's side), or was given
            # up ("stall").
            return kind in (HalfAnswer, Stalled, error.ConnectionDone, error.ConnectionLost) or (
                kind is ConnectionResetError and e.args[0] == errno.ECONNRESET
            )
        if self.kind in ("in_a_process", "dies"):
            return may_come_of_a_process(e)
        return False


def may_come_of_a_process(e: BaseException) -> bool:
    text = str(e)
    if type(e) is ExecutorFailed:
        # fails_oddly(); or dies(), and what else was in that executor.
        return "its error, TakesTwo: one, can't be unpickled" in text or (
            "may have run in part: a worker of" in text and " has died " in text
        )
    # The argument was this object; or returns_what_cannot_be_sent(). Others that are more than a
    # GreendeferError are not expected.
    return type(e) is Unsendable or (
        type(e) is GreendeferError and "can't be sent to another process" in text
    )


class Reply(protocol.Protocol):
    """Twisted's side of the same conversation."""

    def __init__(self, how: bytes) -> None:
        self.how = how
        self.got = b""
        self.done: Deferred[bytes] = Deferred(lambda _: self.transport.abortConnection())

    def connectionMade(self) -> None:
        self.transport.write(self.how + b"\n")

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        done, self.done = self.done, Deferred()
        if not done.called:
            done.callback(self.got) if self.got == b"ok\n" else done.errback(reason)


class Late(NamedTuple):
    """How late the reactor was, in seconds; and what our thread was not there for since the tick
    before. As much of that as there was time until this tick was due made nothing late, it may
    be, and excuses nothing."""

    raw: float = 0.0
    others: float = 0.0
    waited_for: float = 0.0  # the one of our other threads that was let wait for longest
    twisted: float = 0.0
    gevent: float = 0.0
    workers: float = 0.0
    ran: float = 0.0  # how long it had the core

    def own(self) -> float:
        # We wait for other threads of ours: for Python's lock, which one has that is not let run,
        # or for one to begin. Who waits for whom nobody tells, so they are not added up.
        kept_off = max(self.others, self.waited_for)
        away = kept_off + self.twisted + self.gevent + self.workers
        return self.raw - max(0.0, away - TICK)

    def shown(self) -> dict[str, float]:
        return {
            "in all (ms)": round(1000 * self.raw, 1),
            "other programs had the core (ms)": round(1000 * self.others, 1),
            "and kept it from another thread of ours (ms)": round(1000 * self.waited_for, 1),
            "Twisted's spawnProcess (ms)": round(1000 * self.twisted, 1),
            "the fork of gevent.subprocess (ms)": round(1000 * self.gevent, 1),
            "multiprocessing's spawn of workers (ms)": round(1000 * self.workers, 1),
            "our thread ran (ms)": round(1000 * self.ran, 1),
            "our own, at most (ms)": round(1000 * self.own(), 1),
        }


class Chaos:
    def __init__(self, calls: int, seed: int, port: int) -> None:
        self.random = random.Random(seed)
        self.calls = calls
        self.port = port
        self.pools: list[Any] = []
        self.made = self.fired = self.astray = 0
        self.outcomes: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self.treated: Counter[str] = Counter()
        self.children = [0, 0]
        self.open = 0
        self.all_done: Deferred[None] = Deferred()
        self.due = 0.0
        self.spawning = [0.0, 0.0, 0.0]
        self.away: tuple[float, ...] = ()
        self.kept_off: dict[str, float] = {}
        self.latest, self.latest_by_us = Late(), Late()
        self.tenths: list[tuple[int, int]] = []
        self.workers: Counter[str] = Counter()
        self.making = Made("")
        self.errors: list[str] = []

    # What calls do. In a greenlet, but where it says so.

    def address(self) -> tuple[str, int]:
        return f"127.0.0.{self.random.randrange(1, 250)}", self.port

    def how(self) -> bytes:
        r = self.random
        how = r.choices(("answer", "delay", "reset", "half", "stall"), (50, 25, 10, 10, 5))[0]
        self.treated[how] += 1
        return f"delay {r.randrange(30)}".encode() if how == "delay" else how.encode()

    def fetch(self) -> bytes:
        how = self.how()
        address = self.address()
        if how == b"stall":
            with Stalled(0.05):
                return converse(gevent.socket.create_connection(address), how)
        return converse(gevent.socket.create_connection(address), how)

    def fetch_natively(self) -> bytes:
        """In a native thread."""
        return converse(native_socket(self.address(), timeout=5))

    def fetch_in_executor(self) -> bytes:
        """In a thread of an executor's, which is a greenlet if all is patched."""
        return self.fetch() if PATCHED else self.fetch_natively()

    def fetch_by_twisted(self) -> bytes:
        how = self.how()
        if how == b"stall":
            return self.wait_for_twisted_for(how, 0.05)
        return self.wait_for_twisted(how)

    @greendefer.blocking_from_greenlet
    def wait_for_twisted(self, how: bytes) -> Any:
        return self.twisted(how)

    def wait_for_twisted_for(self, how: bytes, seconds: float) -> Any:
        return greendefer.with_options(self.wait_for_twisted, timeout=seconds)(how)

    def twisted(self, how: bytes) -> Deferred[bytes]:
        endpoint = TCP4ClientEndpoint(reactor, *self.address())
        d = endpoint.connect(protocol.Factory.forProtocol(lambda: Reply(how)))  # type: ignore[arg-type]
        return d.addCallback(lambda reply: reply.done)  # type: ignore[attr-defined]

    def return_a_deferred(self) -> Any:
        """In a call: the result is what Twisted brings."""
        return self.twisted(b"answer")

    def nest(self) -> Any:
        """Wait for another call, on this pool or another: which may wait for Twisted."""
        pool = self.random.choice(self.pools[:2])
        return greendefer.wait_for_deferred(
            pool.submit(self.random.choice((self.fetch, self.fetch_by_twisted)))
        )

    def raise_something(self) -> None:
        if self.random.random() < 0.5:
            gevent.sleep(0)
        raise by_chaos(self.random.choice(RAISED)(), "raise_something")

    def kill_oneself(self) -> None:
        gevent.getcurrent().throw(by_chaos(GreenletExit(), "kill_oneself"))

    def be_killed(self) -> None:
        """Somebody else throws something into this greenlet, out of turn."""
        me = gevent.getcurrent()
        thrown = by_chaos(self.random.choice((GreenletExit, Odd))(), "be_killed")
        gevent.get_hub().loop.run_callback(me.throw, thrown)
        gevent.sleep(3)

    def swallow(self) -> str:
        try:
            gevent.sleep(0.01)
        except GreenletExit:
            gevent.sleep(0.001)
        return "swallowed"

    def clean_up(self) -> None:
        try:
            gevent.sleep(0.01)
        finally:
            gevent.sleep(0.001)
            self.wait_for_twisted(b"answer")

    def spawn(self) -> list[Any]:
        """Greenlets of its own."""
        mine = [gevent.spawn(gevent.sleep, self.random.random() / 100) for _ in range(3)]
        try:
            return gevent.joinall(mine)  # type: ignore[no-any-return]
        finally:
            gevent.killall(mine)

    def child_of_gevent(self) -> int:
        self.children[0] += 1
        return gevent.subprocess.call(["/bin/true"])

    def child_of_twisted(self) -> Any:
        ended: Deferred[int] = Deferred()
        self.children[1] += 1

        class Ended(protocol.ProcessProtocol):
            def processEnded(self, reason: Failure) -> None:
                if not ended.called:
                    ended.callback(reason.value.exitCode)  # type: ignore[union-attr]

        self.by_fork(0, reactor.spawnProcess, Ended(), "/bin/true", ["true"])
        return ended

    def by_fork(self, whose: int, f: Callable[..., Any], *args: Any) -> Any:
        """The parent sleeps until the child has come to its exec (vfork(2)), or until its memory is
        copied (fork(2)), however long the machine lets that wait."""
        began, delayed = time.monotonic(), run_delay()
        try:
            return f(*args)
        finally:
            self.spawning[whose] += time.monotonic() - began - (run_delay() - delayed)

    def spawn_worker(self, path: Any, args: Any, passed: Any) -> Any:
        """In place of multiprocessing's spawnv_passfds()."""
        here = threading.get_native_id() == os.getpid()
        if "--multiprocessing-fork" in args:  # else it is the resource tracker
            self.workers["in the reactor's thread" if here else "in others"] += 1
        if here:
            return self.by_fork(2, spawnv_passfds, path, args, passed)
        return spawnv_passfds(path, args, passed)

    def lines(self) -> Generator[bytes, None, None]:
        for _ in range(3):
            yield converse(gevent.socket.create_connection(self.address()))

    # What is done to them. In the reactor's greenlet.

    @inlineCallbacks  # type: ignore[arg-type]
    def several_on_one_worker(self) -> Generator[Any, Any, str]:
        async def block() -> str:
            async with self.pools[0].worker() as w:
                await w.submit(self.fetch)
                await w.submit(self.clean_up)
            return "worked"

        return (yield Deferred.fromCoroutine(block()))

    def iterate(self) -> Deferred[Any]:
        lines = greendefer.green_iterator(pool=self.pools[1], prefetch=1)(self.lines)

        async def read() -> int:
            n = 0
            async with lines() as each:
                async for _ in each:
                    n += 1
                    if self.random.random() < 0.2:
                        break
            return n

        return Deferred.fromCoroutine(read())

    def in_a_process(self) -> Deferred[Any]:
        # This object can't be pickled.
        argument = self.address() if self.random.random() < 0.9 else self
        return self.treat(self.pools[3], self.random.choice(IN_A_PROCESS), argument)

    def treat(self, pool: Any, f: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """A call, with options by chance."""
        r = self.random
        timeout: Any = None
        if r.random() < 0.15:
            limit = r.choice(("total", "queued", "running"))
            timeout = Timeouts(**{limit: r.random() / 20})
            self.making.has_limit = True
        on_cancel: Any = r.choice(("kill", "kill", "abandon"))
        green = greendefer.green_deferred(pool=pool, timeout=timeout, on_cancel=on_cancel)
        return green(f)(*args)

    def call(self) -> Deferred[Any]:
        r = self.random
        n = self.made
        if n % EVERY == 0:
            return self.pools[0].submit(self.child_of_gevent)  # type: ignore[no-any-return]
        if n % EVERY == EVERY // 2:
            return maybeDeferred(self.child_of_twisted)
        if n % DIES_EVERY == 1500 and not MISSES_ENDS:
            self.making.kind = "dies"
            return self.pools[3].submit(dies, None)  # type: ignore[no-any-return]
        if n % 211 == 0:
            self.pools[r.randrange(2)].resize(r.randrange(20, 200))
        kind = r.choices(
            (
                self.fetch, self.fetch_by_twisted, self.return_a_deferred, self.nest,
                self.raise_something, self.kill_oneself, self.be_killed, self.swallow,
                self.clean_up, self.spawn, self.fetch_natively, self.several_on_one_worker,
                self.iterate, self.in_a_process, self.fetch_in_executor,
            ),
            (600, 60, 40, 60, 60, 10, 10, 10, 20, 20, 10, 10, 10, 10, 10),
        )[0]  # fmt: skip
        self.making.kind = kind.__name__
        if kind in (self.several_on_one_worker, self.iterate, self.in_a_process):
            return kind()  # type: ignore[return-value]
        which = {self.fetch_natively: 2, self.fetch_in_executor: 4}.get(kind, r.random() < 0.3)
        return self.treat(self.pools[which], kind)

    def begin(self) -> None:
        most = self.made + AT_ONCE  # in this turn: some fire at once
        while self.made < min(self.calls, most) and self.open < AT_ONCE:
            self.made += 1
            if self.made % 100_000 == 0:
                print(f"{self.made} made, {self.fired} fired", file=sys.stderr)
            self.open += 1
            self.making = made = Made("child")
            d = self.call()
            d.addBoth(self.has_fired, made)
            if self.random.random() < 0.1:
                made.was_cancelled = True
                made.later = reactor.callLater(self.random.random() / 20, d.cancel)
            if self.random.random() < 0.02:
                made.was_cancelled = True
                d.cancel()
            if self.made % (self.calls // 10) == 0:
                self.tenths.append((self.made, memory()))

    def has_fired(self, result: Any, made: Made) -> None:
        self.fired += 1
        self.open -= 1
        if gevent.getcurrent() is not reactor.cooperative_wait.greenlet:
            self.astray += 1
        if isinstance(result, Failure):
            name = result.type.__name__
            self.outcomes[name] += 1
            if not made.may_fail_with(result.value):
                self.unexpected[f"{name} in {made.kind}"] += 1
                self.errors.append(result.getTraceback())
        else:
            self.outcomes["a result"] += 1
        if self.fired == self.calls:
            self.all_done.callback(None)
        elif self.open == AT_ONCE - 1 or not self.open:
            reactor.callLater(0, self.begin)

    def look(self) -> None:
        """How late the reactor is, and what of it is not ours."""
        others, *ours = self.taken_away(self.away)
        since = self.kept_off
        waited_for = [delay - since.get(tid, 0) for tid, delay in kept_off().items()]
        late = Late(time.monotonic() - self.due, others, max(waited_for, default=0), *ours)
        self.latest = max(self.latest, late, key=lambda each: each.raw)
        self.latest_by_us = max(self.latest_by_us, late, key=Late.own)

    def taken_away(self, since: tuple[float, ...] = (0, 0, 0, 0, 0)) -> tuple[float, ...]:
        """Seconds that others had our core (schedstat), or that we slept in the kernel for a child;
        and those that we ran."""
        now = run_delay(), *self.spawning, time.thread_time()
        return tuple(n - m for n, m in zip(now, since, strict=True))

    def tick(self) -> None:
        if self.due:
            self.look()
        self.due, self.away = time.monotonic() + TICK, self.taken_away()
        self.kept_off = kept_off()
        self.ticker = reactor.callLater(TICK, self.tick)

    def run(self) -> Deferred[None]:
        self.pools = [
            GreenPool(100, name="first"),
            GreenPool(50, max_queued=60, name="second"),
            NativeThreadPool(4, name="threads"),
            ExecutorPool(worker_processes, 4, name="processes"),
            ExecutorPool(lambda: ThreadPoolExecutor(2), 4, name="executor"),
        ]
        self.tick()
        self.begin()
        return self.all_done

    def accounts(self) -> list[str]:
        wrong = []
        for pool in self.pools:
            s = pool.stats()
            ended = s.completed + s.failed + s.cancelled + s.timed_out + s.rejected
            if s.submitted != ended or s.running or s.lingering or s.queued:
                wrong.append(f"{pool.name} does not add up: {s}")
        return wrong


def worker_processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def kept_off() -> dict[str, float]:
    """By the identity of each of our threads but this one: its run_delay()."""
    me = str(threading.get_native_id())
    others = (tid for tid in os.listdir("/proc/self/task") if tid != me)
    return {tid: run_delay(f"/proc/self/task/{tid}") for tid in others}


def threads() -> int:
    """How many there are, without those that the kernel makes for io_uring, which libuv uses."""
    n = 0
    for tid in os.listdir("/proc/self/task"):
        with suppress(OSError):  # it has just ended
            n += not Path("/proc/self/task", tid, "comm").read_text().startswith("iou-")
    return n


def held() -> dict[str, int]:
    """What a program may leak."""
    # Twisted has one exception for all connections that end alike (posixbase.py,
    # _disconnectSelectable). Whoever raised it last is in its traceback.
    for failure in PosixReactorBase._disconnectSelectable.__defaults__[0].values():
        failure.value.__traceback__ = None
    lost = len(lost_exits())
    gc.collect()
    loop: Any = gevent.get_hub().loop
    return {
        "greenlets": sum(isinstance(o, greenlet) and not o.dead for o in gc.get_objects()),
        "hubs": sum(isinstance(o, Hub) for o in gc.get_objects()),  # dead ones, too
        "descriptors": len(os.listdir("/proc/self/fd")) - 2 * lost,
        "delayed calls": len(reactor.getDelayedCalls()),
        "watchers": loop.activecnt,
        "threads": threads(),
        "children": children(),
        "failures": sum(isinstance(o, Failure) for o in gc.get_objects()),
        "deferreds": sum(isinstance(o, Deferred) for o in gc.get_objects()),
    }


def frames() -> list[str]:
    """Where each of Python's threads is."""
    return [
        " < ".join(f.name for f in reversed(traceback.extract_stack(frame)[-4:]))
        for frame in sys._current_frames().values()
    ]


def lost_exits() -> list[Any]:
    """The worker processes that multiprocessing takes for alive and that are no more. Unpatched, an
    exit that gevent's watchers have reaped is lost to it, and it keeps two descriptors of each:
    see docs/limits.md. They are multiprocessing's, and so are counted, but apart."""
    return [each for each in multiprocessing.active_children() if not is_our_child(each.pid)]


def is_our_child(pid: Any) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def descriptors() -> list[str]:
    """What each of them is for; not the one that lists them."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(each))
    return found


def children() -> int:
    """Zombies, too; of all threads."""
    found = 0
    for each in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # that thread has ended: its children are another one's
            found += len((each / "children").read_text().split())
    return found


def memory() -> int:
    """Resident bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated() -> dict[str, int]:
    """What is in use now, which is far more exact than what is resident: Python's blocks, objects
    that its collector knows, and bytes of malloc(), which C code has its own from.

    Without what is kept for a time by others, and comes by chance: the source lines of whatever
    the holdups' watch has warned of, and how children ended, by gevent, for a minute."""
    linecache.clearcache()
    if hasattr(gevent.os, "_reap_children"):
        gevent.os._reap_children(timeout=0)
    gc.collect()
    found = {"blocks": sys.getallocatedblocks(), "objects": len(gc.get_objects())}
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:  # glibc has it, from 2.33
        return found
    mallinfo.restype = Mallinfo
    info = mallinfo()
    return found | {"bytes of malloc": info.uordblks + info.hblkhd}


def per_call(samples: list[tuple[int, int]]) -> float:
    """Bytes that memory grows by with each call: the median of the slopes between all samples
    (Theil and Sen), which one that is off does not change."""
    return median((b - a) / (n - m) for (m, a), (n, b) in combinations(samples, 2))


def watched(fire: Callable[..., None], twice: list[str]) -> Callable[..., None]:
    """In place of a Deferred's callback() or errback(). One that had fired refuses to do so again,
    with an error that may get lost where it was raised."""

    def fire_once(self: Any, *args: Any) -> None:
        # Twisted forgives one of these: it was cancelled, and had no canceller.
        if self.called and not self._suppressAlreadyCalled:
            twice.append("".join(traceback.format_stack(limit=6)))
        fire(self, *args)

    return fire_once


@inlineCallbacks  # type: ignore[arg-type]
def main(calls: int, seed: int) -> Generator[Any, Any, list[str]]:
    """Returns what is wrong."""
    # Idle ones go after ten seconds: here, soon.
    green_carrier.TRIM_SECONDS = 0.1
    for module in native, thread_carrier:
        module.IDLE_SECONDS = 0.1  # type: ignore[attr-defined]
    logged: list[str] = []
    log.addObserver(
        lambda event: logged.append(log.textFromEventDict(event) or "") if event["isError"] else 0
    )
    twice: list[str] = []
    for name in "callback", "errback":
        setattr(Deferred, name, watched(getattr(Deferred, name), twice))
    server = gevent.subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("hostile.py"))],
        stdin=gevent.subprocess.PIPE,
        stdout=gevent.subprocess.PIPE,
    )
    port = int((yield greendefer.defer_to_greenlet(server.stdout.readline)))

    @inlineCallbacks  # type: ignore[arg-type]
    def run(n: int) -> Generator[Any, Any, Chaos]:
        chaos = Chaos(n, seed, port)
        multiprocessing.util.spawnv_passfds = chaos.spawn_worker  # type: ignore[attr-defined]
        subprocess.fork_and_watch = partial(chaos.by_fork, 1, fork_and_watch)
        yield chaos.run()
        # Those that linger, or ended out of turn, are to end now.
        yield Deferred.fromCoroutine(all_closed(chaos.pools))
        chaos.look()  # there may be a tick that is due, and had no chance to the end
        chaos.ticker.cancel()
        multiprocessing.util.spawnv_passfds = spawnv_passfds  # type: ignore[attr-defined]
        subprocess.fork_and_watch = fork_and_watch
        return chaos

    async def all_closed(pools: list[Any]) -> None:
        for pool in pools:
            await pool.close(grace=30)

    # Python's table of interned strings grows once more when it is full of those that have gone,
    # by a megabyte: after some 100,000 calls, if it were not now.
    for n in range(100_000):
        sys.intern(f"nobody's name {n}")
    # What is made once and kept (the resolver, caches) is made by then, and what comes with the
    # calls is as fragmented as it gets.
    yield run(max(min(calls, 2000), calls // 10))
    # To count takes its time, and what the watch makes of that would be counted.
    warn_of_holdups(3600)
    before = yield settled(None)
    were = descriptors()
    lost_before = len(lost_exits())
    allocated_before = allocated()
    resident_before = memory()
    warn_of_holdups(LATEST)
    began = time.monotonic()
    chaos = yield run(calls)
    seconds = time.monotonic() - began
    wrong = chaos.accounts()
    report: dict[str, Any] = {
        "calls": calls,
        "patched": PATCHED,
        "seconds": round(seconds),
        "outcomes": chaos.outcomes,
        "treated": chaos.treated,
        "children": chaos.children,
        "workers spawned": chaos.workers,
        "stats": [vars(pool.stats()) for pool in chaos.pools],
        "worst lateness": chaos.latest.shown(),
        "worst lateness of our own": chaos.latest_by_us.shown(),
    }
    if chaos.fired != calls:
        wrong.append(f"fired {chaos.fired} of {calls}")
    if twice:
        wrong.append(f"{len(twice)} Deferreds fired that had fired: {twice[:3]}")
    # What is refused or cancelled fires where that is done: here, in the reactor's greenlet, too.
    if chaos.astray:
        wrong.append(f"{chaos.astray} fired outside of the reactor's greenlet")
    if chaos.latest_by_us.own() > LATEST:
        wrong.append(f"the reactor was late: {chaos.latest_by_us.shown()}")
    if chaos.unexpected:
        wrong.append(f"unexpected: {chaos.unexpected}; {chaos.errors[:3]}")
    tenths = chaos.tenths
    spawned = sum(chaos.children) + sum(chaos.workers.values())
    del chaos
    # Twisted's protocols end with one and the same ConnectionDone, which keeps the traceback, and
    # so the call, that it was last raised in. One, and never more.
    kept = {"failures": 1, "deferreds": 1}
    most = {name: n + kept.get(name, 0) for name, n in before.items()}
    warn_of_holdups(3600)
    after = yield settled(most)
    lost = len(lost_exits())
    grown = {name: n - allocated_before[name] for name, n in allocated().items()}
    slope = per_call(tenths[2:])
    report |= {
        "before": before,
        "after": after,
        "descriptors": {
            "before": before["descriptors"] + 2 * lost_before,
            "after": after["descriptors"] + 2 * lost,
            "of which kept by multiprocessing for workers that died, before": 2 * lost_before,
            "of which kept by multiprocessing for workers that died, after": 2 * lost,
        },
        "resident (MB)": {
            "before": round(resident_before / 2**20, 1),
            "at each tenth": [round(n / 2**20, 1) for _, n in tenths],
            "after": round(memory() / 2**20, 1),
        },
        "growth of resident memory from the third tenth on": {
            "bytes per call": round(slope, 2),
            "bytes per process spawned": round(slope * calls / max(1, spawned)),
        },
        "grown in use": grown,
        "wrong": wrong,
    }
    wrong += [f"{name}: {before[name]}, then {n}" for name, n in after.items() if n > most[name]]
    if after["threads"] > before["threads"]:
        wrong.append(f"they are in {frames()}")
    if after["descriptors"] > before["descriptors"]:
        wrong.append(f"they are {descriptors()}, and were {were}")
    if after["watchers"] < 0:
        wrong.append("the hub has lost count of what is alive")
    for name, n in grown.items():
        if n > MOST_GROWN[name] + PER_LOST_EXIT[name] * max(0, lost - lost_before):
            wrong.append(f"{n} {name} more than before")
    if calls >= 100_000 and slope > PER_CALL + SWAY / calls:
        wrong.append(f"resident memory grows by {slope:.1f} bytes per call: {tenths}")
    if calls >= 100_000 and memory() > tenths[0][1] + 8 * 2**20:
        wrong.append(f"{tenths[0][1]} bytes resident after a tenth, then {memory()}")
    if logged:
        wrong.append(f"{len(logged)} logged errors: {logged[:3]}")
    print(json.dumps(report, indent=1))
    server.stdin.close()
    yield greendefer.defer_to_greenlet(server.wait)
    return wrong


@inlineCallbacks  # type: ignore[arg-type]
def settled(like: dict[str, int] | None) -> Generator[Any, Any, dict[str, int]]:
    """What is held when it has stopped to get less; or is no more than `like`."""
    until = time.monotonic() + 30
    same = 0
    now = held()
    # gevent resolves names in threads (ten, with two greenlets each). They go when they were idle
    # for five seconds: while they are there, leaks of as many could not be seen later. What stays
    # are the main thread and the one that watches for holdups; the main greenlet and the hub.
    resolvers = gevent.get_hub().threadpool
    while time.monotonic() < until and same < 5:
        yield deferLater(reactor, 0.3)
        last, now = now, held()
        if like is None:
            same = same + 1 if now == last and not resolvers.size else 0
        elif all(now[name] <= like[name] for name in now):
            break
    return now


if __name__ == "__main__":
    numbers = [int(arg) for arg in sys.argv[1:] if arg.isdigit()]
    ends: list[Any] = []

    def end(wrong: Any) -> None:
        ends.append(wrong)
        if isinstance(wrong, Failure):
            wrong.printTraceback()
        reactor.stop()

    reactor.callWhenRunning(lambda: main(numbers[0], numbers[1] if numbers[1:] else 1).addBoth(end))
    reactor.run()
    sys.exit(0 if ends == [[]] else 1)
