"""What the tests here measure: do calls that wait, wait together, and does the reactor go on?

Most of them count: so many calls wait in the server at one moment, as it says itself, and meanwhile
the reactor's 10 ms ticker ticks (``together``). For each client one of them goes by the clock, with
bounds that a slow machine keeps and a client that blocks does not (``in_the_time_of_one``).
``test_measures.py`` shows that both notice a call that blocks.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event
from programs import PATCHED
from servers import MariaDB, PostgreSQL, Redis
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

import greendefer


def needs(module: str) -> Any:
    """Import a module. Where it is missing the tests are skipped; in a nox session that is there
    for these tests it fails."""
    if os.environ.get("NOX_CURRENT_SESSION", "").startswith("systems"):
        return importlib.import_module(module)
    return pytest.importorskip(module)


UNPATCHED_TOO = (
    "test_django_native.py",
    "test_measures.py",
    "test_mysqlclient.py",
    "test_sqlite3.py",
)
"""What does not wait by way of anything that could be patched."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before any server is started for them."""
    if not PATCHED:
        skip = pytest.mark.skip(reason="patched only: python -m gevent.monkey --module pytest")
        for item in items:
            if Path(__file__).parent in item.path.parents and item.path.name not in UNPATCHED_TOO:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    server = PostgreSQL()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    server = MariaDB()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    server = Redis()
    yield server
    server.remove()


DRIVER = "psycopg" if importlib.util.find_spec("psycopg") else "psycopg2"
ENGINE = "django_db_geventpool.backends.postgresql_psycopg" + ("3" if DRIVER == "psycopg" else "2")
CONNECTIONS = 20
ALIASES = ["default", "plain"] + ["pooled"] * (DRIVER == "psycopg")
IN_C = ["lite"] + ["maria"] * bool(importlib.util.find_spec("MySQLdb"))
"""Those whose drivers wait in C."""


@pytest.fixture(scope="session")
def django() -> Any:
    needs("django_db_geventpool")
    return needs("django")


