"""Between Deferreds and greenlets: waiting for the one in the other."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from inspect import iscoroutine
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

import gevent
from gevent import monkey
from gevent._hub_local import get_hub_if_exists
from gevent.exceptions import LoopExit
from gevent.hub import Waiter
from greenlet import GreenletExit, getcurrent
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from .admission import ENDED, QUEUED, Call
from .carriers.greenlets import current_call
from .deadlines import Deadline
from .errors import CallTimeout, GreendeferError, WouldDeadlock
from .home import Home, home_here, installed_reactor, is_reactor_thread
from .policy import check_seconds

T = TypeVar("T")

_native_lock: Callable[[], Any] = monkey.get_original("_thread", "allocate_lock")


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
    :raises WouldDeadlock: this is the reactor's own greenlet, or nobody is left to fire `d`.
    :raises GreendeferError: this is not the reactor's thread: there, use
        :func:`blocking_from_greenlet`.
    :raises TypeError: `d` is not a Deferred, or `timeout` not a number.
    :raises ValueError: `timeout` is negative or NaN.
    :raises BaseException: whatever `d` failed with, with its original traceback. If this
        greenlet is killed meanwhile, `d` is cancelled.
    """
    check_seconds("wait_for_deferred(timeout=...)", timeout)
    if not isinstance(d, Deferred):
        raise TypeError(
            f"wait_for_deferred(d) needs a Deferred, not {d!r}. For a coroutine or a function, "
            "use blocking_from_greenlet."
        )
    home = home_here()
    refuse_to_deadlock(home)
    return _wait(home, d, timeout)


def refuse_to_deadlock(home: Home) -> None:
    """
    :raises WouldDeadlock: the current greenlet is one that must not wait.
    """
    current = getcurrent()
    if current is home.greenlet:
        raise WouldDeadlock(
            "This is the reactor's own greenlet: while it waits here, nothing can fire. Use the "
            "Deferred itself (addCallback, or await it in an async def), or run this function in "
            "a greenlet: decorate it with @green_deferred, or call defer_to_greenlet(f, ...)."
        )
    if current is home.hub:
        raise WouldDeadlock(
            "This is gevent's hub, which runs the loop: it must not wait. Run this function in a "
            "greenlet: gevent.spawn(f), or defer_to_greenlet(f, ...)."
        )


