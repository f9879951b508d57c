"""A call on a pool: the Deferred that the caller gets, and where it stands.

A call goes QUEUED -> READY -> RUNNING -> ENDED. The first step is skipped when a slot is free;
a call that is cancelled or refused before it runs goes to ENDED at once. From READY to ENDED it
holds a slot. Its Deferred fires apart from that: a call that is cancelled or times out while it
runs fires first and *lingers* until it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextvars import copy_context
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeGuard

from greenlet import getcurrent
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python import context as twisted_context
from twisted.python.failure import Failure
from twisted.python.reflect import safe_repr

from . import _twistedcontext
from .deadlines import Deadline
from .errors import CallTimeout, PoolClosed
from .lending import wait_ends
from .policy import OnCancel, Timeouts

if TYPE_CHECKING:
    from .admission import Pool
    from .instrumentation import CallObserver

_log = Logger(namespace="greendefer")

QUEUED, READY, RUNNING, ENDED = range(4)


class Call(Deferred[Any]):
    """One call on a pool: it is the Deferred that the caller gets.

    :ivar state: QUEUED, READY, RUNNING or ENDED.
    :ivar outcome: the statistic that it counts for once that is settled, else ``None``.
    :ivar lender: the call in whose slot it runs, where it has none of its own.
    :ivar borrower: the call that runs in its slot, while it waits for that one.
    :ivar waits_for: the call that it waits for, while it does nothing else.
    :ivar waiters: the calls that wait for this one.
    :ivar hosted: the pool whose calls run inside of this one: see :meth:`GreenPool.worker`.
    :ivar observer: what tells the hooks, if there are any.
    :ivar was_killed: it was told to end.
    :ivar is_leaving: the function has returned, and the pool's `around` context manager is
        exiting: the call can't be killed now.
    :ivar carried_by: whatever its carrier needs to find it again while it runs.
    """

    carried_by: Any = None
    was_killed: bool = False
    is_leaving: bool = False
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
    observer: CallObserver | None = None

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
        self.state: int = QUEUED
        self.f = f
        # What it needs until it has ended.
        self._ingredients: Any = (args, kwargs, copy_context(), _twistedcontext.current())
        self._timeouts = timeouts
        self._on_cancel: OnCancel = on_cancel

    @property
    def name(self) -> str:
        """The function's name, for people."""
        f: Any = self.f
        while isinstance(f, partial):
            f = f.func
        name = getattr(f, "__qualname__", None)
        return name if isinstance(name, str) else safe_repr(f)

    def __str__(self) -> str:
        # People know it as a Deferred, and want to know of what.
        return super().__str__().replace(type(self).__name__, f"Deferred of {self.name}", 1)

    def __repr__(self) -> str:
        return str(self)

    def __iter__(self) -> Generator[Any, None, Any]:
        """For ``yield from``. A plain ``for`` would get this Deferred again and again, for ever."""
        steps = self.__await__()
        while True:
            try:
                step = next(steps)
            except StopIteration as e:
                return e.value
            yield step
            if not self.called:  # whoever goes on now has not waited for it
                raise TypeError(f"{self.unused} It can't be iterated over by a plain `for`.")

    @property
    def unused(self) -> str:
        """What to tell those who take it for its result."""
        return f"A call of {self.name} is a Deferred: await it."

    @property
    def call(self) -> Call:
        """Itself: what runs it may have it inside of an :class:`~greendefer.carriers.WorkItem`."""
        return self

    def closed_error(self) -> PoolClosed:
        return PoolClosed(f"{self.name}: {self.pool!r} is closed, or its reactor has stopped")

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What it calls the function with."""
        args, kwargs, _, _ = self._ingredients
        return args, kwargs

    @property
    def is_queued(self) -> bool:
        """Does it wait for a slot?"""
        return self.state == QUEUED

    @property
    def is_running(self) -> bool:
        """Has it begun, and not ended?"""
        return self.state == RUNNING

    @property
    def has_ended(self) -> bool:
        """Does it hold nothing any more?"""
        return self.state == ENDED

    # What a carrier calls.

    @property
    def is_ready(self) -> bool:
        """Has it got a slot, and not begun?"""
        return self.state == READY

    def begin(self) -> bool:
        """It starts to run now; ``False``, if it was withdrawn."""
        if self.state != READY:
            return False
        self.state = RUNNING
        if self.observer is not None:
            self.observer.started()
        timeouts = self._timeouts
        # It may have been given up on while a thread's message of this was on the way.
        if timeouts is not None and timeouts.running is not None and self.outcome is None:
            self._set_deadline(timeouts.running)
        return True

    def run(self) -> Any:
        """Run the function in the caller's contexts."""
        f = self.f if self.pool.around is None else self._run_inside
        args, kwargs, context, log_context = self._ingredients
        if log_context is None:
            return context.run(f, *args, **kwargs)
        return context.run(twisted_context.call, log_context, f, *args, **kwargs)

    def _run_inside(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function inside of what its pool has around each call."""
        around = self.pool.around
        assert around is not None
        with around():
            try:
                return self.f(*args, **kwargs)
            finally:
                # From here on it can't be killed: what cleans up must not be cut off half-way.
                self.is_leaving = True

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
        self.stop_clock()
        when = self._total_at
        if limit is not None:
            at = self.pool._runtime.now() + limit
            when = at if when is None else min(when, at)
        if when is not None:
            self._deadline = self.pool._runtime.deadlines.at(when, self._expire)

    def stop_clock(self) -> None:
        """It can't expire any more."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

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
        self.report()
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
        if self.waits_for is not None:
            wait_ends(self)
        if self.called:
            return
        if self._deadline is not None:
            self.stop_clock()
        if result is CLOSED:
            result = Failure(self.closed_error())
        if self._inner is not None:
            self._inner = None
            if isinstance(result, Failure):
                self.settle("failed")
        if self.observer is not None:
            self.report()
        self.callback(result)

    def report(self) -> None:
        """Tell the hooks, once, that it ends."""
        observer, self.observer = self.observer, None
        if observer is not None and self.outcome is not None:
            observer.ended(self.outcome)

    def forget(self) -> None:
        """Let go of what only a call that may still run needs."""
        self.carried_by = self._ingredients = None


CLOSED: Any = object()
"""The result of a call whose pool was closed. Its error is made when it is delivered: there may be
thousands of them at once."""


def is_deferred(result: object) -> TypeGuard[Deferred[Any]]:
    """``isinstance(result, Deferred)``, which would ask an abstract base class, and takes ten
    times as long."""
    return Deferred in type(result).__mro__


def is_call(d: Deferred[Any]) -> TypeGuard[Call]:
    """The same for calls."""
    return Call in type(d).__mro__


def current_call() -> Call | None:
    """The call that the current greenlet, or the current thread outside of any, runs."""
    return getattr(getcurrent(), "greendefer_call", None)


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
    call.report()
