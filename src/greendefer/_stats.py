"""How a pool stands: counts, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolStats:
    """How a pool stands: counts of its calls, taken at one moment.

    At every moment ``submitted == running + queued + completed + failed + cancelled + timed_out
    + rejected``, and ``running + lingering <= size`` unless the pool was resized below that.
    """

    size: int
    """How many calls may run at once."""
    submitted: int
    """All calls ever made on the pool."""
    running: int
    """Calls that hold a slot and whose Deferred is still open."""
    lingering: int
    """Calls whose Deferred has fired (cancelled, timed out) and that have not ended yet. They
    hold their slot."""
    queued: int
    """Calls that have no slot of their own yet. (One that runs in the slot of a call that waits
    for it is among them: see :func:`wait_for_deferred`.)"""
    completed: int
    """Calls that returned."""
    failed: int
    """Calls that raised."""
    cancelled: int
    """Calls ended by ``Deferred.cancel()``, or killed by ``close(grace=...)``."""
    timed_out: int
    """Calls that took too long."""
    rejected: int
    """Calls that never ran because the pool was full or closed."""
