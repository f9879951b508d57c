"""Exits of child processes, where two parties wait for them: Twisted and gevent.

Twisted asks for each of its children by number when SIGCHLD comes (twisted.internet.process).
libev, on which gevent's subprocess builds, asks for *any* child of the process, ``waitpid(-1)``
(childcb in ev.c), so it takes the exits of Twisted's children too, and Twisted hears nothing. And
only one of the two can have the signal.

So while the reactor runs there is one more child watcher, for all children (libev takes the
number 0 for that): what libev reaped is handed on to Twisted. Who has the signal is decided as
late as can be: as long as nothing of gevent's waits for a child it is Twisted, so that an
unpatched ``subprocess`` of the standard library, whose exits libev would take as well, works as
it does on a stock reactor.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import gevent.os
from gevent import monkey
from twisted.internet import process

if TYPE_CHECKING:
    from .green import GreenReactor


class ChildExits:
    """Signal handling to be composed after Twisted's own, which it corrects."""

    def __init__(self, reactor: GreenReactor) -> None:
        self._reactor = reactor
        self._loop: Any = None
        self._watcher: Any = None

    def install(self) -> None:
        loop = self._reactor.cooperative_wait.loop
        if not loop.default:
            return  # libev watches children on the main thread's loop only
        self._loop = loop
        gevent_has_the_signal = _gevent_waits_for_children()
        self._watcher = loop.child(0, ref=False)
        self._watcher.start(self._exited)
        # gevent notes whether libev's handler is in place, and trusts the note (libev.h,
        # gevent_install_sigchld_handler): make it true, whatever anybody did before.
        loop.reset_sigchld()
        if gevent_has_the_signal:
            loop.install_sigchld()
        else:
            # The watcher has just put libev's handler in place. The next one, which will be
            # somebody's who waits for a child through gevent, does so again.
            handler = monkey.get_original("signal", "getsignal")(signal.SIGCHLD)
            monkey.get_original("signal", "signal")(signal.SIGCHLD, handler)

    def uninstall(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.close()
            self._loop.reset_sigchld()
            if _gevent_waits_for_children():
                self._loop.install_sigchld()

    def _exited(self) -> None:  # in the hub
        self._reactor.callFromThread(_tell_twisted, self._watcher.rpid, self._watcher.rstatus)


def _tell_twisted(pid: int, status: int) -> None:
    handler = process.reapProcessHandlers.get(pid)
    if handler is None:
        return  # not one of Twisted's, or it knows already
    handler.reapProcess()  # a patched os.waitpid() has the status too, and is glad to be rid of it
    if process.reapProcessHandlers.get(pid) is handler:
        process.unregisterReapProcessHandler(pid, handler)
        handler.processEnded(status)


def _gevent_waits_for_children() -> bool:
    """Does gevent, or the patched standard library, need libev's SIGCHLD handler?"""
    return monkey.is_object_patched("os", "fork") or any(
        not isinstance(child, tuple)
        for child in gevent.os._watched_children.values()  # type: ignore[attr-defined]
    )
