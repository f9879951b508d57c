"""psycopg2 by its wait callback, or psycopg 3 and its pool: whichever this environment has."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from servers import PostgreSQL
from twisted.internet.defer import CancelledError

import greendefer
from greendefer import GreenPool
from greendefer.contrib import psycopg as ours

from .clients import AT_ONCE, Client, ClientTests, Connections
from .conftest import needs, until

if importlib.util.find_spec("psycopg"):
    psycopg = needs("psycopg")
    needs("psycopg_pool")
else:
    psycopg = needs("psycopg2")
    needs("psycopg2.extensions")

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


class PostgresClient:
    errors: tuple[type[Exception], ...] = (psycopg.OperationalError, psycopg.InterfaceError)

    def __init__(self, control: Any, port: int) -> None:
        self._control = control
        self.kwargs = {"host": "127.0.0.1", "port": port, "user": "postgres", "dbname": "postgres"}
        self.pool = self.make_pool()
        self._asked("SELECT pg_advisory_lock(1) IS NULL")

    def make_pool(self) -> Any:
        raise NotImplementedError

    def query(self, statement: str, *args: Any) -> Any:
        raise NotImplementedError

    def _asked(self, statement: str) -> Any:
        with self._control.one() as connection:
            return _query(connection, statement)

    def ask(self, n: int) -> int:
        padding, answer = self.query("SELECT repeat('-', 3000), %s", n)
        assert len(padding) == 3000
        return int(answer)

    def nap(self, seconds: float) -> object:
        return self.query("SELECT pg_sleep(%s)", seconds)

    def wait(self) -> object:
        return self.query("SELECT pg_advisory_lock_shared(1), pg_advisory_unlock_shared(1)")

    def waiting(self) -> int:
        return int(self._asked(WAITING)[0])

    def release(self) -> None:
        self._asked("SELECT pg_advisory_unlock_all()")

    def close(self) -> None:
        self.pool.close()


class Psycopg2Client(PostgresClient):
    def make_pool(self) -> Any:
        return Connections(lambda: _connect(**self.kwargs), lambda c: not c.closed)

    def query(self, statement: str, *args: Any) -> Any:
        with self.pool.one() as connection:
            return _query(connection, statement, *args)


class Psycopg3Client(PostgresClient):
    def make_pool(self) -> Any:
        import psycopg_pool

        kwargs = {**self.kwargs, "autocommit": True}
        return psycopg_pool.ConnectionPool(
            kwargs=kwargs, min_size=0, max_size=AT_ONCE, open=True, timeout=10
        )

    def query(self, statement: str, *args: Any) -> Any:
        with self.pool.connection() as connection:
            return connection.execute(statement, args or None).fetchone()


def _connect(**kwargs: Any) -> Any:
    connection = psycopg.connect(**kwargs)
    connection.autocommit = True
    return connection


def _query(connection: Any, statement: str, *args: Any) -> Any:
    cursor = connection.cursor()
    cursor.execute(statement, args or None)
    return cursor.fetchone()


def pending_signals(pid: int) -> int:
    """Those that a process will get when it is continued, as bits: see proc(5)."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)


@pytest.fixture(scope="module")
def server(postgresql: PostgreSQL) -> PostgreSQL:
    ours.install()
    return postgresql


@pytest.fixture
def server_port(server: PostgreSQL) -> int:
    return server.port


@pytest.fixture
def make_client(server: PostgreSQL) -> Iterator[Callable[[int], Client]]:
    def connect() -> Any:
        return _connect(host="127.0.0.1", port=server.port, user="postgres", dbname="postgres")

    control = Connections(connect, lambda c: not c.closed)
    kind = Psycopg2Client if psycopg.__name__ == "psycopg2" else Psycopg3Client
    yield lambda port: kind(control, port)
    control.close()


