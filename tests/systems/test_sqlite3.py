"""sqlite3, which works and waits in C: in native threads, each connection in the one that made it.
Unpatched it is the same."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

import greendefer
from greendefer import CallTimeout, GreenPool, NativeThreadPool
from greendefer._carriers.native import allocate_lock
from greendefer._reactor.wait import get_thread_ident

from .clients import AT_ONCE, NAP
from .conftest import another, until


@pytest.fixture
def pool(reactor: Any) -> Iterator[NativeThreadPool]:
    pool = NativeThreadPool(AT_ONCE)
    yield pool
    greendefer.wait_for_deferred(pool.close(grace=0))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "database"
    with closing(connect(path)) as connection:
        connection.execute("CREATE TABLE ledger (n INTEGER)")
    return path


def connect(path: Path, timeout: float = 0.0) -> sqlite3.Connection:
    """Autocommit; `timeout` is how long it waits for locks. It is checked that it stays in its
    thread, as it always is if nothing else is said."""
    return sqlite3.connect(path, timeout=timeout, isolation_level=None)


def query(connection: sqlite3.Connection, statement: str, *args: Any) -> Any:
    return connection.execute(statement, args).fetchall()


class Gate:
    """Queries that wait in the middle of SQLite's work: ``SELECT wait(n)`` comes to n.

    Native threads can't wait for what is gevent's without a hub of their own.
    """

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()
        self._arrived: list[int] = []

    def query(self, path: Path, n: int) -> Any:
        with closing(connect(path)) as connection:
            return self.query_on(connection, n)

    def query_on(self, connection: sqlite3.Connection, n: int) -> Any:
        connection.create_function("wait", 1, self._wait)
        return query(connection, "SELECT wait(?)", n)

    def _wait(self, n: int) -> int:
        self._arrived.append(n)
        with self._lock:
            return n

    def waiting(self) -> int:
        return len(self._arrived)

    def release(self) -> None:
        self._lock.release()


@pytest.fixture
def gate() -> Gate:
    return Gate()


def test_calls_wait_together(path: Path, gate: Gate, pool: NativeThreadPool, together: Any) -> None:
    calls = [pool.submit(gate.query, path, n) for n in range(AT_ONCE)]
    assert together(calls, gate.waiting, gate.release) == [[(n,)] for n in range(AT_ONCE)]


def _wait_for_the_lock(path: Path, seconds: float) -> str:
    with closing(connect(path, seconds)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as e:
            return str(e)
    return "not locked"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with closing(connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def test_calls_that_wait_for_a_lock_take_the_time_of_one(
    path: Path, pool: NativeThreadPool, in_the_time_of_one: Any
) -> None:
    """SQLite sleeps in C while the database is locked, and fails when its timeout is over."""

    def start() -> list[Deferred[Any]]:
        return [pool.submit(_wait_for_the_lock, path, NAP) for _ in range(AT_ONCE)]

    with _locked(path):
        assert set(in_the_time_of_one(start, NAP)) == {"database is locked"}


def test_in_greenlets_it_blocks(path: Path, reactor: Any, in_the_time_of_one: Any) -> None:
    """So that measure does notice."""
    pool = GreenPool(AT_ONCE)

    def start() -> list[Deferred[Any]]:
        return [pool.submit(_wait_for_the_lock, path, 0.2) for _ in range(8)]

    with _locked(path), pytest.raises(AssertionError):
        in_the_time_of_one(start, 0.2)


def test_a_connection_stays_on_its_worker(
    tmp_path: Path, pool: NativeThreadPool, in_reactor: Callable[..., Any], ticker: Any
) -> None:
    """Twenty at once, each in its own thread from the first call to the last. What is refused
    elsewhere shows that SQLite's own check is on."""
    everybody: Deferred[None] = Deferred()
    there: list[int] = []
    threads: set[int] = set()

    async def use(n: int) -> None:
        async with pool.worker() as w:
            connection = await w.submit(connect, tmp_path / f"database {n}")
            there.append(n)
            if len(there) == AT_ONCE:
                everybody.callback(None)
            await another(everybody)
            await w.submit(query, connection, "CREATE TABLE numbers (n INTEGER)")
            for k in range(10):
                await w.submit(query, connection, "INSERT INTO numbers VALUES (?)", n * k)
            assert await w.submit(query, connection, "SELECT sum(n) FROM numbers") == [(n * 45,)]
            threads.add(await w.submit(get_thread_ident))
            with pytest.raises(sqlite3.ProgrammingError, match="same thread"):
                await elsewhere.submit(query, connection, "SELECT 1")
            await w.submit(connection.close)

    elsewhere = NativeThreadPool(1)
    for d in in_reactor(lambda: [Deferred.fromCoroutine(use(n)) for n in range(AT_ONCE)]):
        greendefer.wait_for_deferred(d, 50)
    assert len(threads) == AT_ONCE
    assert ticker.ticks > 0


