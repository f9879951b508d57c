"""Between Deferreds and greenlets: waiting for the one in the other."""

from __future__ import annotations

from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

import gevent
from gevent.exceptions import LoopExit
from gevent.hub import Waiter
from greenlet import GreenletExit, getcurrent, greenlet
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ._admission import (
    Call,
    add_both,
    cancel_quietly,
    current_call,
    is_call,
    is_deferred,
    is_subtype,
)
from ._carriers.greenlets import Kill
from ._errors import CallTimeout, GreendeferError, WouldDeadlock, failed_with, shown
from ._lending import borrower_of, wait_begins, wait_ends
from ._policy import check_seconds
from ._runtime import GreenRuntime, green_runtime_here, runtime_here

T = TypeVar("T")


def wait_for_deferred(d: Deferred[T], timeout: float | None = None) -> T:
    """Wait in this greenlet until `d` fires, while the reactor and other greenlets go on.

    The result passes through: a second waiter, or a callback added later, sees the same one. A
    failure counts as handled once it was raised here.

    A call that waits for another one that is still queued on the same pool lends it its slot
    meanwhile, so this never deadlocks; the wait then ends when that call has really ended.

    :param d: a Deferred of the current thread's reactor.
    :param timeout: seconds after which `d` is cancelled; ``None`` is no limit.
    :returns: the result of `d`.
    :raises CallTimeout: `d` did not fire in time.
    :raises WouldDeadlock: this is the reactor's own greenlet, or gevent's hub; or the installed
        reactor does not run on that; or nobody is left to fire `d`; or `d` is a call that waits for
        this one.
    :raises GreendeferError: no reactor is installed, or it has stopped and `d` has not fired; or
        this is not its thread: there, use :func:`blocking_from_greenlet`.
    :raises TypeError: `d` is not a Deferred, or `timeout` not a number.
    :raises ValueError: `timeout` is negative or NaN.
    :raises BaseException: whatever `d` failed with, with its original traceback. If this
        greenlet is killed meanwhile, `d` is cancelled.
    """
    check_seconds("wait_for_deferred(timeout=...)", timeout)
    if not is_deferred(d):
        raise TypeError(
            f"wait_for_deferred(d) needs a Deferred, not {shown(d)}. For a coroutine or a "
            "function, use blocking_from_greenlet."
        )
    result: T = wait_in(runtime_to_wait_in(), d, timeout)
    return result


def runtime_to_wait_in() -> GreenRuntime:
    """The runtime of the installed reactor, for a greenlet of its thread that may wait.

    :raises WouldDeadlock: the current greenlet is one that must not wait.
    :raises GreendeferError: as :func:`~greendefer._runtime.runtime_here`.
    """
    runtime = runtime_here()
    if not isinstance(runtime, GreenRuntime):
        raise WouldDeadlock(
            "This is the reactor's own thread, and the installed reactor, "
            f"{type(runtime.reactor).__name__}, does not run on gevent's hub: while anything waits "
            "here, nothing can fire. Use the Deferred itself (addCallback, or await it in an "
            "async def), or run this function elsewhere: decorate it with @green_deferred, or "
            "call defer_to_greenlet(f, ...)."
        )
    refuse_to_wait_in(getcurrent(), runtime)
    return runtime


def refuse_to_wait_in(current: greenlet, runtime: GreenRuntime) -> None:
    """
    :raises WouldDeadlock: `current` is a greenlet that must not wait.
    """
    if current is runtime.wait.greenlet:
        raise WouldDeadlock(
            "This is the reactor's own greenlet: while it waits here, nothing can fire. Use the "
            "Deferred itself (addCallback, or await it in an async def), or run this function in "
            "a greenlet: decorate it with @green_deferred, or call defer_to_greenlet(f, ...)."
        )
    if current is runtime.hub:
        raise WouldDeadlock(
            "This is gevent's hub, which runs the loop: it must not wait. Run this function in a "
            "greenlet: gevent.spawn(f), or defer_to_greenlet(f, ...)."
        )


