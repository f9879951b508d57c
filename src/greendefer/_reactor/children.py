"""Exits of child processes, where two parties wait for them: Twisted and gevent.

Twisted asks for each of its children by number when SIGCHLD comes (twisted.internet.process).
libev, on which gevent's subprocess builds, asks for *any* child of the process, ``waitpid(-1)``
(childcb in ev.c), so it takes the exits of Twisted's children too, and Twisted hears nothing. And
only one of the two can have the signal.

So while the reactor runs there is one more child watcher, for all children (libev takes the
number 0 for that; on libuv there is one for each of Twisted's): what libev reaped is handed on to
Twisted. Who has the signal is decided as
late as can be: as long as nothing of gevent's waits for a child it is Twisted, so that an
unpatched ``subprocess`` of the standard library, whose exits libev would take as well, works as
it does on a stock reactor.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent.os
from twisted.internet import process

from .._patched import is_patched, original
from .loops import is_destroyed, is_libev

if TYPE_CHECKING:
    from .green import GreenReactor


class ChildExits:
    """Signal handling to be composed after Twisted's own, which it corrects."""

    def __init__(self, reactor: GreenReactor) -> None:
        self._reactor = reactor
        self._loop: Any = None
        self._watchers: dict[int, Any] = {}

    def install(self) -> None:
        loop = self._reactor.cooperative_wait.loop
        if not loop.default:
            return  # libev watches children on the main thread's loop only
        self._loop = loop
        gevent_has_the_signal = _gevent_waits_for_children()
        if is_libev(loop):
            self._watchers[0] = watcher = loop.child(0, ref=False)
            watcher.start(lambda: self.exited(watcher.rpid, watcher.rstatus))
        for pid in process.reapProcessHandlers:
            self.spawned(pid)
        # gevent notes whether libev's handler is in place, and trusts the note (libev.h,
        # gevent_install_sigchld_handler): make it true, whatever anybody did before.
        loop.reset_sigchld()
        if gevent_has_the_signal:
            loop.install_sigchld()
        else:
            # The watcher has just put libev's handler in place. The next one, which will be
            # somebody's who waits for a child through gevent, does so again.
            handler = original("signal", "getsignal")(signal.SIGCHLD)
            original("signal", "signal")(signal.SIGCHLD, handler)

    def spawned(self, pid: int | None) -> None:
        """Twisted has a new child; ``None``: that has ended already."""
        if self._loop is None or is_libev(self._loop) or pid is None:
            return
        if is_destroyed(self._loop):
            return  # the next one is told of all
        for each in self._watchers.keys() - process.reapProcessHandlers.keys():
            self._watchers.pop(each).close()
        self._watchers[pid] = _LibuvWatcher(self._loop, pid, self.exited)

    def uninstall(self) -> None:
        loop, self._loop = self._loop, None
        watchers, self._watchers = self._watchers, {}
        if loop is None or is_destroyed(loop):
            return
        for watcher in watchers.values():
            watcher.close()
        loop.reset_sigchld()
        if _gevent_waits_for_children():
            loop.install_sigchld()

    def moved(self) -> None:
        """The reactor waits in another hub than before."""
        if self._loop is not None:
            self.uninstall()
            self.install()
            # What a loop that is destroyed had heard of, or would have, nobody hears of now.
            # (asyncio has decided by now how long it waits, and what it is asked to call does not
            # change that.)
            self._reactor.callFromThread(process.reapAllProcesses)
            self._reactor.cooperative_wait.wake()

    def exited(self, pid: int, status: int) -> None:
        """Somebody else has the status of a child. In the hub."""
        self._reactor.callFromThread(_tell_twisted, pid, status)


class _LibuvWatcher:
    """Is told of the exit of one child, by a loop on libuv.

    What gevent has there for any child hears of one exit, and of no other (``_sigchld_callback`` in
    gevent/libuv/loop.py). This is what that calls of a watcher of one child, and no more: unlike a
    real one it does not have libuv take the signal.
    """

    def __init__(self, loop: Any, pid: int, exited: Callable[[int, int], None]) -> None:
        self._pid = pid
        self._set_waitpid_status = exited
        self._loop = loop
        loop._register_child_watcher(self)

    def close(self) -> None:
        self._loop._unregister_child_watcher(self)


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
    return is_patched("os", "fork") or any(
        not isinstance(child, tuple)
        for child in gevent.os._watched_children.values()  # type: ignore[attr-defined]
    )