@pytest.mark.parametrize("good", [True, False])
def test_a_transaction_over_several_calls(
    good: bool, path: Path, in_reactor: Callable[..., Any]
) -> None:
    """The connection is made and closed around the worker, in its thread."""
    mine = threading.local()
    threads: set[int] = set()

    @contextmanager
    def connected() -> Iterator[None]:
        with closing(connect(path)) as mine.connection:
            yield
            threads.add(get_thread_ident())

    def execute(statement: str, *args: Any) -> Any:
        threads.add(get_thread_ident())
        return query(mine.connection, statement, *args)

    pool = NativeThreadPool(2, around=connected)
    rows = "SELECT count(*) FROM ledger"

    async def use() -> None:
        async with pool.worker() as w:
            await w.submit(execute, "BEGIN IMMEDIATE")
            for n in range(3):
                await w.submit(execute, "INSERT INTO ledger VALUES (?)", n)
            assert await w.submit(execute, rows) == [(3,)]
            assert len(threads) == 1
            with closing(connect(path)) as other:
                assert query(other, rows) == [(0,)]
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    other.execute("BEGIN IMMEDIATE")
            if not good:
                raise KeyError("before the end of the transaction")
            await w.submit(execute, "COMMIT")

    if good:
        in_reactor(lambda: Deferred.fromCoroutine(use()))
    else:
        with pytest.raises(KeyError):
            in_reactor(lambda: Deferred.fromCoroutine(use()))
        until(lambda: pool.stats().running + pool.stats().lingering == 0)
    assert len(threads) == 1
    with closing(connect(path)) as other:
        assert query(other, rows) == [(3 * good,)]
        other.execute("BEGIN IMMEDIATE")  # nobody has it locked


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_a_call_that_is_given_up(
    how: str,
    gate: Gate,
    pool: NativeThreadPool,
    reactor: Any,
    in_reactor: Callable[..., Any],
    result: Any,
    ticker: Any,
) -> None:
    """Nobody can end it, so it is abandoned; the next one on its worker waits for it, and gets an
    answer of its own."""

    async def use() -> None:
        async with pool.worker() as w:
            connection = await w.submit(connect, ":memory:")
            timeout = 0.1 if how == "timeout" else None
            given_up = greendefer.green_deferred(pool=w, timeout=timeout)(gate.query_on)
            d = given_up(connection, 1)
            while gate.waiting() == 0:
                await deferLater(reactor, 0.001)
            if how == "cancel":
                d.cancel()
            with pytest.raises(CancelledError if how == "cancel" else CallTimeout):
                await d
            next_one = w.submit(query, connection, "SELECT 2")
            ticks = ticker.ticks
            while ticker.ticks < ticks + 5:
                await deferLater(reactor, 0.01)
            assert not next_one.called
            assert w.stats().lingering == 1
            gate.release()
            assert await next_one == [(2,)]
            await w.submit(connection.close)

    in_reactor(lambda: Deferred.fromCoroutine(use()))
