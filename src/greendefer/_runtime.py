"""Where results go: the reactor's greenlet."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from os import getpid
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import gevent

from ._carriers.greenlets import GreenletCarrier
from ._carriers.helper import HelperCarrier, HelperHub
from ._carriers.native import native_sleep
from ._carriers.threads import ThreadCarrier
from ._deadlines import Deadlines, HubTimer, ThreadTimer, Timer
from ._errors import GreendeferError
from ._holdups import HoldupWatch
from ._patched import is_patched
from ._reactor.installed import has_stopped, installed_reactor, is_reactor_thread, name_of
from ._reactor.loops import is_destroyed
from ._reactor.posting import PostsOnce
from ._reactor.wait import SLICE, get_thread_ident
from ._twistedcontext import make_greenlet_local
from .shutdown import MOMENT, Shutdown

if TYPE_CHECKING:
    from ._admission import Pool
    from ._carriers import CarrierWithWorkers
    from ._reactor.wait import CooperativeWait

_modules = sys.modules
_runtime: Runtime | None = None


class Runtime(PostsOnce):
    """One installed reactor: what the calls of all pools have in common.

    :ivar now: the clock that all timeouts go by.
    :ivar deadlines: what is to happen in the reactor's greenlet at a time.
    :ivar pools: those that have had a call.
    :ivar waits: greenlets that wait for Deferreds.
    :ivar stopped: the reactor has stopped, and will not deliver anything more.
    """

    now: Callable[[], float] = staticmethod(monotonic)

    def __init__(self, reactor: Any, timer: Timer) -> None:
        self.reactor = reactor
        self.call_soon: Callable[..., object] = reactor.callFromThread
        self._timer = timer
        self.deadlines: Deadlines = Deadlines(timer)
        self.pools: WeakSet[Pool] = WeakSet()
        self._thread: int = get_thread_ident()
        self._outbox: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._process = getpid()
        self.stopped: bool = has_stopped(reactor)
        self.waits: set[Any] = set()
        Shutdown(self)
        # It may yet be run in another process, or thread, than the one that made its first call.
        reactor.callWhenRunning(self._runs_here)

    def _runs_here(self) -> None:
        self.renew_if_forked()

    def is_for(self, reactor: Any) -> bool:
        """Is this what the calls of `reactor` have in common, as that is now?"""
        return self.reactor is reactor

    def is_here(self) -> bool:
        """Is this still the installed reactor, and this its thread?"""
        return _modules.get("twisted.internet.reactor") is self.reactor and (
            get_thread_ident() == self._thread
        )

    def forked(self) -> None:
        """This is a child process. Most children execute another program at once; those that do
        not look again who is here, before their first call."""
        self._thread = -1
        self._posted = False  # perhaps by a thread that is not here, and had not come to it

    def renew_if_forked(self) -> None:
        """Let go of the parent's threads, if this is a child process."""
        if self._process != getpid():
            self._process = getpid()
            self._thread = get_thread_ident()
            self._timer.forked()
            if self._outbox:
                self._posted = True
                self.call_soon(self._flush)
            for pool in list(self.pools):
                pool._forked()

    def green_carrier(self) -> CarrierWithWorkers:
        """What runs the calls of a :class:`GreenPool` here."""
        raise NotImplementedError

    def call_where_it_may_wait(self, f: Callable[[], object]) -> None:
        """Call `f`, which takes locks or starts threads. Where gevent has patched these, `f` may
        switch greenlets, so on a green reactor it runs in a greenlet of its own."""
        f()

    def deliver(self, fire: Callable[[Any], object], result: Any) -> None:
        """Call ``fire(result)`` in the reactor's greenlet, after all earlier ones. From any
        thread: what was appended before the flag is asked, the flush that clears it will find."""
        self._outbox.append((fire, result))
        if not self._posted:
            self._post_once()

    def _post(self) -> None:
        self.call_soon(self._flush)

    def _flush(self, all_of_it: bool = False) -> None:
        self._posted = False
        outbox = self._outbox
        until = monotonic() + SLICE
        try:
            while outbox:
                fire, result = outbox.popleft()
                fire(result)
                if monotonic() >= until and not all_of_it:
                    break  # timers and descriptors first; the rest in the next turn
        finally:
            if outbox and not self._posted:
                self._posted = True
                self.call_soon(self._flush)

    def let_others_run(self) -> None:
        """Sleep for a moment in the reactor's greenlet, which takes no more turns."""
        raise NotImplementedError

    def reactor_stopped(self) -> None:
        """The very end: nobody can be told anything any more."""
        self.deadlines.stop()
        for pool in list(self.pools):
            pool._reactor_stopped()

    def end_waits(self) -> None:
        """Let go of all that wait for Deferreds: none fires any more."""
        for wait in list(self.waits):
            wait.reactor_stopped()


