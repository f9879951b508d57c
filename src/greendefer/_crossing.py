"""Waiting for what the reactor does, wherever one is: in its thread, or in another one."""

from __future__ import annotations

import sys
from _queue import Empty
from collections.abc import Callable
from contextvars import copy_context
from inspect import iscoroutine
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import gevent
from gevent._hub_local import get_hub_if_exists
from gevent.hub import Waiter
from greenlet import getcurrent
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ._admission import Call, add_both, cancel_quietly, current_call, is_deferred, is_failure
from ._bridge import refuse_to_wait_in, runtime_to_wait_in, wait_in
from ._carriers.greenlets import Kill
from ._carriers.native import Mailbox
from ._deadlines import LONGEST_SLEEP
from ._errors import CallTimeout, GreendeferError, WouldDeadlock, failed_with
from ._lending import borrower_of, wait_begins, wait_ends
from ._reactor.installed import has_stopped, installed_reactor, is_reactor_thread
from ._reactor.loops import LoopInbox
from ._runtime import GreenRuntime, runtime_here, runtime_if_any, runtime_if_made
from .shutdown import add_first_trigger

if TYPE_CHECKING:
    from ._runtime import Runtime


def _as_deferred(result: Any) -> Any:
    """What a function may return to be waited for, as a Deferred; a plain value as it is."""
    if type(result) is Deferred:
        return result
    if iscoroutine(result):
        return Deferred.fromCoroutine(result)
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio.isfuture(result):
        return Deferred.fromFuture(result)
    return result


def call_and_wait(f: Callable[[], Any], timeout: float | None) -> Any:
    """Call `f` in the reactor's thread, and wait here for the result of what it returns."""
    runtime = runtime_if_any()
    if isinstance(runtime, GreenRuntime):  # which knows its thread, patched or not
        refuse_to_wait_in(getcurrent(), runtime)
    else:
        reactor = installed_reactor()
        if not is_reactor_thread(reactor):
            return call_in_thread_of(reactor, f, timeout)
        runtime = runtime_to_wait_in()
    result = _as_deferred(f())
    return wait_in(runtime, result, timeout) if is_deferred(result) else result


def call_in_thread_of(reactor: Any, f: Callable[[], Any], timeout: float | None) -> Any:
    """Call `f` in the reactor's greenlet, and wait in this thread for the result. The thread
    sleeps, or, if it has a hub of its own, its other greenlets go on."""
    crossing = _Crossing(reactor, f)
    try:
        return crossing.wait(timeout)
    finally:
        crossing.sleeper.close()


