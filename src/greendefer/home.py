"""Where results go: the reactor's greenlet."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from gevent import monkey
from gevent.hub import MAIN_THREAD_IDENT  # type: ignore[attr-defined]  # not in its stubs
from greenlet import greenlet
from twisted.internet.defer import Deferred, DeferredList
from twisted.python import threadable

from ._twistedcontext import make_greenlet_local
from .deadlines import Deadlines
from .errors import GreendeferError
from .reactor.wait import SLICE

if TYPE_CHECKING:
    from .admission import Call, Pool
    from .reactor.wait import CooperativeWait

SHUTDOWN_GRACE = 1.0
"""Seconds that running calls are given when the reactor stops, before they are killed."""

_modules = sys.modules
_get_ident: Callable[[], int] = monkey.get_original("_thread", "get_ident")
_home: Home | None = None


class Home:
    """One reactor and the hub that it runs on: what the calls of all pools have in common.

    :ivar deadlines: what is to happen in the reactor's greenlet at a time.
    """

    def __init__(self, reactor: Any, wait: CooperativeWait) -> None:
        self.reactor = reactor
        self.wait = wait
        self.hub = wait.hub
        self.loop: Any = wait.hub.loop
        self.call_soon: Callable[..., object] = reactor.callFromThread
        self.deadlines = Deadlines(self.loop, self.call_soon)
        self.pools: WeakSet[Pool] = WeakSet()
        self._thread = wait.hub.thread_ident
        self._outbox: deque[tuple[Call, Any]] = deque()
        self._posted = False
        make_greenlet_local()
        if not reactor.running:
            reactor.interrupt_main.install()
        reactor.addSystemEventTrigger("before", "shutdown", self._shut_down)

    def is_here(self) -> bool:
        """Is this still the installed reactor, and this its thread?"""
        return _modules.get("twisted.internet.reactor") is self.reactor and (
            _get_ident() == self._thread
        )

    @property
    def greenlet(self) -> greenlet | None:
        """The reactor's greenlet, while the reactor runs."""
        return self.wait.greenlet

    def deliver(self, call: Call, result: Any) -> None:
        """Have `call` fire with `result` in the reactor's greenlet, after all earlier ones."""
        self._outbox.append((call, result))
        if not self._posted:
            self._posted = True
            self.call_soon(self._flush)

    def _flush(self) -> None:
        self._posted = False
        outbox = self._outbox
        until = monotonic() + SLICE
        try:
            while outbox:
                call, result = outbox.popleft()
                call.fire(result)
                if monotonic() >= until:
                    break  # timers and descriptors first; the rest in the next turn
        finally:
            if outbox and not self._posted:
                self._posted = True
                self.call_soon(self._flush)

    def _shut_down(self) -> Deferred[Any]:
        ended = [pool.close(grace=SHUTDOWN_GRACE) for pool in list(self.pools)]
        ended_all: Deferred[Any] = DeferredList(ended)
        return ended_all.addCallback(lambda _: self.deadlines.stop())


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
        return wait.hub.thread_ident == _get_ident()
    if threadable.ioThread is None:  # it does not run yet
        return bool(_get_ident() == MAIN_THREAD_IDENT)
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
