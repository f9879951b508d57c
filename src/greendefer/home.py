"""Where results go: the reactor's greenlet."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from gevent import hub as gevent_hub
from gevent.hub import Hub
from greenlet import greenlet
from twisted.internet.defer import Deferred, DeferredList
from twisted.python import threadable

from .deadlines import Deadlines
from .errors import GreendeferError
from .reactor.wait import SLICE, get_thread_ident

if TYPE_CHECKING:
    from .admission import Pool
    from .reactor.wait import CooperativeWait

SHUTDOWN_GRACE = 1.0
"""Seconds that running calls are given when the reactor stops, before they are killed."""

_modules = sys.modules
_MAIN_THREAD: int = gevent_hub.MAIN_THREAD_IDENT  # type: ignore[attr-defined]  # not in its stubs
_home: Home | None = None


class Home:
    """One reactor and the hub that it runs on: what the calls of all pools have in common.

    :ivar deadlines: what is to happen in the reactor's greenlet at a time.
    :ivar pools: those that have had a call.
    :ivar waits: greenlets that wait for Deferreds.
    :ivar stopped: the reactor has stopped, and will not deliver anything more.
    """

    def __init__(self, reactor: Any, wait: CooperativeWait) -> None:
        self.reactor = reactor
        self.wait = wait
        self.hub: Hub = wait.hub
        self.loop: Any = wait.hub.loop
        self.call_soon: Callable[..., object] = reactor.callFromThread
        self.deadlines: Deadlines = Deadlines(self.loop, self.call_soon)
        self.pools: WeakSet[Pool] = WeakSet()
        self._thread = wait.hub.thread_ident
        self._outbox: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._posted = False
        if not reactor.running:
            reactor.interrupt_main.install()
        self.stopped: bool = has_stopped(reactor)
        self.waits: set[Any] = set()
        reactor.addSystemEventTrigger("before", "shutdown", self._last_in_line)
        reactor.addSystemEventTrigger("during", "shutdown", self._close)
        reactor.addSystemEventTrigger("after", "shutdown", self._stop)

    def is_here(self) -> bool:
        """Is this still the installed reactor, and this its thread?"""
        return _modules.get("twisted.internet.reactor") is self.reactor and (
            get_thread_ident() == self._thread
        )

    @property
    def greenlet(self) -> greenlet | None:
        """The reactor's greenlet, while the reactor runs."""
        return self.wait.greenlet

    def deliver(self, fire: Callable[[Any], object], result: Any) -> None:
        """Call ``fire(result)`` in the reactor's greenlet, after all earlier ones."""
        self._outbox.append((fire, result))
        if not self._posted:
            self._posted = True
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

    # The reactor stops. Until all that others do before shutdown is done (services, say), calls may
    # be made; then pools close. Twisted closes its own thread pool in the same order.

    def _last_in_line(self) -> None:
        self.reactor.addSystemEventTrigger("before", "shutdown", self._drain)

    def _drain(self) -> Deferred[None]:
        """Give running calls their grace; those that wait for a slot get none."""
        drained: Deferred[None] = Deferred()

        def done(_: object = None) -> None:
            if not drained.called:
                drained.callback(None)

        DeferredList([pool.drain() for pool in list(self.pools)]).addCallback(done)
        self.deadlines.at(monotonic() + SHUTDOWN_GRACE, done)
        return drained

    def _close(self) -> None:
        self.stopped = True
        for pool in list(self.pools):
            pool.close(grace=0)
        self._flush(all_of_it=True)

    def _stop(self) -> None:
        self.deadlines.stop()
        for wait in list(self.waits):
            wait.reactor_stopped()


def installed_reactor() -> Any:
    """The reactor, if there is one. Looking must never install Twisted's default one.

    :raises GreendeferError: no reactor is installed.
    """
    reactor = _modules.get("twisted.internet.reactor")
    if reactor is None:
        raise GreendeferError(
            "No reactor is installed, and greendefer never installs Twisted's default one for "
            "you. Call greendefer.install() at the top of the program, before anything imports "
            "twisted.internet.reactor."
        )
    return reactor


def is_reactor_thread(reactor: Any) -> bool:
    """Is the calling thread the one that runs, or will run, the reactor?"""
    wait: CooperativeWait | None = getattr(reactor, "cooperative_wait", None)
    if wait is not None:
        return wait.is_this_thread()
    if threadable.ioThread is None:  # it does not run yet
        return bool(get_thread_ident() == _MAIN_THREAD)
    return bool(threadable.isInIOThread())


def home_here() -> Home:
    """The home of the installed reactor, for a caller in its thread.

    :raises GreendeferError: no reactor is installed, or not a green one, or it runs in another
        thread.
    """
    global _home
    home = _home
    if home is not None and home.is_here():
        return home
    reactor = installed_reactor()
    wait = getattr(reactor, "cooperative_wait", None)
    if wait is None:
        raise GreendeferError(
            f"The installed reactor, {type(reactor).__module__}.{type(reactor).__qualname__}, "
            "does not run on gevent's hub, so greenlets in its thread would never run. Call "
            "greendefer.install() at the top of the program, before anything imports "
            "twisted.internet.reactor."
        )
    if not is_reactor_thread(reactor):
        raise GreendeferError(
            "This is not the reactor's thread. Call from there with "
            "reactor.callFromThread(f, ...), or decorate a function that makes the call with "
            "@blocking_from_greenlet: it may be called from any thread, and waits for the result."
        )
    if home is None or home.reactor is not reactor or home.hub is not wait.hub:
        _home = home = Home(reactor, wait)
    return home


def home_if_any() -> Home | None:
    """The home of the installed reactor, if it has one, and this is its thread."""
    return _home if _home is not None and _home.is_here() else None


def has_stopped(reactor: Any) -> bool:
    """Has a reactor stopped for good? What it is asked to call will never be called then."""
    return bool(getattr(reactor, "_startedBefore", False)) and not reactor.running