@pytest.fixture(scope="session")
def django_server(django: Any, postgresql: PostgreSQL) -> Iterator[PostgreSQL]:
    """PostgreSQL with Django set up on it: a role for each alias, and where connections are pooled
    the server itself does not allow it more than 20 of them. (Where they are not, each is closed
    after its call, and the server may not have ended its session yet when the next call comes.)"""
    from django.conf import settings
    from django.db import connections

    options: dict[str, dict[str, Any]] = {
        "default": {"MAX_CONNS": CONNECTIONS},
        "plain": {},
        "pooled": {"pool": {"min_size": 0, "max_size": CONNECTIONS, "timeout": 60}},
        "control": {},
    }
    databases = {
        alias: {
            "ENGINE": ENGINE if alias == "default" else "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "postgres" if alias == "control" else f"app_{alias}",
            "HOST": "127.0.0.1",
            "PORT": postgresql.port,
            "CONN_MAX_AGE": 0,
            # Or Django's own pool hands out what a restarted server has long closed.
            "CONN_HEALTH_CHECKS": True,
            "OPTIONS": options[alias],
        }
        for alias in [*ALIASES, "control"]
    }
    # For native threads; in a greenlet nobody asks them for anything.
    databases["lite"] = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(postgresql.folder / "lite"),
        "OPTIONS": {"timeout": 2.0},
    }
    if "maria" in IN_C:
        databases["maria"] = {
            "ENGINE": "django.db.backends.mysql",
            "NAME": "test",
            "USER": "root",
            "HOST": "127.0.0.1",
            "PORT": 0,  # see django_mariadb
        }
    settings.configure(
        DATABASES=databases,
        INSTALLED_APPS=["greendefer.contrib.django", "systems.exampleapp"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        ROOT_URLCONF="systems.exampleapp.urls",
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="no secret",
        USE_TZ=True,
    )
    django.setup()
    from systems.exampleapp.models import ExampleModel

    control = connections["control"]
    with control.schema_editor() as editor:
        editor.create_model(ExampleModel)
    with control.cursor() as cursor:
        for alias in ALIASES:
            limit = "" if alias == "plain" else f"CONNECTION LIMIT {CONNECTIONS}"
            cursor.execute(f"CREATE ROLE app_{alias} LOGIN {limit}")
        cursor.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO public")
        cursor.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO public")
    yield postgresql
    control.close()
    if PATCHED:
        greendefer.wait_for_deferred(greendefer.defer_to_greenlet(connections.close_all))


@pytest.fixture(scope="session")
def django_mariadb(django_server: PostgreSQL, mariadb: MariaDB) -> MariaDB:
    """MariaDB, as Django's ``maria``."""
    from django.db import connections

    connections.settings["maria"]["PORT"] = mariadb.port
    return mariadb


@pytest.fixture
def patient() -> None:
    """For a test that computes for some ten seconds: on a busy machine that may be more than the
    minute (``faulthandler_timeout``) after which a test is taken to hang."""
    faulthandler.dump_traceback_later(300, exit=True)


@pytest.fixture(autouse=True)
def no_connection_is_left() -> Iterator[None]:
    """The next test may stop the server, and the one after it ask again."""
    yield
    django_db = sys.modules.get("django.db")
    if django_db is not None and importlib.import_module("django.conf").settings.configured:
        django_db.connections["control"].close()


class Ticker:
    """A 10 ms ticker of the reactor's.

    :ivar ticks: how often it has ticked.
    :ivar longest: the most seconds that it has taken to the next tick. May be set back to 0.
    """

    def __init__(self) -> None:
        self.ticks = 0
        self.longest = 0.0
        self._last = monotonic()
        self._wanted: tuple[int, Event] | None = None

    def __call__(self) -> None:
        now = monotonic()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        self.ticks += 1
        if self._wanted is not None and self.ticks >= self._wanted[0]:
            self._wanted[1].set()

    def wait_for(self, more: int) -> None:
        ticked = Event()
        self._wanted = (self.ticks + more, ticked)
        assert ticked.wait(20), "the reactor does not tick"
        self._wanted = None


@pytest.fixture
def ticker(reactor: Any, in_reactor: Callable[..., Any]) -> Iterator[Ticker]:
    ticker = Ticker()
    looping = LoopingCall(ticker)
    in_reactor(lambda: looping.start(0.01).addErrback(pytest.fail) and None)
    yield ticker
    in_reactor(looping.stop)


def until(condition: Callable[[], Any], what: str = "", times: int = 2000) -> Any:
    """Ask a server, which sends no events, until what it says is so."""
    for _ in range(times):
        if result := condition():
            return result
        gevent.sleep(0.01)
    raise AssertionError(f"It never came to it that {what or condition}")


def another(d: Deferred[None]) -> Deferred[None]:
    """One more Deferred that fires when `d` does: for each who waits for it."""
    one: Deferred[None] = Deferred()
    d.addCallback(lambda _: one.callback(None))
    return one


class Measures:
    """Do calls that wait, wait together, and does the reactor go on meanwhile?

    :ivar times: how often a server is asked whether all of them wait, 10 ms apart, before it is
        taken for certain that they do not.
    """

    def __init__(self, ticker: Ticker) -> None:
        self.ticker = ticker
        self.times = 2000

    def together(
        self,
        calls: list[Deferred[Any]],
        waiting: Callable[[], int],
        release: Callable[[], object],
    ) -> list[Any]:
        """All calls wait in the server at one moment, and the reactor ticks on; then they are let
        go.

        :param waiting: asks the server how many wait.
        :param release: lets them go.
        :returns: their results.
        """
        try:
            until(lambda: waiting() == len(calls), f"{len(calls)} wait in the server", self.times)
            self.ticker.wait_for(5)
            assert waiting() == len(calls)
            assert not any(d.called for d in calls)
        finally:
            release()
        return [greendefer.wait_for_deferred(d, 20) for d in calls]

    def in_the_time_of_one(
        self, start: Callable[[], list[Deferred[Any]]], seconds: float
    ) -> list[Any]:
        """Calls that wait for so many `seconds` each take about as long as one of them: much less
        than half of them would, one after the other. And the reactor does not stop for as long as
        even one of them takes.

        :param start: makes the calls.
        :returns: their results.
        """
        self.ticker.wait_for(1)
        self.ticker.longest = 0.0
        began = monotonic()
        calls = start()
        results = [greendefer.wait_for_deferred(d, 60) for d in calls]
        took = monotonic() - began
        self.ticker.wait_for(1)  # the one that may have come late
        assert seconds * 0.9 <= took < seconds * len(calls) / 4, took
        assert self.ticker.longest < seconds, self.ticker.longest
        return results


@pytest.fixture
def measures(ticker: Ticker) -> Measures:
    return Measures(ticker)


@pytest.fixture
def together(measures: Measures) -> Callable[..., list[Any]]:
    return measures.together


@pytest.fixture
def in_the_time_of_one(measures: Measures) -> Callable[..., list[Any]]:
    return measures.in_the_time_of_one
