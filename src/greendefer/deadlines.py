"""Deadlines on a monotonic clock: many of them, over one timer of the hub."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from time import monotonic
from typing import Any

from .reactor.wait import SLICE

_LONGEST = 86400.0


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

    Twisted's own ``callLater`` goes by the wall clock (twisted.python.runtime.seconds is
    ``time.time``), so a clock that jumps would move every timeout. libev's timers are monotonic.

    :param loop: the hub's loop.
    :param call_soon: runs a function in the reactor's greenlet, soon. What expires runs there.
    """

    def __init__(self, loop: Any, call_soon: Callable[[Callable[[], object]], object]) -> None:
        self._loop = loop
        self._call_soon = call_soon
        self._heap: list[tuple[float, int, Deadline]] = []
        self._number = count().__next__
        self._cancelled = 0
        self._timer: Any = None
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
        if self._cancelled > 64 and self._cancelled > len(self._heap) >> 1:
            self._heap = [entry for entry in self._heap if entry[2].owner is not None]
            heapify(self._heap)
            self._cancelled = 0

    def _start_timer(self, when: float) -> None:
        self.stop()
        self._timer_at = when
        delay = min(max(0.0, when - monotonic()), _LONGEST)
        # ref=False: a timeout alone keeps no program alive.
        self._timer = self._loop.timer(delay, ref=False, priority=self._loop.MAXPRI)
        self._timer.start(self._call_soon, self._expire, update=True)

    def stop(self) -> None:
        """Stop the timer. The next deadline that is set starts it again."""
        timer, self._timer = self._timer, None
        self._timer_at = float("inf")
        if timer is not None:
            timer.close()

    def _expire(self) -> None:
        self.stop()
        now = monotonic()
        heap = self._heap
        try:
            # A slice of time at once; the timer brings us back for the rest.
            while heap and heap[0][0] <= now and monotonic() < now + SLICE:
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