class _Wait:
    """One greenlet that waits for one Deferred."""

    __slots__ = ("_waiter", "d", "fired", "home", "result", "tb", "timed_out")

    def __init__(self, home: Home, d: Deferred[Any]) -> None:
        self.home = home
        self.d = d
        self.fired = False
        self.timed_out = False
        self.result: Any = None
        self.tb: TracebackType | None = None
        self._waiter: Any = None

    def fire(self, result: Any) -> Any:
        self.fired = True
        self.result = result
        if isinstance(result, Failure):
            self.tb = result.tb
        self.resume()
        return result

    def expire(self) -> None:
        if not self.fired:
            self.timed_out = True
            self.d.cancel()
            self.resume()

    def resume(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self.home.loop.run_callback(waiter.switch, None)

    def park(self) -> None:
        """Until :meth:`resume` is called."""
        waiter: Waiter[None] = Waiter(self.home.hub)
        self._waiter = waiter
        try:
            waiter.get()
        finally:
            self._waiter = None


def _wait(home: Home, d: Deferred[T], timeout: float | None) -> T:
    wait = _Wait(home, d)
    d.addBoth(wait.fire)
    if not wait.fired:
        _park(wait, timeout)
    result = wait.result
    if wait.timed_out:
        _handled(d)
        raise CallTimeout(f"The wait for {d!r} took longer than {timeout} s")
    if isinstance(result, Failure):
        _handled(d)
        assert result.value is not None
        raise result.value.with_traceback(wait.tb)
    return result  # type: ignore[no-any-return]


def _park(wait: _Wait, timeout: float | None) -> None:
    d = wait.d
    deadline: Deadline | None = None
    if timeout is not None:
        deadline = wait.home.deadlines.at(monotonic() + timeout, wait.expire)
    me = current_call()
    if me is not None and isinstance(d, Call):
        d.waited_by = me
        if d.state == QUEUED:
            d.pool.start_in_slot_of(me, d)
    try:
        while not (wait.fired or wait.timed_out):
            wait.park()
    except LoopExit:
        raise WouldDeadlock(
            f"Nobody is left who could fire {d!r}: no reactor runs in this thread. Start it with "
            "reactor.run(), and wait in a greenlet."
        ) from None
    except BaseException:  # this greenlet is killed, or timed out by gevent.Timeout
        wait.fired = True  # whatever comes now, nobody hears it
        d.cancel()
        _handled(d)
        raise
    finally:
        if deadline is not None:
            deadline.cancel()
        if me is not None:
            if isinstance(d, Call):
                d.waited_by = None
            _take_back_slot(wait, me)


def _take_back_slot(wait: _Wait, me: Call) -> None:
    """Wait until the call that runs in our slot has ended."""
    lender: Call | None = me
    while lender is not None:
        borrower = lender.borrower
        if borrower is not None and borrower.state != ENDED:
            borrower.when_ended = wait.resume
            killed: BaseException | None = None
            while borrower.state != ENDED:
                try:
                    wait.park()
                except BaseException as e:
                    killed = e
            if killed is not None:
                raise killed
        lender = lender.pool.host


def _handled(d: Deferred[Any]) -> None:
    """The failure in `d` was raised where somebody waited for it: it needs no "Unhandled error
    in Deferred". A callback that is added later still gets it."""
    debug_info = d._debugInfo
    if debug_info is not None:
        debug_info.failResult = None


def wait_for_greenlet(g: gevent.Greenlet[..., T]) -> Deferred[T]:
    """A Deferred for a greenlet that somebody else spawned.

    :returns: a Deferred that fires in the reactor's greenlet with what `g` returns, or fails with
        what it raises; with its GreenletExit, if it was killed. Cancelling the Deferred ends the
        waiting, not the greenlet.
    :raises TypeError: `g` is not a gevent.Greenlet.
    :raises GreendeferError: no green reactor is installed, this is not its thread, or `g` runs on
        the hub of another one.
    """
    if not isinstance(g, gevent.Greenlet):
        raise TypeError(
            f"wait_for_greenlet(g) needs a gevent.Greenlet, as gevent.spawn() returns, not {g!r}"
        )
    home = home_here()
    if g.loop is not home.loop:
        raise GreendeferError(f"{g!r} runs on the hub of another thread than the reactor's")
    d: Deferred[T] = Deferred(lambda _: g.unlink(ended))

    def ended(_: object) -> None:  # in the hub
        home.call_soon(fire)

    def fire() -> None:
        if d.called:
            return
        if not g.successful():
            d.errback(Failure(g.exc_info[1], g.exc_info[0], g.exc_info[2]))  # type: ignore[index]
        elif isinstance(g.value, GreenletExit):
            d.errback(Failure(g.value))
        else:
            d.callback(g.value)  # type: ignore[arg-type]

    g.rawlink(ended)
    return d


def call_and_wait(f: Callable[[], Any], timeout: float | None) -> Any:
    """Call `f` in the reactor's thread, and wait here for the result of what it returns."""
    reactor = installed_reactor()
    if not is_reactor_thread(reactor):
        return _call_in_thread_of(reactor, f, timeout)
    home = home_here()
    refuse_to_deadlock(home)
    result = _as_deferred(f())
    return _wait(home, result, timeout) if isinstance(result, Deferred) else result


def _as_deferred(result: Any) -> Any:
    return Deferred.fromCoroutine(result) if iscoroutine(result) else result


def _call_in_thread_of(reactor: Any, f: Callable[[], Any], timeout: float | None) -> Any:
    """From another thread: it sleeps, or, if it has a hub of its own, its other greenlets go on."""
    outcome: list[tuple[Any, TracebackType | None]] = []
    running: list[Deferred[Any]] = []
    wake, sleep = _thread_sleeper()
    context = copy_context()

    def call() -> Any:
        return _as_deferred(context.run(f))

    def start() -> None:
        d: Deferred[Any] = maybeDeferred(call)
        running.append(d)
        d.addBoth(finish)

    def finish(result: Any) -> None:
        outcome.append((result, result.tb if isinstance(result, Failure) else None))
        wake()

    def cancel() -> None:
        for d in running:
            d.cancel()

    reactor.callFromThread(start)
    try:
        in_time = sleep(timeout)
    except BaseException:
        reactor.callFromThread(cancel)
        raise
    if not in_time:
        reactor.callFromThread(cancel)
        raise CallTimeout(f"The wait for the reactor's thread took longer than {timeout} s")
    result, tb = outcome[0]
    if isinstance(result, Failure):
        assert result.value is not None
        raise result.value.with_traceback(tb)
    return result


def _thread_sleeper() -> tuple[Callable[[], object], Callable[[float | None], bool]]:
    """How this thread waits for another one: ``wake()`` is for that one, and thread-safe;
    ``sleep(timeout)`` is for this one, and tells whether it was woken in time."""
    hub = get_hub_if_exists()
    if hub is None or getcurrent() is hub:
        lock = _native_lock()
        lock.acquire()
        return lock.release, lambda timeout: bool(
            lock.acquire(timeout=-1 if timeout is None else timeout)
        )
    woken: Any = hub.loop.async_()

    def sleep(timeout: float | None) -> bool:
        with woken, gevent.Timeout(timeout, False):  # type: ignore[arg-type]  # as documented
            hub.wait(woken)
            return True
        return False

    return woken.send, sleep