class TestPsycopg(ClientTests):
    def test_a_kill_that_overtakes_its_query(
        self, client: Any, pool: GreenPool, result: Any
    ) -> None:
        """The server forgets a request to cancel that comes when it has not begun yet. The query
        ends there all the same."""
        (pid,) = greendefer.wait_for_deferred(pool.submit(client.query, "SELECT pg_backend_pid()"))
        os.kill(pid, signal.SIGSTOP)
        try:
            d = pool.submit(client.query, "SELECT pg_sleep(600)")  # on the same connection
            cancelled = result(d)
            until(lambda: d.is_running)
            d.cancel()
            assert cancelled.error() is CancelledError
            until(lambda: pending_signals(pid) & 1 << signal.SIGINT - 1, "it was asked to cancel")
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: pool.stats().lingering == 0)
        assert client._asked(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}") == (0,)
        self.works(client, pool)

    @pytest.mark.skipif(psycopg.__name__ != "psycopg2", reason="psycopg 3 has no wait callback")
    def test_without_a_wait_callback_it_blocks(
        self, make_client: Any, server_port: int, pool: GreenPool, in_the_time_of_one: Any
    ) -> None:
        """So the measure of ``test_calls_take_the_time_of_one`` does notice."""
        client = make_client(server_port)
        psycopg.extensions.set_wait_callback(None)
        try:
            with pytest.raises(AssertionError):
                in_the_time_of_one(lambda: [pool.submit(client.nap, 0.2) for _ in range(8)], 0.2)
        finally:
            ours.install()
            client.release()
            client.close()


@pytest.mark.skipif(psycopg.__name__ != "psycopg2", reason="psycopg 3 cancels by itself")
def test_there_is_nothing_to_cancel_on_a_connection_that_is_closed(server: PostgreSQL) -> None:
    connection = _connect(host="127.0.0.1", port=server.port, user="postgres", dbname="postgres")
    connection.close()
    ours._cancel_psycopg2(connection)  # libpq has nothing for it, and no thread is asked


@pytest.mark.skipif(psycopg.__name__ == "psycopg2", reason="for psycopg 3's own waiting")
class TestWaitingInTheHub:
    """Its generators are told what they asked for: to read, to write, both, and nothing."""

    @pytest.fixture
    def connection(self, server: PostgreSQL) -> Iterator[Any]:
        with psycopg.connect(
            host="127.0.0.1", port=server.port, user="postgres", dbname="postgres", autocommit=True
        ) as connection:
            yield connection

    def test_it_is_ours(self, server: PostgreSQL) -> None:
        assert psycopg.waiting.wait.__wrapped__ is psycopg.waiting.wait_poll
        ours.install()
        assert psycopg.waiting.wait.__wrapped__ is psycopg.waiting.wait_poll

    def test_more_than_fits_in_both_directions(self, connection: Any) -> None:
        data = "x" * 5_000_000
        assert connection.execute("SELECT %s::text", [data]).fetchone() == (data,)
        connection.execute("CREATE TEMPORARY TABLE lines (text text)")
        cursor = connection.cursor()
        with cursor.copy("COPY lines FROM STDIN") as copy:
            for _ in range(200):
                copy.write_row(("y" * 50_000,))
        with cursor.copy("COPY lines TO STDOUT") as copy:
            assert sum(len(row[0]) for row in copy.rows()) == 200 * 50_000

    def test_a_pipeline(self, connection: Any) -> None:
        with connection.pipeline():
            cursors = [connection.execute("SELECT %s::text", ["z" * 100_000]) for _ in range(100)]
            assert all(len(cursor.fetchone()[0]) == 100_000 for cursor in cursors)

    def test_notifications_with_and_without_one(self, connection: Any, server: PostgreSQL) -> None:
        connection.execute("LISTEN news")
        assert list(connection.notifies(timeout=0.2)) == []  # it is told that nothing came
        asked = gevent.spawn(lambda: next(connection.notifies(timeout=30)).payload)
        with psycopg.connect(
            host="127.0.0.1", port=server.port, user="postgres", dbname="postgres", autocommit=True
        ) as other:
            other.execute("NOTIFY news, 'hello'")
        assert asked.get(timeout=30) == "hello"

    def test_one_that_somebody_else_closes(self, connection: Any) -> None:
        asked = gevent.spawn(connection.execute, "SELECT pg_sleep(600)")
        while connection.pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
            gevent.sleep(0.001)
        connection.close()
        with pytest.raises(psycopg.OperationalError):
            asked.get(timeout=30)

    def test_a_thread_has_its_own_hub(self, connection: Any) -> None:
        threads = greendefer.NativeThreadPool(1)
        got = threads.submit(lambda: connection.execute("SELECT 1").fetchone())
        assert greendefer.wait_for_deferred(got) == (1,)
