"""The Django ORM on backends whose drivers wait in C (SQLite, mysqlclient): in native threads. And
in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

import greendefer
from greendefer import CallTimeout, ExecutorPool, NativeThreadPool
from greendefer._carriers.native import allocate_lock
from greendefer._reactor.wait import get_thread_ident

from .clients import AT_ONCE, NAP
from .conftest import ALIASES, IN_C, another, needs, until

needs("django")
needs("django_db_geventpool")


@pytest.fixture(params=IN_C)
def alias(request: Any, django_server: Any) -> Any:
    if request.param == "maria":
        request.getfixturevalue("django_mariadb")
    return request.param


@pytest.fixture
def pool(django_server: Any) -> Iterator[NativeThreadPool]:
    from greendefer.contrib.django import closing_connections

    pool = NativeThreadPool(AT_ONCE, around=closing_connections)
    yield pool
    greendefer.wait_for_deferred(pool.close(grace=0))


@pytest.fixture
def model(alias: str) -> Iterator[Any]:
    """With an empty table."""
    from django.db import connections

    from systems.exampleapp.models import ExampleModel

    def in_thread(what: str) -> None:
        with connections[alias].schema_editor() as editor:
            getattr(editor, what)(ExampleModel)
        connections[alias].close()

    native = NativeThreadPool(1)
    greendefer.wait_for_deferred(native.submit(in_thread, "create_model"))
    yield ExampleModel
    greendefer.wait_for_deferred(native.submit(in_thread, "delete_model"))


def is_connected(alias: str) -> bool:
    """Does Django have a connection in this thread?"""
    from django.db import connections

    return connections[alias].connection is not None


def names(model: Any, alias: str) -> list[str]:
    return list(model.objects.using(alias).order_by("name").values_list("name", flat=True))


def test_calls_take_the_time_of_one(
    alias: str, model: Any, pool: NativeThreadPool, django_server: Any, in_the_time_of_one: Any
) -> None:
    """On MariaDB each sleeps in the server; on SQLite it waits for a lock until it gives up."""
    from django.db import OperationalError, connections

    from systems.exampleapp.models import sql

    def sleep() -> str:
        return str(sql(alias, "SELECT SLEEP(%s)", NAP))

    def wait() -> str:
        try:
            model.objects.using(alias).create(name="late")
        except OperationalError as e:
            return str(e)
        return "not locked"

    call, expected = (sleep, "0") if alias == "maria" else (wait, "database is locked")

    def start() -> list[Deferred[str]]:
        return [pool.submit(call) for _ in range(AT_ONCE)]

    if alias == "maria":
        results = in_the_time_of_one(start, NAP)
    else:
        path = connections.settings[alias]["NAME"]
        with closing(sqlite3.connect(path, isolation_level=None)) as locker:
            locker.execute("BEGIN IMMEDIATE")
            results = in_the_time_of_one(start, NAP)
    assert results == [expected] * AT_ONCE


@pytest.mark.parametrize("how", ["return", "raise", "cancel", "timeout"])
def test_the_connection_is_closed_when_a_call_ends(
    how: str, alias: str, model: Any, result: Any
) -> None:
    """In the thread that made it. A call that is given up ends by itself, and only then."""
    from greendefer.contrib.django import closing_connections

    pool = NativeThreadPool(1, around=closing_connections)
    lock = allocate_lock()
    lock.acquire()
    connected: list[bool] = []

    def call() -> None:
        model.objects.using(alias).create(name="made")
        connected.append(is_connected(alias))
        if how != "return":
            with lock:
                pass
        if how == "raise":
            raise KeyError("as ordered")

    timeout = 0.5 if how == "timeout" else None
    d = greendefer.green_deferred(pool=pool, timeout=timeout)(call)()
    ended = result(d)
    until(lambda: connected)
    if how == "cancel":
        d.cancel()
    if how in ("cancel", "timeout"):
        assert ended.error() is (CancelledError if how == "cancel" else CallTimeout)
        assert pool.stats().lingering == 1
    if how != "return":
        lock.release()
    if how == "raise":
        assert ended.error() is KeyError
    assert greendefer.wait_for_deferred(pool.submit(is_connected, alias)) is False
    assert connected == [True]
    assert pool.stats().lingering == 0
    assert greendefer.wait_for_deferred(pool.submit(names, model, alias)) == ["made"]


@pytest.mark.parametrize("good", [True, False])
def test_a_transaction_over_several_calls(
    good: bool, alias: str, model: Any, pool: NativeThreadPool, in_reactor: Callable[..., Any]
) -> None:
    """All in one thread, which is where ``atomic`` and the connection are."""
    from django.db import transaction

    async def use() -> None:
        async with pool.worker() as w:
            atomic = transaction.atomic(using=alias)
            await w.submit(atomic.__enter__)
            threads = set()
            for n in range(3):
                await w.submit(model.objects.using(alias).create, name=str(n))
                threads.add(await w.submit(get_thread_ident))
            assert len(threads) == 1
            assert await w.submit(names, model, alias) == ["0", "1", "2"]
            assert await pool.submit(names, model, alias) == []
            if not good:
                raise KeyError("before the end of the transaction")
            await w.submit(atomic.__exit__, None, None, None)

    if good:
        in_reactor(lambda: Deferred.fromCoroutine(use()))
    else:
        with pytest.raises(KeyError):
            in_reactor(lambda: Deferred.fromCoroutine(use()))
        until(lambda: pool.stats().running + pool.stats().lingering == 0)
    committed = greendefer.wait_for_deferred(pool.submit(names, model, alias))
    assert committed == (["0", "1", "2"] if good else [])


def test_a_transaction_that_a_call_leaves_open(alias: str, model: Any) -> None:
    """It is rolled back, and the next call in the same thread is in none."""
    from django.db import transaction

    from greendefer.contrib.django import closing_connections

    pool = NativeThreadPool(1, around=closing_connections)

    def leave_open() -> None:
        transaction.atomic(using=alias).__enter__()
        model.objects.using(alias).create(name="lost")

    greendefer.wait_for_deferred(pool.submit(leave_open))
    greendefer.wait_for_deferred(pool.submit(model.objects.using(alias).create, name="kept"))
    assert greendefer.wait_for_deferred(pool.submit(names, model, alias)) == ["kept"]


def test_threads_have_connections_of_their_own(
    alias: str, pool: NativeThreadPool, in_reactor: Callable[..., Any], ticker: Any
) -> None:
    """As many workers at once as there are threads, each with one through all of its calls."""
    from django.db import connections

    everybody: Deferred[None] = Deferred()
    there: list[int] = []

    def connection() -> int:
        connections[alias].ensure_connection()
        return id(connections[alias].connection)

    async def use(n: int) -> int:
        async with pool.worker() as w:
            mine = await w.submit(connection)
            there.append(mine)
            if len(there) == AT_ONCE:
                everybody.callback(None)
            await another(everybody)
            assert await w.submit(connection) == mine
            return mine

    started = in_reactor(lambda: [Deferred.fromCoroutine(use(n)) for n in range(AT_ONCE)])
    assert {greendefer.wait_for_deferred(d, 50) for d in started} == set(there)
    assert len(set(there)) == AT_ONCE
    assert ticker.ticks > 0


def test_in_worker_processes(django_server: Any) -> None:
    """``ExecutorPool(around=closing_connections)``: so does a process with its connections."""
    from greendefer.contrib.django import closing_connections
    from systems.exampleapp import processes
    from systems.exampleapp.models import sql

    user = f"app_{ALIASES[1]}"
    executor = ProcessPoolExecutor(
        2,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=processes.set_up,
        initargs=(django_server.port, user),
    )
    pool = ExecutorPool(executor, 2, around=closing_connections)
    calls = [pool.submit(processes.connected) for _ in range(20)]
    for pid, was_connected, is_connected in [greendefer.wait_for_deferred(d, 50) for d in calls]:
        assert pid != os.getpid()
        assert not was_connected
        assert is_connected
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
    until(lambda: sql("control", sessions, user) == 0, "no session is left")
    greendefer.wait_for_deferred(pool.close())
    executor.shutdown()
