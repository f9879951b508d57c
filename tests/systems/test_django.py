"""The Django ORM on PostgreSQL: connections go back, transactions roll back, nothing blocks.

It runs in two environments: Django takes psycopg 3 wherever it can import it, so psycopg2 has one
of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gevent
import pytest
from gevent.event import Event
from programs import joined, run_python
from servers import PostgreSQL
from twisted.internet.defer import CancelledError, Deferred

import greendefer
from greendefer import CallTimeout, GreenPool, PoolClosed, Timeouts

from .clients import NAP
from .conftest import ALIASES, CONNECTIONS, needs, until

needs("django")
needs("django_db_geventpool")


@pytest.fixture
def server(django_server: PostgreSQL) -> PostgreSQL:
    return django_server


@pytest.fixture
def asked(server: PostgreSQL) -> Callable[..., Any]:
    """Ask the server, on a connection apart."""
    from systems.exampleapp.models import sql

    return partial(sql, "control")


@pytest.fixture
def model(asked: Callable[..., Any]) -> Any:
    from django.db import connections

    from systems.exampleapp.models import ExampleModel

    with connections["control"].cursor() as cursor:
        cursor.execute("DELETE FROM exampleapp_examplemodel")
    return ExampleModel


@pytest.fixture
def query() -> Callable[..., Any]:
    from systems.exampleapp.models import sql

    return sql


@pytest.fixture(params=ALIASES)
def alias(request: Any) -> Any:
    return request.param


@pytest.fixture
def pool(server: PostgreSQL) -> Iterator[GreenPool]:
    """As many workers as there may be connections: the plain backend has no other bound."""
    from greendefer.contrib.django import closing_connections

    pool = GreenPool(CONNECTIONS, around=closing_connections)
    yield pool
    greendefer.wait_for_deferred(pool.close(grace=0))


SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
WAITING = SESSIONS + " AND wait_event_type = 'Lock'"
BUSY = SESSIONS + " AND state <> 'idle'"
SLEEPING = SESSIONS + " AND wait_event = 'PgSleep'"


class Lock:
    """A lock in the server: whoever calls ``wait`` waits there until ``release()``."""

    def __init__(self, asked: Callable[..., Any], query: Callable[..., Any], alias: str) -> None:
        self._asked = asked
        self._query = query
        self.alias = alias
        asked("SELECT pg_advisory_lock(1) IS NULL")

    def wait(self) -> Any:
        self._query(self.alias, "SELECT pg_advisory_lock_shared(1) IS NULL")
        return self._query(self.alias, "SELECT pg_advisory_unlock_shared(1)")

    def waiting(self) -> int:
        count: int = self._asked(WAITING, f"app_{self.alias}")
        return count

    def release(self) -> None:
        self._asked("SELECT pg_advisory_unlock(1)")


@pytest.fixture
def lock(asked: Any, query: Any, alias: str) -> Iterator[Lock]:
    lock = Lock(asked, query, alias)
    yield lock
    asked("SELECT pg_advisory_unlock_all() IS NULL")


def test_the_sentence_that_it_all_began_with(model: Any, reactor: Any) -> None:
    model.objects.using("control").create(name="first")
    d = reactor.deferToGreenlet(list, model.objects.all())
    (example,) = greendefer.wait_for_deferred(d)
    assert example.name == "first"


def test_decorated_functions_and_model_methods(model: Any, alias: str) -> None:
    @greendefer.green_deferred
    def create(name: str) -> Any:
        return model.objects.using(alias).create(name=name)

    example = greendefer.wait_for_deferred(create("first"))
    assert greendefer.wait_for_deferred(example.renamed("second")).name == "second"
    model.objects.using("control").update(name="third")
    assert greendefer.wait_for_deferred(example.reread()) == "third"
    assert greendefer.wait_for_deferred(model.count_in(alias)) == 1


def test_queries_wait_together(lock: Lock, together: Any) -> None:
    calls = [greendefer.defer_to_greenlet(lock.wait) for _ in range(CONNECTIONS)]
    assert together(calls, lock.waiting, lock.release) == [True] * CONNECTIONS


def test_calls_take_the_time_of_one(
    alias: str, query: Any, pool: GreenPool, in_the_time_of_one: Any
) -> None:
    def start() -> list[Deferred[Any]]:
        return [pool.submit(query, alias, "SELECT pg_sleep(%s)", NAP) for _ in range(CONNECTIONS)]

    greendefer.wait_for_deferred(pool.submit(query, alias, "SELECT 1"))
    in_the_time_of_one(start, NAP)


def test_ten_thousand_calls_over_twenty_connections(
    alias: str, asked: Any, query: Any, ticker: Any, reactor: Any, patient: None
) -> None:
    """Calls that return, raise, time out and are cancelled, on the default pool of 100. More than
    20 connections at any moment, and the server would refuse one: then some call would fail with
    what it does not expect here."""
    from django.db import DataError, connections

    if alias == "plain":
        pytest.skip("Django's backend without a pool has no bound but the size of the GreenPool")
    most = 0
    sampling = True

    def sample() -> None:
        nonlocal most
        while sampling:
            most = max(most, query("control", SESSIONS, f"app_{alias}"))
            gevent.sleep(0.005)
        connections["control"].close()

    sampler = gevent.spawn(sample)
    quick = greendefer.green_deferred(query)
    slow = greendefer.with_options(quick, timeout=Timeouts(running=0.3))
    calls: list[Deferred[Any]] = []
    expected: list[Any] = []
    for n in range(10_000):
        if n % 100 == 17:
            calls.append(quick(alias, "SELECT 1/0 + %s", n))
            expected.append(DataError)
        elif n % 500 == 33:
            calls.append(slow(alias, "SELECT pg_sleep(600)"))
            expected.append(CallTimeout)
        elif n % 500 == 66:
            calls.append(quick(alias, "SELECT pg_sleep(600)"))
            expected.append(CancelledError)
            _cancel_when_it_sleeps(calls[-1], reactor)
        else:
            calls.append(quick(alias, "SELECT %s", n))
            expected.append(n)
    for n, (d, result) in enumerate(zip(calls, expected, strict=True)):
        if isinstance(result, type):
            with pytest.raises(result):
                greendefer.wait_for_deferred(d, 250)
        else:
            assert greendefer.wait_for_deferred(d, 250) == n
    sampling = False
    sampler.get()
    assert 1 < most <= CONNECTIONS
    until(lambda: asked(BUSY, f"app_{alias}") == 0, "no session is left in a query")
    assert ticker.ticks > 20


def _cancel_when_it_sleeps(d: Any, reactor: Any) -> None:
    """Some time after it has begun."""
    began = d.begin

    def begin() -> None:
        began()
        reactor.callLater(0.1, d.cancel)

    d.begin = begin


@pytest.mark.parametrize("how", ["return", "raise", "cancel", "timeout"])
def test_connections_go_back(
    how: str, alias: str, asked: Any, query: Any, pool: GreenPool, result: Any
) -> None:
    """With as many calls as connections, all at once, again and again."""
    for _ in range(3):
        calls = []
        for n in range(CONNECTIONS):
            statement = "SELECT pg_sleep(600)" if how in ("cancel", "timeout") else f"SELECT {n}"
            call = greendefer.green_deferred(pool=pool)(query)
            if how == "raise":
                statement = "SELECT nonsense"
            elif how == "timeout":
                call = greendefer.with_options(call, timeout=0.3)
            calls.append(call(alias, statement))
        results = [result(d) for d in calls]
        if how == "cancel":
            until(lambda: asked(SLEEPING, f"app_{alias}") == CONNECTIONS)
            for d in calls:
                d.cancel()
        for n, each in enumerate(results):
            if how == "return":
                assert each.get() == n
            elif how == "raise":
                assert each.error().__name__ == "ProgrammingError"
            else:
                assert each.error() is (CancelledError if how == "cancel" else CallTimeout)
    again = greendefer.green_deferred(pool=pool)(query)
    assert greendefer.wait_for_deferred(again(alias, "SELECT 1")) == 1
    until(lambda: pool.stats().lingering == 0)
    until(lambda: asked(BUSY, f"app_{alias}") == 0, "no session is left in a query")
    if alias == "plain":
        until(lambda: asked(SESSIONS, f"app_{alias}") == 0, "they are closed")


@pytest.mark.parametrize("how", ["cancel", "timeout", "close"])
@pytest.mark.parametrize("when", ["in a query", "between queries"])
def test_a_transaction_of_a_killed_call_is_rolled_back(
    when: str,
    how: str,
    alias: str,
    model: Any,
    query: Any,
    asked: Any,
    server: PostgreSQL,
    result: Any,
) -> None:
    """Killed half-way: it is cancelled, out of time, or its pool is closed."""
    from django.db import transaction

    from greendefer.contrib.django import closing_connections

    pool = GreenPool(CONNECTIONS, around=closing_connections)
    between = Event()

    def insert() -> None:
        with transaction.atomic(using=alias):
            model.objects.using(alias).create(name="half")
            if when == "in a query":
                query(alias, "SELECT pg_sleep(600)")
            else:
                between.set()
                Event().wait()

    timeout = Timeouts(running=1) if how == "timeout" else None
    d = greendefer.green_deferred(pool=pool, timeout=timeout)(insert)()
    killed = result(d)
    if when == "in a query":
        until(lambda: asked(SLEEPING, f"app_{alias}") == 1)
    else:
        assert between.wait(20)
    if how == "cancel":
        d.cancel()
    elif how == "close":
        pool.close(grace=0)
    errors = {"cancel": CancelledError, "timeout": CallTimeout, "close": PoolClosed}
    assert killed.error() is errors[how]
    until(lambda: pool.stats().lingering == 0)
    assert asked("SELECT count(*) FROM exampleapp_examplemodel") == 0
    until(lambda: asked(BUSY, f"app_{alias}") == 0, "no session is left in a query")
    if how == "close":
        pool = GreenPool(CONNECTIONS, around=closing_connections)
    create = greendefer.green_deferred(pool=pool)(model.objects.using(alias).create)
    greendefer.wait_for_deferred(create(name="whole"))
    assert asked("SELECT count(*) FROM exampleapp_examplemodel") == 1


@pytest.mark.parametrize("good", [True, False])
def test_a_transaction_over_several_calls(
    good: bool, alias: str, model: Any, query: Any, asked: Any, pool: GreenPool, in_reactor: Any
) -> None:
    """On one worker they are all on one connection, and it goes back when the worker ends."""
    from django.db import transaction

    backend = partial(query, alias, "SELECT pg_backend_pid()")
    others: set[int] = set()

    async def use() -> None:
        atomic = transaction.atomic(using=alias)
        async with pool.worker() as w:
            await w.submit(atomic.__enter__)
            pids = {await w.submit(backend)}
            for n in range(3):
                await w.submit(model.objects.using(alias).create, name=str(n))
                pids.add(await w.submit(backend))
                others.add(await pool.submit(backend))
            assert len(pids) == 1
            assert not pids & others
            assert await pool.submit(model.objects.using(alias).count) == 0
            if not good:
                raise KeyError("before the end of the transaction")
            await w.submit(atomic.__exit__, None, None, None)

    if good:
        in_reactor(lambda: Deferred.fromCoroutine(use()))
    else:
        with pytest.raises(KeyError):
            in_reactor(lambda: Deferred.fromCoroutine(use()))
        until(lambda: pool.stats().running + pool.stats().lingering == 0)
    assert asked("SELECT count(*) FROM exampleapp_examplemodel") == 3 * good
    until(lambda: asked(BUSY, f"app_{alias}") == 0, "no session is left in a query")


def test_a_transaction_that_a_call_leaves_open(
    alias: str, model: Any, asked: Any, in_reactor: Any, server: Any
) -> None:
    """It is rolled back, and the next call on the same worker is in none."""
    from django.db import transaction

    from greendefer.contrib.django import closing_connections

    pool = GreenPool(1, around=closing_connections)

    def leave_open() -> None:
        transaction.atomic(using=alias).__enter__()
        model.objects.using(alias).create(name="lost")

    greendefer.wait_for_deferred(pool.submit(leave_open))
    until(lambda: asked(BUSY, f"app_{alias}") == 0, "the server has rolled back")
    create = greendefer.green_deferred(pool=pool)(model.objects.using(alias).create)
    greendefer.wait_for_deferred(create(name="kept"))
    assert asked("SELECT string_agg(name, ',') FROM exampleapp_examplemodel") == "kept"


def test_a_call_that_is_killed_while_it_waits_for_a_connection(
    alias: str, lock: Lock, query: Any, result: Any, together: Any
) -> None:
    """It takes none with it."""
    if alias == "plain":
        pytest.skip("it waits for none")
    busy = [greendefer.defer_to_greenlet(lock.wait) for _ in range(CONNECTIONS)]
    waiting: list[Any] = []

    def killed() -> None:
        for d in waiting:
            d.cancel()
        lock.release()

    until(lambda: lock.waiting() == CONNECTIONS)
    waiting += [greendefer.defer_to_greenlet(query, alias, f"SELECT {n}") for n in range(20)]
    cancelled = [result(d) for d in waiting]
    assert together(busy, lock.waiting, killed) == [True] * CONNECTIONS
    assert {each.error() for each in cancelled} == {CancelledError}
    lock = Lock(lock._asked, query, alias)
    again = [greendefer.defer_to_greenlet(lock.wait) for _ in range(CONNECTIONS)]
    assert together(again, lock.waiting, lock.release) == [True] * CONNECTIONS


def test_each_answer_is_its_own(alias: str, query: Any, pool: GreenPool, asked: Any) -> None:
    """Calls that swallow a gevent.Timeout in the middle of a query, and then ask again."""

    def ask(n: int) -> Any:
        with gevent.Timeout(0.05, False):
            query(alias, "SELECT pg_sleep(600)")
        try:
            return query(alias, "SELECT %s", n)
        except Exception as e:
            return type(e).__name__  # its connection is gone, and Django says so

    for _ in range(2):
        for n, d in enumerate([pool.submit(ask, n) for n in range(CONNECTIONS)]):
            assert greendefer.wait_for_deferred(d) in (n, "InterfaceError", "OperationalError")
        for n, d in enumerate([pool.submit(query, alias, "SELECT %s", n) for n in range(100)]):
            assert greendefer.wait_for_deferred(d) == n
    until(lambda: asked(BUSY, f"app_{alias}") == 0, "no session is left in a query")


def test_the_server_stops_in_the_middle_of_queries_and_comes_back(
    alias: str, server: PostgreSQL, asked: Any, query: Any, pool: GreenPool
) -> None:
    """The calls fail with Django's own error; a call while there is none fails, too; after that
    everything is as it was."""
    from django.db import DatabaseError, InterfaceError, OperationalError, connections

    calls = [pool.submit(query, alias, "SELECT pg_sleep(600)") for _ in range(CONNECTIONS)]
    until(lambda: asked(SLEEPING, f"app_{alias}") == CONNECTIONS)
    connections["control"].close()
    server.stop()
    try:
        for d in calls:
            with pytest.raises((OperationalError, InterfaceError, DatabaseError)):
                greendefer.wait_for_deferred(d, 20)
        if alias != "pooled":  # there it is the pool who tries again, for its timeout of 60 s
            with pytest.raises(OperationalError):
                greendefer.wait_for_deferred(pool.submit(query, alias, "SELECT 1"), 20)
    finally:
        server.start()
    for n, d in enumerate([pool.submit(query, alias, "SELECT %s", n) for n in range(100)]):
        assert greendefer.wait_for_deferred(d, 60) == n


def test_a_connection_that_can_not_be_given_back(
    alias: str, query: Any, pool: GreenPool, logged: list[dict[str, Any]]
) -> None:
    """It is logged; the call has its result all the same, and so has the next one."""
    from django.db import connections

    def call() -> Any:
        answer = query(alias, "SELECT 1")
        connection = connections[alias]

        def refuse() -> None:
            del connection.close_if_unusable_or_obsolete
            raise RuntimeError("refused")

        connection.close_if_unusable_or_obsolete = refuse
        return answer

    assert greendefer.wait_for_deferred(pool.submit(call)) == 1
    (warning,) = [each for each in logged if "Closing" in str(each.get("log_format"))]
    logged.remove(warning)
    assert warning["log_failure"].type is RuntimeError
    assert warning["log_level"].name == "warn"
    assert greendefer.wait_for_deferred(pool.submit(query, alias, "SELECT 2")) == 2


def test_a_backend_is_kept_to_its_maximum_once(server: PostgreSQL) -> None:
    from django.db import connections

    from greendefer.contrib.django.geventpool import keep_to_maximum

    pooled = type(connections["default"])  # by django-db-geventpool
    pool_class = pooled.pool_class
    keep_to_maximum(pooled)
    assert pooled.pool_class is pool_class


def test_what_the_program_has_around_its_calls_is_left_alone() -> None:
    source = """
        from contextlib import nullcontext
        from gevent import monkey
        monkey.patch_all()
        import greendefer
        from greendefer._pool import default_pool
        default_pool.around = nullcontext
        from django.conf import settings
        settings.configure(INSTALLED_APPS=["greendefer.contrib.django"])
        import django
        django.setup()
        assert default_pool.around is nullcontext
    """
    run_python("-c", joined(source))


def test_unpatched_it_is_refused() -> None:
    """All greenlets would share a connection."""
    source = """
        import greendefer
        greendefer.install()
        from django.conf import settings
        from twisted.internet import reactor
        settings.configure(INSTALLED_APPS=["greendefer.contrib.django"])
        import django
        django.setup()
        d = greendefer.defer_to_greenlet(print, "not refused")
        d.addErrback(lambda failure: print(failure.value))
        d.addBoth(lambda _: reactor.stop())
        reactor.run()
    """
    done = run_python("-c", joined(source), check=False)
    assert "all greenlets are one thread to it" in done.stdout, done.stderr
    assert "not refused" not in done.stdout