class _Wait:
    """One greenlet that waits for one Deferred."""

    __slots__ = (
        "_waiter",
        "d",
        "fired",
        "given_up",
        "over",
        "result",
        "runtime",
        "tb",
        "timed_out",
    )

    def __init__(self, runtime: GreenRuntime, d: Deferred[Any]) -> None:
        self.runtime = runtime
        self.d = d
        self.fired = self.timed_out = self.over = self.given_up = False
        self.result: Any = None
        self.tb: TracebackType | None = None
        self._waiter: Any = None

    def fire(self, result: Any) -> Any:
        self.fired = self.over = True
        if not self.given_up:
            self.result = result
            if isinstance(result, Failure):
                self.tb = result.tb
            self.resume()
        return result

    def expire(self) -> None:
        if not self.fired:
            self.timed_out = self.over = True
            cancel_quietly(self.d)
            self.resume()

    def reactor_stopped(self) -> None:
        self.over = True
        self.resume()

    def hub_is_gone(self) -> None:
        """Nobody goes on here any more."""
        self._waiter = None

    def give_up(self) -> None:
        """The waiting greenlet is killed: cancel what it waited for, in the reactor's greenlet."""
        self.given_up = True

        def cancel(d: Deferred[Any] = self.d) -> None:
            cancel_quietly(d)
            _handled(d)

        if self.runtime.stopped:
            cancel()
        else:
            self.runtime.call_soon(cancel)

    def resume(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self.runtime.loop.run_callback(waiter.switch, None)

    def park(self) -> None:
        """Until :meth:`resume` is called."""
        waiter: Waiter[None] = Waiter(self.runtime.hub)
        self._waiter = waiter
        try:
            waiter.get()
        finally:
            self._waiter = None


def wait_in(runtime: GreenRuntime, d: Deferred[T], timeout: float | None) -> T:
    if d.called and not d.paused and not d._runningCallbacks:
        value = d.result  # which is what a callback would be called with, at once
        if not isinstance(value, Failure):
            return value  # type: ignore[return-value]
    wait = _Wait(runtime, d)
    d.addBoth(wait.fire)
    if not wait.fired:
        _park(wait, timeout)
    result = wait.result
    if wait.timed_out:
        _handled(d)
        raise CallTimeout(f"The wait for {shown(d)} took longer than {timeout} s")
    if not wait.fired:
        raise GreendeferError(f"The reactor has stopped, and {shown(d)} has not fired")
    if isinstance(result, Failure):
        _handled(d)
        assert result.value is not None
        try:
            raise result.value.with_traceback(wait.tb)
        finally:
            # The traceback has this frame: no cycle, please.
            del result, wait
    return result  # type: ignore[no-any-return]


def _park(wait: _Wait, timeout: float | None) -> None:
    runtime = wait.runtime
    if runtime.stopped:
        return
    me = current_call()
    if me is not None and is_call(wait.d):
        wait_begins(me, wait.d)
    deadline = None
    if timeout is not None:
        deadline = runtime.deadlines.at(monotonic() + timeout, wait.expire)
    runtime.waits.add(wait)
    interrupted: BaseException | None = None
    try:
        while not wait.over:
            wait.park()
    except BaseException as e:  # this greenlet is killed, or timed out by gevent.Timeout
        interrupted = e
        wait.give_up()
    runtime.waits.discard(wait)
    if deadline is not None:
        deadline.cancel()
    if me is not None:
        if me.waits_for is not None:
            wait_ends(me)
        interrupted = _take_back_slot(wait, me, interrupted)
        if interrupted is not None:
            _handled(wait.d)  # it may have failed already; something else is raised here
    if interrupted is None:
        return
    try:
        if isinstance(interrupted, LoopExit):
            raise WouldDeadlock(
                f"Nobody is left who could fire {shown(wait.d)}: no reactor runs in this "
                "thread yet. (react() calls its function before it starts the reactor.) In a "
                "coroutine, await the Deferred; in blocking code, wait in a greenlet, while "
                "reactor.run() or react() runs."
            ) from None
        raise interrupted
    finally:
        del interrupted


def _take_back_slot(
    wait: _Wait, me: Call, interrupted: BaseException | None
) -> BaseException | None:
    """Wait until the call that runs in our slot has ended.

    :returns: what to raise afterwards: the first that was thrown into this greenlet, but a kill
        before anything else.
    """
    while (borrower := borrower_of(me)) is not None:
        borrower.when_ended = wait.resume
        try:
            wait.park()
        except BaseException as e:
            if interrupted is None or isinstance(e, Kill):
                interrupted = e
    return interrupted


def _handled(d: Deferred[Any]) -> None:
    """The failure in `d` was raised where somebody waited for it: it needs no "Unhandled error
    in Deferred". A callback that is added later still gets it."""
    debug_info = d._debugInfo
    if debug_info is not None:
        debug_info.failResult = None


def wait_for_greenlet(g: gevent.Greenlet[..., T]) -> Deferred[T]:
    """A Deferred for a greenlet that somebody else spawned.

    :returns: a Deferred that fires in the reactor's greenlet with what `g` returns (if that is a
        Deferred, with its result), or fails with what it raises; with its GreenletExit, if it was
        killed. Cancelling the Deferred ends the waiting, not the greenlet.
    :raises TypeError: `g` is not a gevent.Greenlet.
    :raises GreendeferError: no green reactor is installed, this is not its thread, or `g` runs on
        the hub of another one.
    """
    if not isinstance(g, gevent.Greenlet):
        raise TypeError(
            "wait_for_greenlet(g) needs a gevent.Greenlet, as gevent.spawn() returns, not "
            f"{shown(g)}"
        )
    runtime = green_runtime_here()
    if g.loop is not runtime.loop:
        raise GreendeferError(f"{shown(g)} runs on the hub of another thread than the reactor's")
    d: Deferred[T] = Deferred(lambda _: g.unlink(ended))

    def ended(_: object) -> None:  # in the hub
        runtime.call_soon(fire)

    def fire() -> None:
        if d.called:
            return
        value: Any = g.value
        if not g.successful():
            d.errback(failed_with(g.exc_info[1]))  # type: ignore[index]
        elif is_subtype(GreenletExit, type(value)):
            d.errback(Failure(value))
        elif is_deferred(value):
            add_both(value, lambda value: None if d.called else d.callback(value))
        else:
            try:
                isinstance(value, Failure)
            except BaseException as e:  # a proxy of what is not there: it can't fire with that
                value = failed_with(e)
            d.callback(value)

    g.rawlink(ended)
    return d
