"""Admission: which call runs, which waits, and what becomes of each. Written once, for every pool.

A call goes QUEUED -> STARTED -> RUNNING -> ENDED. The first step is skipped when a slot is free;
a call that is cancelled or refused before it runs goes to ENDED at once. From STARTED to ENDED it
holds a slot. Its Deferred fires apart from that: a call that is cancelled or times out while it
runs fires first and *lingers* until it has ended.

All of this happens in the reactor's thread, and none of it gives way to another greenlet, so
there is no lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from time import monotonic
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python import context as twisted_context
from twisted.python.failure import Failure
from twisted.python.reflect import safe_repr

from . import _twistedcontext
from .carriers import Carrier
from .deadlines import Deadline
from .errors import CallTimeout, GreendeferError, PoolClosed, PoolFull
from .home import Home, home_here, home_if_any
from .lending import slot_is_back, wait_begins, wait_ends
from .policy import OnCancel, PoolStats, Timeouts, check_count, check_seconds

_log = Logger(namespace="greendefer")

P = ParamSpec("P")
T = TypeVar("T")

QUEUED, STARTED, RUNNING, ENDED = range(4)


class Call(Deferred[Any]):
    """One call on a pool: it is the Deferred that the caller gets.

    :ivar state: QUEUED, STARTED, RUNNING or ENDED.
    :ivar outcome: the statistic that it counts for once that is settled, else ``None``.
    :ivar lender: the call in whose slot it runs, where it has none of its own.
    :ivar borrower: the call that runs in its slot, while it waits for that one.
    :ivar waits_for: the call that it waits for, while it does nothing else.
    :ivar waiters: the calls that wait for this one.
    :ivar hosted: the pool whose calls run inside of this one: see :meth:`GreenPool.worker`.
    :ivar was_killed: it was told to end.
    :ivar carried_by: whatever its carrier needs to find it again while it runs.
    """

    carried_by: Any = None
    was_killed = False
    outcome: str | None = None
    lender: Call | None = None
    borrower: Call | None = None
    waits_for: Call | None = None
    waiters: frozenset[Call] = frozenset()
    hosted: Pool | None = None
    when_ended: Callable[[], object] | None = None
    _deadline: Deadline | None = None
    _total_at: float | None = None
    _inner: Deferred[Any] | None = None

    def __init__(
        self,
        pool: Pool,
        f: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeouts: Timeouts | None,
        on_cancel: OnCancel,
    ) -> None:
        Deferred.__init__(self, _cancel)
        self.pool = pool
        self.state = QUEUED
        self.f = f
        self._args = args
        self._kwargs = kwargs
        self._timeouts = timeouts
        self._on_cancel: OnCancel = on_cancel
        self._context = copy_context()
        self._twisted_context = _twistedcontext.current()

    @property
    def name(self) -> str:
        """The function's name, for people."""
        f: Any = self.f
        while isinstance(f, partial):
            f = f.func
        name = getattr(f, "__qualname__", None)
        return name if isinstance(name, str) else safe_repr(f)

    @property
    def is_queued(self) -> bool:
        """Does it wait for a slot?"""
        return self.state == QUEUED

    @property
    def is_running(self) -> bool:
        """Has it begun, and not ended?"""
        return self.state == RUNNING

    # What a carrier calls.

    def begin(self) -> None:
        """It starts to run now."""
        self.state = RUNNING
        timeouts = self._timeouts
        if timeouts is not None:
            self._set_deadline(timeouts.running)

    def run(self) -> Any:
        """Run the function in the caller's contexts."""
        if self._twisted_context is None:
            return self._context.run(self.f, *self._args, **self._kwargs)
        return self._context.run(
            twisted_context.call, self._twisted_context, self.f, *self._args, **self._kwargs
        )

    def end(self, result: Any) -> None:
        """It has ended, with a value or a Failure."""
        if type(result) is CoroutineType:
            try:
                result.close()
            except RuntimeError:
                pass  # it would not be closed; it is refused all the same
            error = f"{self.name} is async already: it returned a coroutine, which nobody awaits. "
            result = Failure(TypeError(f"{error}Use Deferred.fromCoroutine(f()) instead."))
        self.pool._end(self, result)

    # Its time.

    def _set_deadline(self, limit: float | None) -> None:
        """Expire at `limit` seconds from now, or when the total time is over if that is first."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        when = self._total_at
        if limit is not None:
            at = monotonic() + limit
            when = at if when is None else min(when, at)
        if when is not None:
            self._deadline = self.pool._home_of_calls.deadlines.at(when, self._expire)

    def _expire(self) -> None:
        self._deadline = None
        timeouts = self._timeouts
        assert timeouts is not None
        if self.state == QUEUED:
            doing = "waited for a slot of"
        elif self.state == ENDED:
            doing = "returned a Deferred that did not fire in time, on"
        else:
            doing = "was still running on"
        error = CallTimeout(f"{self.name} {doing} {self.pool}: its limit is {timeouts}")
        how = timeouts.on_expiry or ("kill" if self.pool._carrier.can_kill else "abandon")
        self.pool._give_up(self, "timed_out", how)
        if not self.called:  # as a canceller of what it waited for may have done
            self.errback(Failure(error))

    # Its result.

    def settle(self, outcome: str) -> None:
        """Count for `outcome`, and for no other."""
        counts = self.pool._outcomes
        if self.outcome is not None:
            counts[self.outcome] -= 1
        self.outcome = outcome
        counts[outcome] += 1

    def fire(self, result: Any) -> None:
        """Fire with `result`, unless it was cancelled on the way."""
        wait_ends(self)
        if self.called:
            return
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if result is _CLOSED:
            result = Failure(self.pool.closed_error(self))
        if self._inner is not None:
            self._inner = None
            if isinstance(result, Failure):
                self.settle("failed")
        self.callback(result)

    def forget(self) -> None:
        """Let go of what only a call that may still run needs."""
        self.carried_by = None
        del self._args, self._kwargs, self._context, self._twisted_context


_CLOSED: Any = object()
"""The result of a call whose pool was closed. Its error is made when it is delivered: there may be
thousands of them at once."""


def cancel_quietly(d: Deferred[Any]) -> None:
    """Cancel `d`, whatever its canceller does; what that raises is logged."""
    try:
        d.cancel()
    except Exception:
        _log.failure("The canceller of {d!r} failed", d=d)


def _cancel(call: Deferred[Any]) -> None:
    """What ``Deferred.cancel()`` calls; afterwards it fires the call with CancelledError."""
    assert isinstance(call, Call)
    call.pool._give_up(call, "cancelled", call._on_cancel)


class Pool:
    """How many calls run at once, and what happens to the others.

    This is the common part of all pools; use :class:`GreenPool`. A pool may be made before the
    reactor is installed, at the top of a module for instance. It belongs to the reactor of its
    first call.

    :param size: how many calls run at once.
    :param max_queued: how many more may wait for a slot; ``None`` is no bound, ``0`` none.
    :param name: what it is called in messages.
    :raises TypeError: `size` or `max_queued` is not a whole number, or `name` is not a string.
    :raises ValueError: `size` is below 1, or `max_queued` below 0.
    """

    host: Call | None = None
    """The call that this pool's calls run inside of, if it is a worker of another pool."""

    def __init__(
        self, size: int = 100, *, max_queued: int | None = None, name: str | None = None
    ) -> None:
        what = type(self).__name__
        check_count(f"{what}(size=...)", size, 1)
        if max_queued is not None:
            check_count(f"{what}(max_queued=...)", max_queued, 0)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"{what}(name=...) must be a string or None, not {name!r}")
        self.name = name
        self.max_queued = max_queued
        self._size = size
        self._home: Home | None = None
        self._carrier: Carrier
        self._queue: OrderedDict[Call, None] = OrderedDict()
        self._active: set[Call] = set()
        self._submitted = self._running = self._lingering = self._queued = 0
        self._outcomes = dict.fromkeys(
            ("completed", "failed", "cancelled", "timed_out", "rejected"), 0
        )
        self._closed = False
        self._closers: list[Deferred[None]] = []

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name is not None else ""
        return (
            f"<{type(self).__name__}{name} size={self._size} running={self._running} "
            f"lingering={self._lingering} queued={self._queued}>"
        )

    def _make_carrier(self, home: Home) -> Carrier:
        raise NotImplementedError

    @property
    def size(self) -> int:
        """How many calls may run at once."""
        return self._size

    def submit(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run ``f(*args, **kwargs)`` when a slot is free.

        :returns: a Deferred of its result, which fires in the reactor's greenlet. If the pool is
            full or closed it has failed already, with :class:`PoolFull` or :class:`PoolClosed`.
            Cancelling it ends the call: a queued one never starts, a running one is killed. If
            `f` returns a Deferred, that is waited for; a coroutine is refused (TypeError).
        :raises TypeError: `f` is not callable.
        :raises GreendeferError: no green reactor is installed, or this is not its thread.
        """
        if not callable(f):
            raise TypeError(f"submit(f, ...) needs something to call, not {f!r}")
        return self._call(f, args, kwargs, None, "kill")

    def stats(self) -> PoolStats:
        """How the pool stands now."""
        return PoolStats(
            size=self._size,
            submitted=self._submitted,
            running=self._running,
            lingering=self._lingering,
            queued=self._queued,
            **self._outcomes,
        )

    def resize(self, size: int) -> None:
        """Let `size` calls run at once from now on.

        Queued calls start at once if there is room for them now. Running ones go on if there is
        not: it takes effect as they end.

        :raises TypeError: `size` is not a whole number.
        :raises ValueError: `size` is below 1.
        """
        check_count("resize(size)", size, 1)
        self._size = size
        self._refill()

    def close(self, *, grace: float | None = None) -> Deferred[None]:
        """Take no more calls, and let the running ones end.

        Queued calls fail with :class:`PoolClosed`.

        :param grace: seconds after which the calls that still run are killed (where they can be;
            they too fail with :class:`PoolClosed`). ``None``: never.
        :returns: a Deferred that fires with ``None`` in the reactor's greenlet when all running
            calls have ended, or when those left have been killed.
        :raises TypeError: `grace` is not a number.
        :raises ValueError: `grace` is negative or NaN.
        """
        check_seconds("close(grace=...)", grace)
        self._closed = True
        closed: Deferred[None] = Deferred()
        home = self._home
        if home is None:  # never had a call
            if (home := home_if_any()) is None:
                closed.callback(None)
            else:
                home.deliver(closed.callback, None)
            return closed
        self._reject_queued(home)
        self._when_idle(closed)
        if grace == 0:
            self._kill_all()
        elif grace is not None and self._active:
            deadline = home.deadlines.at(monotonic() + grace, self._kill_all)
            closed.addBoth(_stop_deadline, deadline)
        return closed

    def drain(self) -> Deferred[None]:
        """Let the running calls end; those in the queue fail as in :meth:`close`. New calls may
        still be made: it is for the time between ``reactor.stop()`` and its end.

        :returns: a Deferred that fires with ``None`` when no call runs.
        """
        drained: Deferred[None] = Deferred()
        self._reject_queued(self._home_of_calls)
        return self._when_idle(drained)

    def _reject_queued(self, home: Home) -> None:
        for call in list(self._queue):
            self._remove_from_queue(call)
            call.settle("rejected")
            self._finish(call)
            home.deliver(call.fire, _CLOSED)

    # From here on: what happens to one call.

    @property
    def _home_of_calls(self) -> Home:
        assert self._home is not None
        return self._home

    def _bind(self) -> Home:
        """Belong to the reactor that is installed now."""
        home = home_here()
        if home is not self._home:
            if self._active or self._queue:
                raise GreendeferError(
                    f"{self!r} has calls on a reactor that is no longer the installed one; they "
                    "will never end. Make a new pool for the new reactor."
                )
            self._home = home
            self._carrier = self._make_carrier(home)
            home.pools.add(self)
            self._closed = self._closed or home.stopped
        return home

    def _call(
        self,
        f: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeouts: Timeouts | None,
        on_cancel: OnCancel,
    ) -> Call:
        home = self._home
        if home is None or not home.is_here():
            home = self._bind()
        call = Call(self, f, args, kwargs, timeouts, on_cancel)
        self._submitted += 1
        if self._closed:
            self._reject(call, self.closed_error(call))
            return call
        if timeouts is not None and timeouts.total is not None:
            call._total_at = monotonic() + timeouts.total
        if self._running + self._lingering < self._size and not self._queue:
            self._running += 1
            self._start(call)
        elif self.max_queued is None or self._queued < self.max_queued:
            self._queue[call] = None
            self._queued += 1
            if timeouts is not None:
                call._set_deadline(timeouts.queued)
        else:
            error = f"{call.name}: all slots of {self!r} are taken, and max_queued is "
            self._reject(call, PoolFull(f"{error}{self.max_queued}"))
        return call

    def closed_error(self, call: Call) -> PoolClosed:
        return PoolClosed(f"{call.name}: {self!r} is closed, or its reactor has stopped")

    def _reject(self, call: Call, error: Exception) -> None:
        call.state = ENDED
        call.settle("rejected")
        call.forget()
        call.errback(Failure(error))

    def _start(self, call: Call) -> None:
        call.state = STARTED
        self._active.add(call)
        if call._total_at is not None or call._deadline is not None:
            call._set_deadline(None)
        self._carrier.start(call)

    def _remove_from_queue(self, call: Call) -> None:
        del self._queue[call]
        self._queued -= 1

    def _refill(self) -> None:
        """Start queued calls, oldest first, while there are free slots."""
        while self._queue and self._running + self._lingering < self._size:
            call, _ = self._queue.popitem(last=False)
            self._queued -= 1
            self._running += 1
            self._start(call)

    def _end(self, call: Call, result: Any) -> None:
        """The carrier is done with `call`: settle it if it is still open, and free its slot."""
        if call.outcome is None:
            if call.lender is None:
                self._running -= 1
            else:
                self._queued -= 1
            if isinstance(result, Deferred):
                # Its own time goes on until that one has fired; its slot does not.
                call.settle("completed")
                call._inner = result
                result.addBoth(lambda value: self._home_of_calls.deliver(call.fire, value))
            else:
                call.settle("failed" if isinstance(result, Failure) else "completed")
                if call._deadline is not None:
                    call._deadline.cancel()
                    call._deadline = None
                self._home_of_calls.deliver(call.fire, result)
        else:  # nobody hears it any more
            if call.lender is None:
                self._lingering -= 1
            if isinstance(result, Deferred):
                result.addErrback(lambda _: None)
                cancel_quietly(result)
        self._finish(call)
        if call._inner is not None and isinstance(result, Call):
            wait_begins(call, result)

    def _finish(self, call: Call) -> None:
        """`call` holds nothing any more."""
        call.state = ENDED
        self._active.discard(call)
        call.forget()
        lender = call.lender
        if lender is not None:
            call.lender = lender.borrower = None
        if call.when_ended is not None:
            call.when_ended()
        if self._queue:
            self._refill()
        if lender is not None:
            slot_is_back(lender)
        if self._closers and not self._active:
            self._fire_closers()

    def _give_up(self, call: Call, outcome: str, how: OnCancel) -> None:
        """`call` is about to fire with an error: end it, or let it linger."""
        if call._deadline is not None:
            call._deadline.cancel()
            call._deadline = None
        if call.outcome is not None:  # its result is on the way, or it returned a Deferred
            call.settle(outcome)
            inner, call._inner = call._inner, None
            if inner is not None:
                cancel_quietly(inner)
            return
        if call.state == QUEUED:
            self._remove_from_queue(call)
        elif call.lender is not None:
            self._queued -= 1
        else:
            self._running -= 1
        call.settle(outcome)
        if call.state == QUEUED or self._carrier.withdraw(call):
            self._finish(call)
            return
        if call.lender is None:
            self._lingering += 1
        if how == "kill":
            self._kill(call)

    def _when_idle(self, idle: Deferred[None]) -> Deferred[None]:
        """Fire `idle` once no call holds a slot, or waits for one."""
        self._closers.append(idle)
        if not self._active:
            self._fire_closers()
        return idle

    def _kill_all(self) -> None:
        """The grace of close() is over. Calls that were told to end already are left to it."""
        for call in list(self._active):
            if call.outcome is None:
                self._give_up(call, "cancelled", "kill")
                self._home_of_calls.deliver(call.fire, _CLOSED)
            elif not call.was_killed:
                self._kill(call)
        self._fire_closers()

    def _kill(self, call: Call) -> None:
        call.was_killed = True
        self._carrier.kill(call)

    def _fire_closers(self) -> None:
        closers, self._closers = self._closers, []
        for closed in closers:
            self._home_of_calls.deliver(closed.callback, None)

    # For lending.

    @property
    def can_nest(self) -> bool:
        """Can a call run while another one waits for it in the same slot?"""
        return self._carrier.can_nest

    def active_calls(self) -> list[Call]:
        """The calls that hold a slot."""
        return list(self._active)

    def start_in_slot_of(self, lender: Call, call: Call) -> None:
        """Start a queued call now, in the slot of one that waits for it.

        It is counted as queued until it fires, since it has no slot of its own.
        """
        del self._queue[call]
        call.lender = lender
        lender.borrower = call
        self._start(call)


def _stop_deadline(result: T, deadline: Deadline) -> T:
    deadline.cancel()
    return result
