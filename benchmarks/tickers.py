"""How late a reactor is: a timer of 10 ms, again and again, that looks at the clock."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

EVERY = 0.01


class Ticker:
    """Ticks as soon as it is made.

    :param call_later: of a reactor, or of an asyncio loop.
    """

    def __init__(self, call_later: Callable[..., Any]) -> None:
        self._call_later = call_later
        self._late: list[float] = []
        self._due = 0.0
        self._goes_on = True
        self._next()

    def _next(self) -> None:
        self._due = monotonic() + EVERY
        self._call_later(EVERY, self._tick)

    def _tick(self) -> None:
        if self._goes_on:
            self._late.append(monotonic() - self._due)
            self._next()

    def restart(self) -> None:
        """Forget what was until now."""
        self._late.clear()

    def stop(self) -> dict[str, float]:
        """In milliseconds: how late it was at worst, and but for one tick in a hundred."""
        self._goes_on = False
        # One that is due, and has not had its turn, is late, too.
        late = sorted([*self._late, max(0.0, monotonic() - self._due)])
        return {"worst ms": late[-1] * 1e3, "p99 ms": late[int(len(late) * 0.99)] * 1e3}
