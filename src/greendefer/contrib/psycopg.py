"""psycopg2 and psycopg 3 in greenlets: they give way while they wait, and a query that nobody waits
for any more ends in the server, too.

::

    from greendefer.contrib import psycopg
    psycopg.install()
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable, Generator
from types import ModuleType
from typing import Any

import gevent
from gevent.hub import Waiter
from gevent.socket import SHUT_WR, socket, wait_read, wait_write
from greenlet import GreenletExit

from .._patched import is_patched

END_SECONDS = 5.0
"""How long the server is given to end a query, before its connection is closed all the same."""
AGAIN_SECONDS = 0.5
"""How long until it is told once more."""


def install() -> None:
    """Make whichever of psycopg2, psycopg and psycopg_pool are installed cooperative under gevent.

    psycopg2 waits in C, unless it has a wait callback: it gets one. psycopg 3 gives way by itself
    where it was imported after ``gevent.monkey.patch_all()``, and its waits cost less from then
    on: the hub watches its connections directly.

    When a greenlet is killed, or a ``gevent.Timeout`` is raised in it, while it waits for an
    answer, the query is cancelled in the server, and the connection is closed: no pool can hand
    out one that is half-read. The greenlet goes on when the server has ended the session, but 5
    seconds later at the latest. So a call that is killed holds its slot for as long as the server
    works for it, and there are never more sessions in the server than connections here.

    psycopg2 looks up the name of a host in C, where nothing gives way: say
    ``hostaddr="192.0.2.1"`` beside ``host``, where that may take long. (psycopg 3.3 looks it up by
    the socket module.)

    A greenlet that is killed while it waits for a connection of a ``psycopg_pool.ConnectionPool``
    is no longer given one, which would be lost.

    It holds for the whole process. Calling it again changes nothing.

    :raises ImportError: neither psycopg2 nor psycopg is installed.
    """
    psycopg2 = _import("psycopg2.extensions")
    if psycopg2 is not None:
        psycopg2.set_wait_callback(_wait_for_psycopg2)
    psycopg = _import("psycopg")
    if psycopg is not None:
        _end_when_interrupted(psycopg.Connection)
        if is_patched("select"):
            _wait_in_hub(psycopg.waiting)
    if psycopg2 is None and psycopg is None:
        raise ImportError("greendefer.contrib.psycopg needs psycopg2 or psycopg, neither is there")
    pool = _import("psycopg_pool.pool")
    if pool is not None and hasattr(pool, "CLIENT_EXCEPTIONS"):
        # What may be raised in a client that waits for a connection. In the asyncio variant of the
        # same file asyncio.CancelledError is among them.
        vars(pool)["CLIENT_EXCEPTIONS"] = (Exception, GreenletExit, gevent.Timeout)


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _wait_for_psycopg2(connection: Any) -> None:
    """The wait callback: see ``psycopg2.extensions.set_wait_callback``."""
    # psycogreen's does not cancel what the server does for a killed greenlet.
    try:
        while (state := connection.poll()) != 0:  # POLL_OK
            if state == 1:  # POLL_READ
                wait_read(connection.fileno())
            else:
                wait_write(connection.fileno())
    except (GreenletExit, gevent.Timeout):
        _end(connection, _cancel_psycopg2)
        raise  # and psycopg2 closes the connection (green_panic in green.c)


def _wait_in_hub(waiting: Any) -> None:
    """For psycopg 3. Its own waiting function, patched, makes a poll object of gevent's for each
    query, and that one a watcher, a timer and an event for each wait."""
    theirs = waiting.wait
    if hasattr(theirs, "__wrapped__"):
        return

    def wait(gen: Any, fileno: int, interval: float = 0.0, timeout: float | None = None) -> Any:
        if timeout is not None:  # as when it cancels a query
            return theirs(gen, fileno, interval=interval, timeout=timeout)
        return _wait_for_psycopg(gen, fileno, interval)

    wait.__wrapped__ = theirs  # type: ignore[attr-defined]
    waiting.wait = wait


def _wait_for_psycopg(gen: Generator[int, int, Any], fileno: int, interval: float) -> Any:
    """As ``psycopg.waiting.wait_poll()``: `gen` says what it wants to do with `fileno`, and is told
    what it may do; nothing, each time that so many seconds are over."""
    hub = gevent.get_hub()
    loop: Any = hub.loop
    try:
        wanted = next(gen)
        while True:
            waiter: Waiter[int] = Waiter(hub)
            # Its numbers for reading and writing, Wait and Ready in psycopg/_enums.py, are libev's.
            watcher = loop.io(fileno, int(wanted))
            timer = loop.timer(max(interval, 0.0))
            try:
                watcher.start(waiter.switch, pass_events=True)
                timer.start(waiter.switch, 0, update=True)
                ready = waiter.get()
            finally:
                watcher.close()
                timer.close()
            if ready:
                wanted = gen.send(ready & int(wanted))
            else:
                _refuse_if_closed(fileno)
                gen.send(0)
    except StopIteration as end:
        return end.value


def _refuse_if_closed(fileno: int) -> None:
    # The hub tells nobody of a descriptor that somebody else has closed.
    try:
        os.fstat(fileno)
    except OSError as e:
        error: type[Exception] = importlib.import_module("psycopg").OperationalError
        raise error("The connection was closed while somebody waited for it") from e


def _end_when_interrupted(connection_class: Any) -> None:
    """For psycopg 3, which knows of KeyboardInterrupt and SystemExit only."""
    wait = connection_class.wait
    if hasattr(wait, "__wrapped__"):
        return

    def wait_or_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return wait(self, *args, **kwargs)
        except (GreenletExit, gevent.Timeout):
            _end(self, _cancel_psycopg)
            self.close()
            raise

    wait_or_end.__wrapped__ = wait  # type: ignore[attr-defined]
    connection_class.wait = wait_or_end


def _end(connection: Any, cancel: Callable[[Any], object]) -> None:
    """Have the server end its query, and then the session; wait until it has."""
    with gevent.Timeout(END_SECONDS, False):  # type: ignore[arg-type]  # as documented
        try:
            with socket(fileno=os.dup(connection.fileno())) as wire:
                wire.settimeout(AGAIN_SECONDS)
                cancel(connection)
                wire.shutdown(SHUT_WR)
                while not _has_ended(wire):
                    # The server takes no notice of a request that comes before the query.
                    cancel(connection)
        except Exception:
            pass  # there may be no server any more; what matters is that nobody uses it again


def _has_ended(wire: socket) -> bool:
    """``False``, if nothing is heard for a while."""
    try:
        while wire.recv(65536):
            pass
        return True
    except TimeoutError:
        return False


def _cancel_psycopg(connection: Any) -> None:
    if _import("psycopg").capabilities.has_cancel_safe():  # type: ignore[union-attr]
        connection.cancel_safe(timeout=END_SECONDS)
    else:
        _in_a_thread(connection.cancel)  # before libpq 17


def _cancel_psycopg2(connection: Any) -> None:
    # Its own cancel() holds the interpreter while libpq connects to the server (psyco_conn_cancel
    # in connection_type.c), so that a native thread is of no use. A call by ctypes does not. The
    # functions are found by way of psycopg2's own module: it may have a libpq of its own.
    libpq: Any = ctypes.CDLL(importlib.import_module("psycopg2._psycopg").__file__)
    libpq.PQgetCancel.restype = ctypes.c_void_p
    request = ctypes.c_void_p(libpq.PQgetCancel(ctypes.c_void_p(connection.pgconn_ptr)))
    if request:

        def cancel() -> None:
            libpq.PQcancel(request, ctypes.create_string_buffer(256), 256)
            libpq.PQfreeCancel(request)

        _in_a_thread(cancel)


def _in_a_thread(f: Callable[[], object]) -> None:
    gevent.get_hub().threadpool.apply(f)
