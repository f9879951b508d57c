"""django-db-geventpool, held to its ``MAX_CONNS``.

As it is (4.0.8), its pool counts a connection when it has been made, so that as many greenlets as
come meanwhile make one each; one that was lost, or killed in the middle of a query, is either
counted for ever or handed out again; and nobody tells those who wait that there is room now.
"""

from __future__ import annotations

from typing import Any

from django_db_geventpool.backends.base import DatabaseWrapperMixin
from django_db_geventpool.backends.pool import DatabaseConnectionPool
from gevent.lock import Semaphore

_IDLE, _INTRANS, _INERROR = 0, 2, 3  # libpq's PQTRANS_...


class _KeepsToMaximum(DatabaseConnectionPool):  # type: ignore[misc]  # it has no types
    """A mixin for its pools: at most ``MAX_CONNS`` connections, those that are being made included.

    Whoever gets one brings it back once, in whatever state.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._free = Semaphore(self.maxsize)

    def get(self) -> Any:
        self._free.acquire()
        try:
            while not self.pool.empty():
                connection = self.pool.get_nowait()
                if self._works(connection):
                    return connection
            connection = self.create_connection()
        except BaseException:
            self._free.release()
            raise
        self._conns.add(connection)
        return connection

    def _works(self, connection: Any) -> bool:
        works = False
        try:
            self.check_usable(connection)
            works = True
        except Exception:
            pass  # the server has closed it, or was restarted
        finally:
            if not works:
                self._drop(connection)
        return works

    def put(self, connection: Any) -> None:
        reusable = False
        try:
            status = connection.info.transaction_status
            if status in (_INTRANS, _INERROR):
                connection.rollback()
                status = connection.info.transaction_status
            if status == _IDLE and not connection.closed:
                if not connection.autocommit:
                    connection.autocommit = True
                reusable = True
        finally:
            try:
                if reusable:
                    super().put(connection)
                else:
                    self._drop(connection)
            finally:
                self._free.release()

    def _drop(self, connection: Any) -> None:
        self._conns.discard(connection)
        connection.close()


def _close(wrapper: Any) -> None:
    connection, wrapper.connection = wrapper.connection, None
    with wrapper.wrap_database_errors:
        wrapper.pool.put(connection)


def keep_to_maximum(wrapper_class: Any) -> None:
    """Do so for a database backend, if it is one of django-db-geventpool's. Once is enough."""
    if issubclass(wrapper_class, DatabaseWrapperMixin):
        pool_class = wrapper_class.pool_class
        if not issubclass(pool_class, _KeepsToMaximum):
            wrapper_class.pool_class = type(pool_class.__name__, (_KeepsToMaximum, pool_class), {})
            wrapper_class._close = _close
