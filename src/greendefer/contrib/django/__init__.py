"""Django's ORM in greenlets: connections go back when a call ends, however it ends.

::

    INSTALLED_APPS = [..., "greendefer.contrib.django"]

does it for all calls on the default pool (``reactor.deferToGreenlet``, ``@green_deferred`` without
a pool); other pools say ``GreenPool(20, around=closing_connections)``. As an application it also
makes psycopg fit for greenlets (:mod:`greendefer.contrib.psycopg`), and keeps django-db-geventpool
to its ``MAX_CONNS``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from greenlet import getcurrent
from twisted.logger import Logger, LogLevel

from ..._patched import is_patched

__all__ = ["closing_connections"]

_log = Logger(namespace="greendefer")

_ACTIVE = 1  # libpq's PQTRANS_ACTIVE


@contextmanager
def closing_connections() -> Iterator[None]:
    """For ``GreenPool(around=closing_connections)``: a call's database connections go back to
    their pool, or are closed, when the call ends.

    It does what Django does before and after a request: connections past their ``CONN_MAX_AGE``
    are closed, and so are those that no longer work. One whose transaction was left open is
    rolled back, and one that was in the middle of a query when the call was killed is closed.

    Around a ``pool.worker()`` it does so once, when the worker ends: a transaction may span its
    calls.

    :raises ImproperlyConfigured: all greenlets would share one connection, because the program is
        not patched.
    """
    # (A thread of its own has connections of its own.)
    in_a_greenlet = getcurrent().parent is not None
    if in_a_greenlet and not is_patched("threading"):
        raise ImproperlyConfigured(
            "Django keeps a connection for each thread, and here all greenlets are one thread to "
            "it: call gevent.monkey.patch_all() in the first lines of the program, before "
            "anything imports Django. Or give the call to a NativeThreadPool."
        )
    for connection in connections.all(initialized_only=True):
        connection.queries_log.clear()
        connection.close_if_unusable_or_obsolete()
    killed = True
    try:
        yield
        killed = False
    except Exception:
        killed = False
        raise
    finally:
        for connection in connections.all(initialized_only=True):
            try:
                _give_back(connection, killed)
            except Exception:
                # The call has its result, or its own error, which says more.
                _log.failure("Closing {alias}", alias=repr(connection.alias), level=LogLevel.warn)


def _give_back(connection: Any, killed: bool) -> None:
    raw = connection.connection
    in_transaction = connection.in_atomic_block
    if in_transaction:
        # Django's state of it goes, too: the next call on this worker is in no transaction.
        del connections[connection.alias]
    if raw is not None and _is_half_read(raw, killed):
        raw.close()  # first: connection.close() may only give it back to a pool
        try:
            connection.close()
        except Exception:
            pass  # those of MySQL can't be closed twice, and say so
    elif in_transaction:
        connection.close()
    else:
        connection.close_if_unusable_or_obsolete()


def _is_half_read(raw: Any, killed: bool) -> bool:
    """May there be more of an answer to come, on a driver's connection?"""
    try:
        return bool(raw.info.transaction_status == _ACTIVE)  # psycopg2 and psycopg 3
    except AttributeError:
        return killed  # who knows
