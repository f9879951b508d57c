"""PyMySQL, which is pure Python, on MariaDB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from servers import MariaDB

from .clients import Client, ClientTests, Connections
from .conftest import needs

pymysql = needs("pymysql")

WAITING = "SELECT count(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for%lock'"


class PyMySQLClient:
    errors: tuple[type[Exception], ...] = (
        pymysql.err.OperationalError,
        pymysql.err.InterfaceError,
        pymysql.err.InternalError,
    )

    def __init__(self, server_port: int, port: int) -> None:
        self._control = Connections(lambda: _connect(server_port), lambda c: c.open)
        self._locker = _connect(server_port)
        self._connections = Connections(lambda: _connect(port), lambda c: c.open)
        _query(self._locker, "CREATE TABLE IF NOT EXISTS test.gate (n INT)")
        _query(self._locker, "LOCK TABLES test.gate WRITE")

    def _asked(self, statement: str) -> Any:
        with self._control.one() as connection:
            return _query(connection, statement)

    def ask(self, n: int) -> int:
        with self._connections.one() as connection:
            padding, answer = _query(connection, "SELECT repeat('-', 3000), %s", n)
        assert len(padding) == 3000
        return int(answer)

    def wait(self) -> object:
        with self._connections.one() as connection:
            return _query(connection, "SELECT count(*) FROM test.gate")

    def waiting(self) -> int:
        return int(self._asked(WAITING)[0])

    def release(self) -> None:
        _query(self._locker, "UNLOCK TABLES")

    def close(self) -> None:
        self._connections.close()
        self._control.close()
        if self._locker.open:
            self._locker.close()


def _connect(port: int) -> Any:
    return pymysql.connect(host="127.0.0.1", port=port, user="root", autocommit=True)


def _query(connection: Any, statement: str, *args: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement, args or None)
        return cursor.fetchone()


@pytest.fixture
def server(mariadb: MariaDB) -> MariaDB:
    return mariadb


@pytest.fixture
def server_port(server: MariaDB) -> int:
    return server.port


@pytest.fixture
def make_client(server: MariaDB) -> Callable[[int], Client]:
    return lambda port: PyMySQLClient(server.port, port)


class TestPyMySQL(ClientTests):
    pass
