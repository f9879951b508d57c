"""Ctrl-C where the reactor does not handle signals: it reaches the program's main greenlet."""

from __future__ import annotations

import signal
from types import FrameType
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

if TYPE_CHECKING:
    from .green import GreenReactor


class InterruptMain:
    """The signal handling of ``reactor.run(installSignalHandlers=False)``, and of calls that run
    before ``reactor.run()``.

    Python raises KeyboardInterrupt in whatever code runs when the signal comes. Among greenlets
    that may be a decorated call, whose Deferred would get it while the program goes on. So SIGINT
    goes to the main greenlet: it is raised there, or, where that is the reactor's own greenlet
    (whose main loop logs any exception and goes on), ends the loop and is raised out of
    ``reactor.run()``.

    A handler of the program's own is left as it is, and so is one set later.

    It follows Twisted's private ``SignalHandling`` protocol (twisted.internet._signals).
    """

    def __init__(self, reactor: GreenReactor) -> None:
        self._reactor = reactor
        self._installed: Any = None
        self.interrupted: bool = False

    def install(self) -> None:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._installed = self._handle
            try:
                signal.signal(signal.SIGINT, self._installed)
            except ValueError:  # "signal only works in main thread of the main interpreter"
                self._installed = None

    def uninstall(self) -> None:
        installed, self._installed = self._installed, None
        if installed is not None and signal.getsignal(signal.SIGINT) is installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        hub = self._reactor.cooperative_wait.hub
        main = hub.parent
        if self._reactor.cooperative_wait.greenlet is main:
            self.interrupted = True
            self._reactor.crash()
        elif getcurrent() is main:
            raise KeyboardInterrupt
        else:
            # What the hub does with a KeyboardInterrupt of its own: throw it into the main
            # greenlet, and let the greenlet that it hit go on later (Hub.handle_system_error).
            # Not raised in the hub itself: that may be between two callbacks, where gevent's
            # loop on libuv prints it, and nobody gets it (_ffi/loop.py, unhandled_onerror).
            hub.handle_system_error(KeyboardInterrupt, KeyboardInterrupt())
