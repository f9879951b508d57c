"""mysqlclient, which waits in C, on MariaDB: in native threads. Unpatched it is the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from twisted.internet.defer import Deferred

import greendefer
from greendefer import GreenPool, NativeThreadPool
from greendefer._reactor.wait import get_thread_ident

from .clients import AT_ONCE
from .conftest import another, needs, until
from .mysql import MySQLClient, MySQLTests, query

MySQLdb = needs("MySQLdb")


class MySQLClientClient(MySQLClient):
    errors = (MySQLdb.OperationalError, MySQLdb.InterfaceError)

    def connect(self, port: int) -> Any:
        return MySQLdb.connect(host="127.0.0.1", port=port, user="root", autocommit=True)

    def is_open(self, connection: Any) -> bool:
        # Its `open` says only that nobody has closed it.
        try:
            connection.ping()
        except self.errors:
            connection.close()
            return False
        return True


class TestMySQLClient(MySQLTests):
    client_class = MySQLClientClient

    @pytest.fixture
    def pool(self, reactor: Any) -> Iterator[NativeThreadPool]:
        pool = NativeThreadPool(AT_ONCE)
        yield pool
        greendefer.wait_for_deferred(pool.close(grace=0))

    def test_in_greenlets_it_blocks(
        self, make_client: Any, server_port: int, in_the_time_of_one: Any, logged: Any
    ) -> None:
        """So the measure of ``test_calls_take_the_time_of_one`` does notice."""
        client = make_client(server_port)
        pool = GreenPool(AT_ONCE)
        with pytest.raises(AssertionError):
            in_the_time_of_one(lambda: [pool.submit(client.nap, 0.2) for _ in range(8)], 0.2)
        client.release()
        client.close()

    def test_transactions_over_several_calls(
        self,
        client: MySQLClientClient,
        server_port: int,
        in_reactor: Callable[..., Any],
        ticker: Any,
    ) -> None:
        """Each on a worker of its own, which is one thread with one connection; all of them open at
        once. One whose block is left by an exception is rolled back."""
        control = client.connect(server_port)
        query(control, "CREATE OR REPLACE TABLE test.ledger (n INT) ENGINE=InnoDB")
        mine = threading.local()
        go_on: Deferred[None] = Deferred()
        threads: set[int] = set()

        @contextmanager
        def connected() -> Iterator[None]:
            mine.connection = client.connect(server_port)
            try:
                yield
            finally:
                mine.connection.close()  # what was not committed is rolled back

        def insert(n: int) -> tuple[int, int]:
            query(mine.connection, "INSERT INTO test.ledger VALUES (%s)", n)
            return get_thread_ident(), mine.connection.thread_id()

        async def transaction(n: int) -> None:
            async with pool.worker() as w:
                await w.submit(lambda: mine.connection.begin())
                first = await w.submit(insert, n)
                await another(go_on)
                assert await w.submit(insert, n) == first
                threads.add(first[0])
                if n % 2:
                    raise KeyError(n)
                await w.submit(lambda: mine.connection.commit())

        pool = NativeThreadPool(AT_ONCE, around=connected)
        done = in_reactor(lambda: [Deferred.fromCoroutine(transaction(n)) for n in range(AT_ONCE)])
        rows = "SELECT count(*) FROM test.ledger"
        query(control, "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
        until(lambda: query(control, rows)[0] == AT_ONCE, "all transactions are open")
        query(control, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        assert query(control, rows)[0] == 0
        ticker.wait_for(5)
        in_reactor(go_on.callback, None)
        for n, d in enumerate(done):
            if n % 2:
                with pytest.raises(KeyError):
                    greendefer.wait_for_deferred(d, 20)
            else:
                greendefer.wait_for_deferred(d, 20)
        until(lambda: pool.stats().running + pool.stats().lingering == 0)
        assert len(threads) == AT_ONCE
        assert query(control, "SELECT sum(n), count(*) FROM test.ledger") == (2 * 90, AT_ONCE)
        control.close()
