"""Deadlines on a monotonic clock: many of them, over one timer."""

from __future__ import annotations

from _queue import Empty
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from time import monotonic
from typing import Any, Protocol

from ._carriers.native import IDLE_SECONDS, Mailbox, allocate_lock, start_thread
from ._reactor.loops import for_timer
from ._reactor.wait import SLICE

LONGEST_SLEEP = 86400.0
"""Seconds that a thread sleeps at once. A queue refuses much more (``threading.TIMEOUT_MAX``)."""


class Timer(Protocol):
    """What tells a :class:`Deadlines` that the first of them is due."""

    stops_when_idle: bool
    """Is it worth stopping as soon as nothing is left to wait for?"""

    def start(self, when: float, f: Callable[[], object]) -> None:
        """Call `f` in the reactor's greenlet when ``time.monotonic()`` is `when`, and forget what
        was asked before."""

    def stop(self) -> None:
        """Forget it."""

    def forked(self) -> None:
        """This is a child process."""


class HubTimer:
    """A timer of the hub that the reactor runs on. libev's are monotonic."""

    stops_when_idle = False

    def __init__(self, loop: Any, call_soon: Callable[..., object]) -> None:
        self._loop = loop
        self._call_soon = call_soon
        self._timer: Any = None

    def start(self, when: float, f: Callable[[], object]) -> None:
        self.stop()
        delay = min(max(0.0, when - monotonic()), LONGEST_SLEEP)
        # ref=False: a timeout alone keeps no program alive.
        self._timer = self._loop.timer(
            for_timer(self._loop, delay), ref=False, priority=self._loop.MAXPRI
        )
        self._timer.start(self._call_soon, f, update=True)

    def stop(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def forked(self) -> None:
        pass  # the child has the hub


class ThreadTimer:
    """A native thread that sleeps, for a reactor that is not on a hub.

    Twisted's own ``callLater`` goes by the wall clock there; it would also leave a DelayedCall in
    the reactor, which ``trial`` takes for a leak.
    """

    stops_when_idle = True

    def __init__(self, call_soon: Callable[..., object], call_later: Callable[..., object]) -> None:
        self._call_soon = call_soon
        self._call_later = call_later
        self._lock = allocate_lock()
        self._wake: Mailbox = Mailbox()
        self._when: float | None = None
        self._f: Callable[[], object]
        self._runs = False
        self._sleeps_until = 0.0

    def start(self, when: float, f: Callable[[], object]) -> None:
        with self._lock:
            self._when, self._f = when, f
            if not self._runs:
                self._runs = True
                self._sleeps_until = 0.0
                try:
                    start_thread(self._run, "greendefer-timer")
                except RuntimeError:  # no more threads: by Twisted's clock is better than never
                    self._runs = False
                    self._call_later(max(0.0, when - monotonic()), self._expire_or_restart)
            elif when < self._sleeps_until:
                self._sleeps_until = 0.0
                self._wake.put(None)

    def stop(self) -> None:
        with self._lock:
            self._when = None

    def forked(self) -> None:
        self._lock = allocate_lock()  # the thread, which is the parent's alone, may have had it
        self._wake = Mailbox()
        self._runs = False
        when, self._when = self._when, None
        if when is not None:
            self.start(when, self._f)

    def _expire_or_restart(self) -> None:
        with self._lock:
            when = self._when
            if when is None or self._runs:
                return
            if when <= monotonic():
                self._when = None
        if self._when is None:
            self._f()
        else:
            self.start(when, self._f)

    def _run(self) -> None:
        idle = False
        while True:
            with self._lock:
                now = monotonic()
                if self._when is not None and self._when <= now:
                    self._when = None
                    self._call_soon(self._f)
                elif self._when is None and idle:
                    self._runs = False
                    return
                idle = self._when is None
                until = now + IDLE_SECONDS if self._when is None else self._when
                self._sleeps_until = until
            try:
                self._wake.get(timeout=min(until - now, LONGEST_SLEEP))
                idle = False
            except Empty:
                pass


class Deadline:
    """Something that is to happen at a time, unless it is cancelled before."""

    __slots__ = ("expired", "owner")

    def __init__(self, owner: Deadlines, expired: Callable[[], object]) -> None:
        self.owner: Deadlines | None = owner
        self.expired: Callable[[], object] | None = expired

    def cancel(self) -> None:
        owner, self.owner, self.expired = self.owner, None, None
        if owner is not None:
            owner._forget()


class Deadlines:
    """A heap of deadlines. Cancelling one is cheap: it stays in the heap, and is passed over.

    :param timer: what brings us back in time.
    :param now: the clock that they go by.
    """

    def __init__(self, timer: Timer, now: Callable[[], float] = monotonic) -> None:
        self._timer = timer
        self._now = now
        self._heap: list[tuple[float, int, Deadline]] = []
        self._number = count().__next__
        self._cancelled = 0
        self._timer_at = float("inf")

    def at(self, when: float, expired: Callable[[], object]) -> Deadline:
        """Run `expired` in the reactor's greenlet when ``time.monotonic()`` is `when`."""
        deadline = Deadline(self, expired)
        heappush(self._heap, (when, self._number(), deadline))
        if when < self._timer_at:
            self._start_timer(when)
        return deadline

    def _forget(self) -> None:
        self._cancelled += 1
        if self._timer.stops_when_idle and self._cancelled == len(self._heap):
            self._heap.clear()
            self._cancelled = 0
            self.stop()
        elif self._cancelled > 64 and self._cancelled > len(self._heap) >> 1:
            self._heap = [entry for entry in self._heap if entry[2].owner is not None]
            heapify(self._heap)
            self._cancelled = 0

    def renew(self, timer: Timer) -> None:
        """Go by `timer` from now on: the other one is gone."""
        self._timer = timer
        self._timer_at = float("inf")
        if self._heap:
            self._start_timer(self._heap[0][0])

    def _start_timer(self, when: float) -> None:
        self._timer_at = when
        self._timer.start(when, self._expire)

    def stop(self) -> None:
        """Stop the timer. The next deadline that is set starts it again."""
        self._timer_at = float("inf")
        self._timer.stop()

    def _expire(self) -> None:
        self.stop()
        now = self._now()
        until = monotonic() + SLICE
        heap = self._heap
        try:
            # A slice of time at once; the timer brings us back for the rest.
            while heap and heap[0][0] <= now and monotonic() < until:
                deadline = heappop(heap)[2]
                expired = deadline.expired
                if expired is None:
                    self._cancelled -= 1
                else:
                    deadline.owner = deadline.expired = None
                    expired()
                    heap = self._heap  # _forget() may have made a new one
        finally:
            while self._heap and self._heap[0][2].owner is None:
                heappop(self._heap)
                self._cancelled -= 1
            if self._heap and self._heap[0][0] < self._timer_at:
                self._start_timer(self._heap[0][0])