class _Crossing:
    """One thread, or greenlet of another hub, that waits for what the reactor's thread does."""

    def __init__(self, reactor: Any, f: Callable[[], Any]) -> None:
        self._reactor = reactor
        self._f = f
        self._context = copy_context()
        # The call that waits here, if this is a worker of a pool. Its slot may be lent meanwhile.
        self._me = current_call()
        self._runtime: Runtime | None = None
        self._not_at_end: Callable[[], object] | None = None
        self._d: Deferred[Any] | None = None
        self._given_up = False
        self._result: Any = None
        self._tb: TracebackType | None = None
        self._has_result = False
        self._over = False
        self.sleeper: _Sleeper = _sleeper()

    # In the waiting thread.

    def wait(self, timeout: float | None) -> Any:
        runtime = self._runtime = runtime_if_made(self._reactor)
        if runtime is not None:
            runtime.waits.add(self)
        else:  # nobody would end this wait, if the reactor stopped before _start() has run
            self._not_at_end = add_first_trigger(self._reactor, "during", self.reactor_stopped)
        if has_stopped(self._reactor) or (runtime is not None and runtime.stopped):
            if runtime is not None:
                runtime.waits.discard(self)
            raise GreendeferError(
                "The reactor has stopped: what it is asked to call is never called"
            )
        interrupted: BaseException | None = None
        self._post(self._start)
        try:
            if not self._sleep_until_over(timeout):
                raise CallTimeout(f"The wait for the reactor's thread took longer than {timeout} s")
        except BaseException as e:  # this greenlet is killed, say
            interrupted = e
            self._post(self._give_up)
            # The call that runs in our slot must have ended, before we go on in it.
            while self._me is not None and not self._over and not has_stopped(self._reactor):
                try:
                    self._sleep_until_over(None)
                except BaseException as another:
                    if isinstance(another, Kill):
                        interrupted = another
        try:
            if interrupted is not None:
                raise interrupted
            result = self._result
            if is_failure(result):
                assert result.value is not None
                raise result.value.with_traceback(self._tb)
            return result
        finally:
            # The traceback has this frame: no cycle, please.
            interrupted = result = None
            self._result = self._tb = None

    def _sleep_until_over(self, timeout: float | None) -> bool:
        until = None if timeout is None else monotonic() + timeout
        while not self._over:
            left = None if until is None else max(0.0, until - monotonic())
            if left is not None and left > LONGEST_SLEEP:
                self.sleeper.sleep(LONGEST_SLEEP)
            elif not self.sleeper.sleep(left):
                return self._over
        return True

    def _post(self, f: Callable[[], None]) -> None:
        if self._me is None:
            self._reactor.callFromThread(f)
        else:
            # In line with what the worker has posted: it has begun.
            self._me.pool._runtime.deliver(lambda _: f(), None)

    # In the reactor's thread.

    def _start(self) -> None:
        if self._not_at_end is not None and not self._over:
            self._not_at_end()
        if self._over or self._given_up:
            return
        self._runtime = runtime = runtime_here()
        runtime.waits.add(self)
        try:
            result = self._context.run(lambda: _as_deferred(self._f()))
        except BaseException as e:
            result = failed_with(e)
        if not is_deferred(result):
            self._finish(result)
            return
        d = self._d = result
        if self._me is not None and isinstance(d, Call) and not d.called:
            try:
                wait_begins(self._me, d)
            except WouldDeadlock:
                self._finish(Failure())
                d.addErrback(lambda _: None)
                cancel_quietly(d)
                return
        add_both(d, self._finish)

    def _finish(self, result: Any) -> None:
        if not self._has_result:
            self._has_result = True
            if not self._given_up:
                self._result = result
                self._tb = result.tb if is_failure(result) else None
                self._go_on()

    def _give_up(self) -> None:
        self._given_up = True
        if self._d is not None:  # pragma: no branch - _start() was posted first, and has run
            cancel_quietly(self._d)
        self._go_on()

    def _go_on(self) -> None:
        """Wake the thread, or have it done when the call that runs in our slot has ended."""
        if self._me is not None:
            wait_ends(self._me)
            borrower = borrower_of(self._me)
            if borrower is not None:
                borrower.when_ended = self._go_on
                return
        self.reactor_stopped()

    def hub_is_gone(self) -> None:
        pass  # this thread has one of its own, or none

    def reactor_stopped(self) -> None:
        if not self._has_result:
            self._has_result = True
            self._result = Failure(
                GreendeferError("The reactor has stopped, and the result is not there")
            )
        self._over = True
        if self._runtime is not None:
            self._runtime.waits.discard(self)
        self.sleeper.wake()


class _Sleeper(Protocol):
    """How a thread waits for another one."""

    def wake(self) -> None:
        """For any thread, and once only."""

    def sleep(self, timeout: float | None) -> bool:
        """Until it is woken, or ``False`` if the time is up."""

    def close(self) -> None:
        """It sleeps no more."""


def _sleeper() -> _Sleeper:
    hub = get_hub_if_exists()
    if hub is None or getcurrent() is hub:
        return _NativeSleeper()
    return _HubSleeper(hub)


class _NativeSleeper:
    """The whole thread sleeps."""

    def __init__(self) -> None:
        self._wakes: Mailbox = Mailbox()

    def wake(self) -> None:
        self._wakes.put(None)

    def sleep(self, timeout: float | None) -> bool:
        try:
            self._wakes.get(timeout=timeout)
        except Empty:
            return False
        return True

    def close(self) -> None:
        pass


class _HubSleeper:
    """The other greenlets of its hub go on."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        # It also has the hub see that something may still happen.
        self._inbox = LoopInbox(hub.loop, ref=True)
        self._woken = False
        self._waiter: Waiter[None] | None = None

    def wake(self) -> None:
        self._inbox.ask(self._woke)

    def _woke(self) -> None:
        self._woken = True
        if self._waiter is not None:
            self._waiter.switch(None)

    def sleep(self, timeout: float | None) -> bool:
        if not self._woken:  # pragma: no branch - once woken it is over, and sleeps no more
            self._waiter = Waiter(self._hub)
            try:
                with gevent.Timeout(timeout, False):  # type: ignore[arg-type]  # as documented
                    self._waiter.get()
            finally:
                self._waiter = None
        was_woken, self._woken = self._woken, False
        return was_woken

    def close(self) -> None:
        self._inbox.close()
