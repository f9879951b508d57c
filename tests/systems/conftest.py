"""Every test here counts: so many calls wait in the server at one moment, as it says itself, and
meanwhile the reactor's ticker ticks. Nothing goes by how long anything takes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
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


@pytest.fixture(autouse=True)
def patched() -> None:
    if not PATCHED:
        pytest.skip("patched only: python -m gevent.monkey --module pytest tests/systems")


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