class GreenRuntime(Runtime):
    """A reactor that runs on gevent's hub: greenlets are carried by that hub, too.

    :ivar wait: where it waits.
    :ivar hub: the hub, and `loop`, its loop.
    :ivar yield_to_reactor: see :meth:`CooperativeWait.yield_to_reactor`.
    """

    def __init__(self, reactor: Any, wait: CooperativeWait) -> None:
        self.wait = wait
        self._takes_visits = wait.takes_visits
        self.hub: Any = wait.hub
        self.loop: Any = wait.hub.loop
        self.yield_to_reactor: Callable[[], None] = wait.yield_to_reactor
        self.ask: Callable[..., object] = wait.inbox.ask
        super().__init__(reactor, HubTimer(self.loop, reactor.callFromThread))
        self._thread = wait.hub.thread_ident
        if not reactor.running:
            reactor.interrupt_main.install()
        self._watch = HoldupWatch(self)

    def _post(self) -> None:
        if self._takes_visits and self.wait.is_this_thread():
            self.loop.run_callback(self._visit)
        else:
            self.call_soon(self._flush)

    def _visit(self) -> None:
        if not self.wait.visit(self._flush):
            self.call_soon(self._flush)  # it is in a turn, or does not run yet

    def is_for(self, reactor: Any) -> bool:
        return super().is_for(reactor) and reactor.cooperative_wait.hub is self.hub

    def leave(self) -> None:
        """The reactor waits in another hub from now on. The next call makes a new runtime."""
        self._thread = -1
        self._takes_visits = False
        if not is_destroyed(self.loop):
            self.pools.clear()
            return
        # What waited in the hub has gone with it. What runs in threads and processes has not: it
        # ends here.
        self.deadlines.renew(ThreadTimer(self.call_soon, self.reactor.callLater))
        self._posted = True
        self.call_soon(self._flush)
        self.wait.wake()  # it is just about to sleep
        for wait in list(self.waits):
            wait.hub_is_gone()
        green = [pool for pool in self.pools if pool._can_kill]
        lost = [(pool, pool._take_all()) for pool in green]
        for pool, calls in lost:
            self.pools.discard(pool)
            pool._lose(calls, "was lost: somebody has destroyed gevent's hub, which it ran on")

    def let_others_run(self) -> None:
        # Nobody would take what there is to read, and a wait would end at once for that.
        self.wait.pause(MOMENT)

    def reactor_stopped(self) -> None:
        self._watch.stop()
        super().reactor_stopped()

    def green_carrier(self) -> CarrierWithWorkers:
        return GreenletCarrier(self)

    def call_where_it_may_wait(self, f: Callable[[], object]) -> None:
        if is_patched("threading"):
            gevent.spawn(f)
        else:
            f()


class ForeignRuntime(Runtime):
    """Any other reactor. Greenlets in its thread would never run, so calls run in other threads:
    in greenlets of one helper thread where sockets are patched, else in native threads, since
    unpatched code that waits would hold that hub."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor, ThreadTimer(reactor.callFromThread, reactor.callLater))
        self._helper: HelperHub | None = None

    def _runs_here(self) -> None:
        super()._runs_here()
        self._thread = get_thread_ident()

    def renew_if_forked(self) -> None:
        if self._process != getpid():
            self._helper = None
        super().renew_if_forked()

    def green_carrier(self) -> CarrierWithWorkers:
        if not is_patched("socket"):
            return ThreadCarrier(self)
        make_greenlet_local()
        if self._helper is None:
            if self.stopped:
                return ThreadCarrier(self)  # nothing will run in it, and no thread is to be ended
            try:
                self._helper = HelperHub(self)
            except (RuntimeError, OSError) as e:
                raise GreendeferError(
                    "The calls of a GreenPool run in a helper thread here, and no such thread "
                    f"could be started: {e}"
                ) from e
        return HelperCarrier(self, self._helper)

    def let_others_run(self) -> None:
        native_sleep(MOMENT)

    def reactor_stopped(self) -> None:
        super().reactor_stopped()
        if self._helper is not None:
            self._helper.stop()


def _forked() -> None:
    if _runtime is not None:
        _runtime.forked()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows alone has none
    os.register_at_fork(after_in_child=_forked)


def runtime_here() -> Runtime:
    """The runtime of the installed reactor, for a caller in its thread.

    :raises GreendeferError: no reactor is installed, it can't be called from threads, or it runs
        in another thread.
    """
    global _runtime
    runtime = _runtime
    if runtime is not None and runtime.is_here():
        return runtime
    reactor = installed_reactor()
    wait: CooperativeWait | None = getattr(reactor, "cooperative_wait", None)
    if not is_reactor_thread(reactor):
        error = (
            "This is not the reactor's thread. Call from there with "
            "reactor.callFromThread(f, ...), or decorate a function that makes the call with "
            "@blocking_from_greenlet: it may be called from any thread, and waits for the result."
        )
        if wait is None:
            error += (
                f" (The installed reactor, {name_of(reactor)}, does not run on gevent's hub, so "
                "the calls of pools run in other threads than its own. On greendefer's, "
                "greendefer.install(), those of a GreenPool run in the same.)"
            )
        raise GreendeferError(error)
    if not hasattr(reactor, "callFromThread"):
        raise GreendeferError(
            f"The installed reactor, {name_of(reactor)}, has no callFromThread(), so nothing can "
            "come back to it from another thread or greenlet. (A test on a reactor in memory uses "
            "a pool of greendefer.testing.)"
        )
    if runtime is None or not runtime.is_for(reactor):
        _runtime = runtime = (
            ForeignRuntime(reactor) if wait is None else GreenRuntime(reactor, wait)
        )
    runtime.renew_if_forked()
    return runtime


def green_runtime_here() -> GreenRuntime:
    """The runtime of a reactor that is green, for a caller in its thread.

    :raises GreendeferError: as :func:`runtime_here`; or the reactor is not green.
    """
    runtime = runtime_here()
    if isinstance(runtime, GreenRuntime):
        return runtime
    raise GreendeferError(
        f"The installed reactor, {name_of(runtime.reactor)}, does not run on gevent's hub, so a "
        "greenlet in its thread that waits would never go on. Call greendefer.install() at the "
        "top of the program, before anything imports twisted.internet.reactor."
    )


def runtime_if_made(reactor: Any) -> Runtime | None:
    """The runtime of `reactor`, if it has one already. For any thread."""
    return _runtime if _runtime is not None and _runtime.reactor is reactor else None


def runtime_if_any() -> Runtime | None:
    """The runtime of the installed reactor, if it has one, and this is its thread."""
    return _runtime if _runtime is not None and _runtime.is_here() else None
