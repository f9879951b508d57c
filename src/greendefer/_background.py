"""The reactor in a program whose main loop is gevent's."""

from __future__ import annotations

import os
import sys
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event
from gevent.lock import Semaphore
from twisted.internet.error import ReactorNotRunning

from ._carriers.native import allocate_lock
from ._errors import GreendeferError
from ._reactor import install
from ._reactor.installed import has_stopped
from .shutdown import call_when_python_ends, longest_shutdown

_reactor: Any = None
_installing = Semaphore()


def start_reactor() -> Any:
    """Run the reactor in a background greenlet of this thread.

    For a program that is gevent's first, a WSGI server for instance, and wants to call a Twisted
    client through :func:`blocking_from_greenlet`::

        start_reactor()
        fetch = blocking_from_greenlet(treq.get)

        @app.route("/")
        def index():  # in a greenlet of gevent's server
            return str(fetch("http://127.0.0.1:8080/").code)

    If no reactor is installed it installs the native green one. Calling it again, from whichever
    module needs it, changes nothing. Ctrl-C goes to the program, as without it; the reactor
    handles no signals, so there is no ``spawnProcess`` (gevent has its own ``subprocess``).

    Where a server forks its workers (gunicorn), each of them runs a reactor of its own: call it in
    the worker, as a request's function does; with ``--preload``, from its ``post_worker_init``
    hook.

    :returns: the reactor, which runs. It is stopped when the program ends; running calls
        have their grace then (:func:`greendefer.shutdown.set_shutdown_grace`).
    :raises GreendeferError: the installed reactor is not green, runs in another thread, ran
        already when this process was forked from another, or has stopped: no reactor of Twisted's
        can be started again.
    """
    global _reactor
    with _installing:  # patched, even an import gives way to other greenlets
        if "twisted.internet.reactor" not in sys.modules:
            install()
    reactor: Any = sys.modules["twisted.internet.reactor"]
    wait = getattr(reactor, "cooperative_wait", None)
    if wait is None:
        raise GreendeferError(
            f"The installed reactor, {type(reactor).__module__}.{type(reactor).__qualname__}, does "
            "not run on gevent's hub, so it can't run beside other greenlets. Call "
            "start_reactor() before anything imports twisted.internet.reactor."
        )
    if reactor.forked_while_running:
        raise GreendeferError(
            "The reactor ran already when this process was forked: its connections are those of "
            "the other process, and each would get what is meant for the other. Call "
            "start_reactor() in the forked process only (with gunicorn: without --preload, or in "
            "post_worker_init)."
        )
    if not wait.is_this_thread():
        raise GreendeferError("The reactor belongs to another thread: call start_reactor() there")
    if has_stopped(reactor):
        raise GreendeferError("The reactor has stopped, and Twisted's can't be started again")
    if reactor.running:
        return reactor
    started = Event()
    reactor.callWhenRunning(started.set)
    if _reactor is not reactor:
        _reactor = reactor
        background = gevent.spawn(reactor.run, installSignalHandlers=False)
        stop = _Ending(reactor, background)
        # Python waits for threads before it calls what atexit has, and those of the reactor's pool
        # end with the reactor.
        call_when_python_ends(stop)
    started.wait()
    return reactor


class _Ending:
    """The program ends. It says so twice: once before Python waits for threads, and once more for
    where it was interrupted before it came to that. Both have the same time, and signals don't
    cut it short."""

    def __init__(self, reactor: Any, background: gevent.Greenlet[..., Any]) -> None:
        self._reactor = reactor
        self._background = background
        self._process = os.getpid()
        self._until: float | None = None
        self._runs = allocate_lock()
        self._runs.acquire()
        background.rawlink(lambda _: self._runs.release())

    def __call__(self) -> None:
        if self._background.dead or self._process != os.getpid():
            return
        wait = self._reactor.cooperative_wait
        if self._until is None:
            self._until = monotonic() + longest_shutdown() + 1.0
            if wait.is_this_thread():
                self._stop()
            else:
                self._reactor.callFromThread(self._stop)
        interrupted: BaseException | None = None
        while True:
            left = max(0.0, self._until - monotonic())
            try:
                if wait.is_this_thread():
                    self._background.join(left)
                elif wait.hub.thread_ident in sys._current_frames():  # else that thread has ended
                    self._runs.acquire(True, left)
                break
            except (KeyboardInterrupt, SystemExit) as e:  # signals: gunicorn's worker gets several
                interrupted = e
        if interrupted is not None:
            raise interrupted

    def _stop(self) -> None:
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            pass  # it was told already, and its calls have their grace
