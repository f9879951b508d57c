"""Every test here counts: so many calls wait in the server at one moment, as it says itself, and
meanwhile the reactor's ticker ticks. Nothing goes by how long anything takes."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from conftest import PATCHED
from gevent.event import Event
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before any server is started for them."""
    if not PATCHED:
        skip = pytest.mark.skip(reason="patched only: python -m gevent.monkey --module pytest")
        for item in items:
            if Path(__file__).parent in item.path.parents:
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


@pytest.fixture(scope="session")
def django() -> Any:
    needs("django_db_geventpool")
    return needs("django")


@pytest.fixture(scope="session")
def django_server(django: Any, postgresql: PostgreSQL) -> Iterator[PostgreSQL]:
    """PostgreSQL with Django set up on it: a role for each alias, which the server itself does not
    allow more than 20 connections."""
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
    lite = str(postgresql.folder / "lite")
    databases["lite"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": lite}
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
            cursor.execute(f"CREATE ROLE app_{alias} LOGIN CONNECTION LIMIT {CONNECTIONS}")
        cursor.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO public")
        cursor.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO public")
    yield postgresql
    control.close()
    greendefer.wait_for_deferred(greendefer.defer_to_greenlet(connections.close_all))


class Ticker:
    """A 10 ms ticker of the reactor's."""

    def __init__(self) -> None:
        self.ticks = 0
        self._wanted: tuple[int, Event] | None = None

    def __call__(self) -> None:
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


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Ask a server, which sends no events, until what it says is so."""
    for _ in range(2000):
        if result := condition():
            return result
        gevent.sleep(0.01)
    raise AssertionError(f"It never came to it that {what or condition}")


@pytest.fixture
def together(ticker: Ticker) -> Callable[..., list[Any]]:
    """All calls wait in the server at one moment, and the reactor ticks on; then they are let go.

    :param waiting: asks the server how many wait.
    :param release: lets them go.
    :returns: their results.
    """

    def run(
        calls: list[Deferred[Any]], waiting: Callable[[], int], release: Callable[[], object]
    ) -> list[Any]:
        try:
            until(lambda: waiting() == len(calls), f"{len(calls)} wait in the server")
            ticker.wait_for(5)
            assert waiting() == len(calls)
            assert not any(d.called for d in calls)
        finally:
            release()
        return [greendefer.wait_for_deferred(d, 20) for d in calls]

    return run
