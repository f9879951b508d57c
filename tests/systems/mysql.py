"""What every driver of MariaDB's must do and survive; they speak the same SQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from servers import MariaDB

from .clients import Client, ClientTests, Connections

WAITING = "SELECT count(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for%lock'"


class MySQLClient:
    """A client by way of some driver: see :class:`~.clients.Client`."""

    errors: tuple[type[Exception], ...] = ()

    def connect(self, port: int) -> Any:
        """Connect as root, with autocommit."""
        raise NotImplementedError

    def is_open(self, connection: Any) -> bool:
        """Can a connection be used again? Blocks."""
        raise NotImplementedError

    def __init__(self, server_port: int, port: int) -> None:
        self._control = Connections(lambda: self.connect(server_port), self.is_open)
        self._locker = self.connect(server_port)
        self._connections = Connections(lambda: self.connect(port), self.is_open)
        query(self._locker, "CREATE TABLE IF NOT EXISTS test.gate (n INT)")
        query(self._locker, "LOCK TABLES test.gate WRITE")

    def query(self, statement: str, *args: Any) -> Any:
        with self._connections.one() as connection:
            return query(connection, statement, *args)

    def ask(self, n: int) -> int:
        padding, answer = self.query("SELECT repeat('-', 3000), %s", n)
        assert len(padding) == 3000
        return int(answer)

    def nap(self, seconds: float) -> object:
        return self.query("SELECT SLEEP(%s)", seconds)

    def wait(self) -> object:
        return self.query("SELECT count(*) FROM test.gate")

    def waiting(self) -> int:
        with self._control.one() as connection:
            return int(query(connection, WAITING)[0])

    def release(self) -> None:
        query(self._locker, "UNLOCK TABLES")

    def close(self) -> None:
        self._connections.close()
        self._control.close()
        if self.is_open(self._locker):
            self._locker.close()


def query(connection: Any, statement: str, *args: Any) -> Any:
    """The first row."""
    with connection.cursor() as cursor:
        cursor.execute(statement, args or None)
        return cursor.fetchone()


class MySQLTests(ClientTests):
    """To be inherited, with the class of the clients."""

    client_class: type[MySQLClient]

    @pytest.fixture
    def server(self, mariadb: MariaDB) -> MariaDB:
        return mariadb

    @pytest.fixture
    def server_port(self, server: MariaDB) -> int:
        return server.port

    @pytest.fixture
    def make_client(self, server: MariaDB) -> Callable[[int], Client]:
        return lambda port: self.client_class(server.port, port)
