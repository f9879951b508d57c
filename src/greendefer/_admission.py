"""A pool and its calls: which of them runs, which waits, and what becomes of each.

Written once, for every pool: how an admitted call runs is the matter of a carrier. All of this
happens in the reactor's thread, and none of it gives way to another greenlet, so there is no lock.

A call goes QUEUED -> READY -> RUNNING -> ENDED. The first step is skipped when a slot is free;
a call that is cancelled or refused before it runs goes to ENDED at once. From READY to ENDED it
holds a slot. Its Deferred fires apart from that: a call that is cancelled or times out while it
runs fires first and *lingers* until it has ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeGuard, TypeVar, cast

from greenlet import getcurrent
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python import context as twisted_context
from twisted.python.failure import Failure
from twisted.python.reflect import safe_repr

from . import _twistedcontext
from ._carriers import Carrier
from ._deadlines import Deadline
from ._errors import (
    CallTimeout,
    GreendeferError,
    PoolClosed,
    PoolFull,
    WouldDeadlock,
    failed_with,
)
from ._lending import slot_is_back, wait_begins, wait_ends
from ._policy import (
    OnCancel,
    Timeouts,
    check_around,
    check_count,
    check_is_callable,
    check_name,
    check_seconds,
)
from ._runtime import Runtime, runtime_here, runtime_if_any

if TYPE_CHECKING:
    from ._stats import PoolStats
    from .instrumentation import CallObserver

P = ParamSpec("P")
T = TypeVar("T")

_log = Logger(namespace="greendefer")

Around = Callable[[], AbstractContextManager[object]]
"""Makes what a pool has around each call: see :class:`Pool`."""

observe: Callable[[Call], CallObserver] | None = None
"""What tells the hooks of each call, while there are any: :mod:`greendefer.instrumentation` sets
it."""

QUEUED, READY, RUNNING, ENDED = range(4)

CLOSED: Any = object()
"""The result of a call whose pool was closed. Its error is made when it is delivered: there may be
thousands of them at once."""


class Call(Deferred[Any]):
    """One call on a pool: it is the Deferred that the caller gets.

    :ivar state: QUEUED, READY, RUNNING or ENDED.
    :ivar outcome: the statistic that it counts for once that is settled, else ``None``.
    :ivar lender: the call in whose slot it runs, where it has none of its own.
    :ivar borrower: the call that runs in its slot, while it waits for that one.
    :ivar waits_for: the call that it waits for, while it does nothing else.
    :ivar waiters: the calls that wait for this one.
    :ivar title: what people call it, if not by its function.
    :ivar hosted: the pool whose calls run inside of this one: see :meth:`GreenPool.worker`.
    :ivar observer: what tells the hooks, if there are any.
    :ivar was_killed: it was told to end.
    :ivar was_abandoned: nobody hears it any more, and it may do to its end what it does.
    :ivar is_leaving: the function has returned, and the pool's `around` context manager is
        exiting: the call can't be killed now.
    :ivar carried_by: whatever its carrier needs to find it again while it runs.
    """

    # Most calls have none of these, but are asked for them. To have each find them in itself is
    # cheaper than to look for them in its class: that is what CPython's interpreter specializes.
    outcome: str | None
    lender: Call | None
    waits_for: Call | None
    when_ended: Callable[[], object] | None
    observer: CallObserver | None
    _deadline: Deadline | None
    _total_at: float | None
    _inner: Deferred[Any] | None

    carried_by: Any = None
    was_killed: bool = False
    was_abandoned: bool = False
    is_leaving: bool = False
    borrower: Call | None = None
    waiters: frozenset[Call] = frozenset()
    title: str | None = None
    hosted: Pool | None = None

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
        self.outcome = self.lender = self.waits_for = self.when_ended = self.observer = None
        self._deadline = self._total_at = self._inner = None

    @property
    def name(self) -> str:
        """The function's name, for people."""
        if self.title is not None:
            return self.title
        f: Any = self.f
        try:
            while isinstance(f, partial):
                f = f.func
            name = getattr(f, "__qualname__", None)
        except BaseException:  # such as a proxy of what is not there now
            name = None
        return name if type(name) is str else safe_repr(f)

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
        """Itself: what runs it may have it inside of an :class:`~greendefer._carriers.WorkItem`."""
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
        f = self.f if self.pool._around is None else self._run_inside
        args, kwargs, context, log_context = self._ingredients
        if log_context is None:
            return context.run(f, *args, **kwargs)
        if kwargs:  # some may have the names of its own parameters
            f = partial(f, **kwargs)
        return context.run(twisted_context.call, log_context, f, *args)

    def _run_inside(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the function inside of what its pool has around each call."""
        around = self.pool._around
        assert around is not None
        with around():
            try:
                return self.f(*args, **kwargs)
            finally:
                # From here on it can't be killed: what cleans up must not be cut off half-way.
                self.is_leaving = True

    def end(self, result: Any) -> None:
        """It has ended, with a value or a Failure: settle it if it is still open, and free its
        slot."""
        if type(result) is CoroutineType:
            result = self._refused(result)
        pool = self.pool
        returned_deferred = is_subtype(Deferred, type(result))  # is_deferred(), but faster
        try:
            outcome = "failed" if isinstance(result, Failure) else "completed"
        except BaseException as e:  # a proxy of what is not there: no Deferred could fire with it
            result, outcome, returned_deferred = _failure_of(e), "failed", False
        if self.outcome is None:
            if self.lender is None:
                pool._running -= 1
            else:
                pool._queued -= 1
            if returned_deferred:
                # Its own time goes on until that one has fired; its slot does not.
                self.settle("completed")
                self._inner = result
                pool._unfired.add(self)
                add_both(result, lambda value: pool._runtime.deliver(self.fire, value))
            else:
                self.outcome = outcome
                pool._outcomes[outcome] += 1
                if self._deadline is not None:
                    self.stop_clock()
                assert pool._bound_to is not None
                pool._bound_to.deliver(self.fire, result)
        else:  # nobody hears it any more
            if self.state == ENDED:
                return  # it was lost with its hub, and is garbage now: see Pool._take_all()
            if self.lender is None:
                pool._lingering -= 1
            if returned_deferred:
                add_both(result, lambda _: None)
                if not self.was_abandoned:
                    cancel_quietly(result)
        pool._finish(self)
        if self._inner is not None and is_call(self._inner):
            try:
                wait_begins(self, self._inner)
            except WouldDeadlock:
                pool._runtime.deliver(self.fire, Failure())

    def _refused(self, coroutine: CoroutineType[Any, Any, Any]) -> Failure:
        """What it ends with in place of a coroutine."""
        try:
            coroutine.close()
        except BaseException:
            pass  # it would not be closed, or fails at that; it is refused all the same
        error = f"{self.name} is async already: it returned a coroutine, which nobody awaits. "
        return Failure(TypeError(f"{error}Use Deferred.fromCoroutine(f()) instead."))

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
        self.pool._give_up(self, "timed_out", timeouts.on_expiry or "kill")
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
            self.pool._is_unfired_no_more(self)
            if isinstance(result, Failure):
                self.settle("failed")
        if self.observer is not None:
            self.report()
        self.callback(result)

    def refuse(self, failure: Failure) -> None:
        """Fail at once: it never runs."""
        self.errback(failure)

    def report(self) -> None:
        """Tell the hooks, once, that it ends."""
        observer, self.observer = self.observer, None
        if observer is not None and self.outcome is not None:
            observer.ended(self.outcome)

    def forget(self) -> None:
        """Let go of what only a call that may still run needs."""
        self.carried_by = self._ingredients = None


def _failure_of(e: BaseException) -> Failure:
    """A Failure with `e`, but without the frame that has caught it: no cycle, please."""
    tb = e.__traceback__
    assert tb is not None
    return failed_with(e.with_traceback(tb.tb_next))


def _cancel(call: Deferred[Any]) -> None:
    """What ``Deferred.cancel()`` calls; afterwards it fires the call with CancelledError."""
    assert isinstance(call, Call)
    call.pool._give_up(call, "cancelled", call._on_cancel)
    call.report()


def _share_attributes() -> None:
    """Have the first of all calls live its life.

    CPython keeps the names of attributes once for all instances of a class, but only those that
    its first dozen of instances had (PEP 412; ``init_inline_values`` in Objects/dictobject.c).
    Where more calls than that are made before one fires, each would have a dict of its own.
    """
    first: Any = Call(cast(Any, None), bool, (), {}, None, "kill")
    first.addCallback(bool)
    first.forget()
    first.callback(None)


_share_attributes()


class Pool:
    """How many calls run at once, and what happens to the others.

    This is what all pools have in common, and the type of whatever takes any of them: make a
    :class:`GreenPool`, say. A pool may be made before the reactor is installed, at the top of a
    module for instance. It belongs to the reactor of its first call.

    :param size: how many calls run at once.
    :param max_queued: how many more may wait for a slot; ``None`` is no bound, ``0`` none.
    :param name: what it is called in messages.
    :param around: returns a context manager, which each call is made inside of.
    :raises TypeError: `size` or `max_queued` is not a whole number, `name` is not a string, or
        `around` is not callable.
    :raises ValueError: `size` is below 1, or `max_queued` below 0.
    """

    _host: Call | None = None
    """The call that this pool's calls run inside of, if it is a worker of another pool."""

    def __init__(
        self,
        size: int = 100,
        *,
        max_queued: int | None = None,
        name: str | None = None,
        around: Around | None = None,
    ) -> None:
        what = type(self).__name__
        check_count(f"{what}(size=...)", size, 1)
        check_count(f"{what}(max_queued=...)", max_queued, 0, none="no bound")
        check_name(f"{what}(name=...)", name)
        check_around(f"{what}(around=...)", around)
        self._around = around
        self._name = name
        self._max_queued = max_queued
        self._size = size
        self._bound_to: Runtime | None = None
        self._carrier: Carrier
        self._queue: OrderedDict[Call, None] = OrderedDict()
        self._active: set[Call] = set()
        # They have ended, but a Deferred that they have returned has not fired.
        self._unfired: set[Call] = set()
        self._submitted = self._running = self._lingering = self._queued = 0
        self._outcomes = dict.fromkeys(
            ("completed", "failed", "cancelled", "timed_out", "rejected"), 0
        )
        self._closed = False
        self._closers: list[Deferred[None]] = []
        self._wait_for_unfired: list[Deferred[None]] = []

    @property
    def name(self) -> str | None:
        """What it is called in messages. It may be set.

        :raises TypeError: it is set to what is neither a string nor ``None``.
        """
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        check_name(f"{type(self).__name__}.name", name)
        self._name = name

    @property
    def max_queued(self) -> int | None:
        """How many calls may wait for a slot; ``None`` is no bound. It may be set at any time, and
        counts for calls that are made later: those that wait already do so.

        :raises TypeError: it is set to what is neither a whole number nor ``None``.
        :raises ValueError: it is set below 0.
        """
        return self._max_queued

    @max_queued.setter
    def max_queued(self, max_queued: int | None) -> None:
        check_count(f"{type(self).__name__}.max_queued", max_queued, 0, none="no bound")
        self._max_queued = max_queued

    @property
    def around(self) -> Around | None:
        """Returns what each call is made inside of. It may be set at any time, and counts for calls
        that begin later.

        :raises TypeError: it is set to what is not callable.
        """
        return self._around

    @around.setter
    def around(self, around: Around | None) -> None:
        check_around(f"{type(self).__name__}.around", around)
        self._around = around

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name is not None else ""
        on = f" on {self._carrier.kind}" if self._bound_to is not None else ""
        return (
            f"<{type(self).__name__}{name}{on} size={self._size} running={self._running} "
            f"lingering={self._lingering} queued={self._queued}>"
        )

    def _make_carrier(self, runtime: Runtime) -> Carrier:
        raise NotImplementedError

    def _check_timeouts(self, timeouts: Timeouts | None) -> None:
        """Refuse what these calls can't be held to.

        :raises ValueError: ``on_expiry="kill"``, where nothing can be killed.
        """

    @property
    def size(self) -> int:
        """How many calls may run at once."""
        return self._size

    def submit(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run ``f(*args, **kwargs)`` when a slot is free.

        :returns: a Deferred of its result, which fires in the reactor's greenlet. If the pool is
            full or closed it has failed already, with :class:`PoolFull` or :class:`PoolClosed`.
            Cancelling it ends the call: a queued one never starts, a running one is killed where
            it can be (a greenlet), else abandoned. If
            `f` returns a Deferred, that is waited for; a coroutine is refused (TypeError).
        :raises TypeError: `f` is not callable.
        :raises GreendeferError: no reactor is installed, or this is not its thread.
        """
        check_is_callable("submit(f, ...)", f)
        return self._call(f, args, kwargs, None, "kill")

    def stats(self) -> PoolStats:
        """:returns: how the pool stands now: a :class:`PoolStats`."""
        from ._stats import PoolStats

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
        runtime = self._bound_to
        if runtime is None:  # never had a call
            closed: Deferred[None] = Deferred()
            if (runtime := runtime_if_any()) is None:
                closed.callback(None)
            else:
                runtime.deliver(closed.callback, None)
            return closed
        self._reject_queued(runtime)
        idle = self._when_idle()
        if grace == 0:
            self._kill_all(idle)
        elif grace is not None and self._active:
            deadline = runtime.deadlines.at(runtime.now() + grace, partial(self._kill_all, idle))
            idle.addCallback(_stop_deadline, deadline)
        closed = Deferred()  # whoever cancels it does not wait, but the grace is what it was
        idle.chainDeferred(closed)
        return closed

    def _reject_queued(self, runtime: Runtime) -> None:
        """Fail the calls in the queue, as in :meth:`close`."""
        for call in list(self._queue):
            self._remove_from_queue(call)
            call.settle("rejected")
            self._finish(call)
            runtime.deliver(call.fire, CLOSED)

    def _forked(self) -> None:
        """This is a child process: what its parent's threads run is lost to it. What waits in the
        queue was not begun, and has its turn."""
        if not self._carrier.outlives_fork:
            lost = list(self._active)
            self._carrier = self._make_carrier(self._runtime)
            why = (
                "ran in a thread or a process when this process was forked from another: it runs "
                "on for that one only. Fork first."
            )
            # After the results that were on their way.
            self._runtime.deliver(lambda _: self._lose(lost, why), None)

    def _take_all(self) -> list[Call]:
        """All its calls, of which none is queued any more: their hub was destroyed, and they are
        about to be lost."""
        calls = [*self._queue, *self._active]
        for call in self._queue:
            call.state = READY
        self._running += len(self._queue)
        self._queued -= len(self._queue)
        self._queue.clear()
        return calls

    def _lose(self, calls: list[Call], why: str) -> None:
        for call in calls:
            if call.outcome is None:
                self._give_up(call, "failed", "abandon")
                error = GreendeferError(f"{call.name} {why}")
                self._runtime.deliver(call.fire, Failure(error))
            if call.state != ENDED:
                if call.lender is None:
                    self._lingering -= 1
                self._finish(call)

    def _reactor_stopped(self) -> None:
        """Nothing can be delivered any more: let go of threads that wait for calls."""
        self._carrier.stop()

    # From here on: what happens to one call.

    @property
    def _runtime(self) -> Runtime:
        assert self._bound_to is not None
        return self._bound_to

    def _find_runtime(self) -> Runtime:
        """Where a call that is made now belongs: to the reactor that is installed.

        :raises GreendeferError: none is, or this is not its thread.
        """
        return runtime_here()

    def _bind(self) -> Runtime:
        """Belong there from now on."""
        runtime = self._find_runtime()
        if runtime is not self._bound_to:
            if self._active or self._queue:
                raise GreendeferError(
                    f"{self!r} has calls on a reactor that is no longer the installed one; they "
                    "will never end. Make a new pool for the new reactor."
                )
            self._carrier = self._make_carrier(runtime)
            self._bound_to = runtime
            runtime.pools.add(self)
            self._closed = self._closed or runtime.stopped
        return runtime

    def _call(
        self,
        f: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeouts: Timeouts | None,
        on_cancel: OnCancel,
    ) -> Call:
        return self._admit(Call(self, f, args, kwargs, timeouts, on_cancel))

    def _admit(self, call: Call) -> Call:
        """Start `call`, queue it, or refuse it."""
        runtime = self._bound_to
        if runtime is None or not runtime.is_here():
            runtime = self._bind()
        timeouts = call._timeouts
        self._submitted += 1
        if observe is not None:
            call.observer = observe(call)
        if self._closed:
            self._reject(call, call.closed_error())
            return call
        if timeouts is not None and timeouts.total is not None:
            call._total_at = runtime.now() + timeouts.total
        if self._running + self._lingering < self._size and not self._queue:
            self._running += 1
            self._start(call)
        elif self._max_queued is None or self._queued < self._max_queued:
            self._queue[call] = None
            self._queued += 1
            if timeouts is not None:
                call._set_deadline(timeouts.queued)
        else:
            error = f"{call.name}: all slots of {self!r} are taken, and max_queued is "
            self._reject(call, PoolFull(f"{error}{self._max_queued}"))
        return call

    def _reject(self, call: Call, error: Exception) -> None:
        call.state = ENDED
        call.settle("rejected")
        call.forget()
        call.report()
        call.refuse(Failure(error))

    def _start(self, call: Call) -> None:
        call.state = READY
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
        if (self._closers or self._closed) and not self._active:
            self._all_have_ended()

    def _all_have_ended(self) -> None:
        """No call holds a slot, or waits for one."""
        self._fire_all(self._closers)
        if self._closed:
            self._retire()

    def _retire(self) -> None:
        """There will be no calls any more: let go of what only they need. Maybe more than once."""

    def _give_up(self, call: Call, outcome: str, how: OnCancel) -> None:
        """`call` is about to fire with an error: end it, or let it linger."""
        call.stop_clock()
        if how == "abandon":
            call.was_abandoned = True
        if call.outcome is not None:  # its result is on the way, or it returned a Deferred
            call.settle(outcome)
            inner, call._inner = call._inner, None
            if inner is not None:
                self._is_unfired_no_more(call)
                if how == "kill":
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
        if how == "kill" and self._carrier.can_kill:
            self._kill(call)

    def _when_idle(self) -> Deferred[None]:
        """A Deferred for when no call holds a slot, or waits for one."""
        idle: Deferred[None] = Deferred()
        self._closers.append(idle)
        if not self._active:
            self._all_have_ended()
        return idle

    def _is_unfired_no_more(self, call: Call) -> None:
        """The Deferred that `call` returned has fired, or nobody waits for it any more."""
        self._unfired.discard(call)
        if not self._unfired:
            self._fire_all(self._wait_for_unfired)

    def _when_all_fired(self) -> Deferred[None]:
        """A Deferred for when no Deferred is left to fire that a call has returned."""
        fired: Deferred[None] = Deferred()
        if self._unfired:
            self._wait_for_unfired.append(fired)
        else:
            fired.callback(None)
        return fired

    def _kill_all(self, closed: Deferred[None] | None = None) -> None:
        """Kill what still runs when the grace of :meth:`close` is over, and fire `closed`. Calls
        that were killed before are not killed again."""
        for call in list(self._active):
            self._end_now(call)
        if closed in self._closers:  # others wait for the real end
            self._closers.remove(closed)
            self._runtime.deliver(closed.callback, None)

    def _end_now(self, call: Call) -> None:
        """Kill a call whose time is over, unless it was killed already, or has ended. Where it
        can't be, its Deferred fires all the same."""
        if call in self._unfired:
            self._runtime.deliver(call.fire, CLOSED)  # before what comes of it if it is cancelled
            self._give_up(call, "cancelled", "kill")
        elif call not in self._active:
            return
        elif call.outcome is None:
            self._give_up(call, "cancelled", "kill")
            self._runtime.deliver(call.fire, CLOSED)
        elif not call.was_killed and self._carrier.can_kill:
            self._kill(call)

    def _kill(self, call: Call) -> None:
        call.was_killed = True
        self._carrier.kill(call)

    def _fire_all(self, waiting: list[Deferred[None]]) -> None:
        now, waiting[:] = waiting[:], []  # whoever hears of it may wait again
        for d in now:
            self._runtime.deliver(d.callback, None)

    # For shutdown, and for lending.

    @property
    def _is_closed(self) -> bool:
        """Does it take no more calls?"""
        return self._closed

    @property
    def _can_kill(self) -> bool:
        """Can a running call be ended from outside?"""
        return self._carrier.can_kill

    @property
    def _can_nest(self) -> bool:
        """Can a call run while another one waits for it in the same slot?"""
        return self._carrier.can_nest

    def _active_calls(self) -> list[Call]:
        """The calls that hold a slot."""
        return list(self._active)

    def _unfired_calls(self) -> list[Call]:
        """The calls that have returned a Deferred which has not fired."""
        return list(self._unfired)

    def _start_in_slot_of(self, lender: Call, call: Call) -> None:
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


is_subtype: Callable[[type, type], bool] = type.__subclasscheck__
"""``issubclass()`` with its arguments the other way round, which asks nobody. A result's class may
have a class of its own: a query builder's, say, whose ``__eq__`` makes a condition, which is true.
So ``in __mro__`` would not do."""


def is_deferred(result: object) -> TypeGuard[Deferred[Any]]:
    """``isinstance(result, Deferred)``, which would ask an abstract base class, and takes ten
    times as long."""
    return is_subtype(Deferred, type(result))


def is_failure(result: object) -> TypeGuard[Failure]:
    """``isinstance(result, Failure)``, of what may raise if it is asked for its class."""
    return is_subtype(Failure, type(result))


def is_call(d: Deferred[Any]) -> TypeGuard[Call]:
    """The same for calls."""
    return is_subtype(Call, type(d))


def current_call() -> Call | None:
    """The call that the current greenlet, or the current thread outside of any, runs."""
    return getattr(getcurrent(), "greendefer_call", None)


def add_both(d: Deferred[Any], callback: Callable[[Any], object]) -> None:
    """``d.addBoth(callback)``. Where that of a subclass raises, `callback` gets what it raised:
    maybe once more, later."""
    try:
        d.addBoth(callback)
    except BaseException as e:
        callback(_failure_of(e))


def cancel_quietly(d: Deferred[Any]) -> None:
    """Cancel `d`, whatever its canceller does; what that raises is logged."""
    try:
        d.cancel()
    except BaseException:  # of whatever kind: there is a Deferred yet to be fired, or a greenlet
        _log.failure("The canceller of {d!r} failed", d=d)
