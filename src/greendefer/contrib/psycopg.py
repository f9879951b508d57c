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
from collections.abc import Callable
from types import ModuleType
from typing import Any

import gevent
from gevent.socket import SHUT_WR, socket, wait_read, wait_write
from greenlet import GreenletExit

END_SECONDS = 5.0
"""How long the server is given to end a query, before its connection is closed all the same."""

AGAIN_SECONDS = 0.25
"""How long after it was asked to end it, it is asked again."""


def install() -> None:
    """Make those that are installed of psycopg2, psycopg and psycopg_pool fit for greenlets.

    psycopg2 waits in C, unless it has a wait callback: it gets one. psycopg 3 gives way by itself
    where it was imported after ``gevent.monkey.patch_all()``.

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
                ended = False
                while not ended:
                    # Again and again: the request may overtake the query, and a server that has
                    # not begun with that forgets it (ProcessInterrupts in PostgreSQL's postgres.c).
                    cancel(connection)
                    wire.shutdown(SHUT_WR)
                    with gevent.Timeout(AGAIN_SECONDS, False):  # type: ignore[arg-type]
                        while wire.recv(65536):
                            pass
                        ended = True
        except Exception:
            pass  # there may be no server any more; what matters is that nobody uses it again


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
