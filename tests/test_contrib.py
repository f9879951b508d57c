"""``greendefer.contrib`` without the drivers, whose own tests are those of tests/systems: what only
other versions of them would lead to, and what happens where one is missing."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from gevent import monkey
from greenlet import GreenletExit
from programs import PATCHED

from greendefer.contrib import psycopg

thread_ident = monkey.get_original("_thread", "get_ident")


class Connection:
    """As psycopg 3's, of which a greenlet was killed that waited for an answer."""

    def __init__(self) -> None:
        self.closed = False
        self.cancelled_in: list[int] = []

    def wait(self) -> None:
        raise GreenletExit

    def fileno(self) -> int:
        raise OSError("the connection is lost")

    def cancel(self) -> None:
        self.cancelled_in.append(thread_ident())

    def close(self) -> None:
        self.closed = True


def their_wait(gen: Any, fileno: int, interval: float = 0.0, timeout: float | None = None) -> Any:
    raise AssertionError("nobody waits here")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have these modules only; ``install()`` can import no other ones."""

    def only(**modules: Any) -> None:
        monkeypatch.setattr(psycopg, "_import", modules.get)

    return only


@pytest.fixture
def psycopg3(only: Any) -> Any:
    class ItsConnection(Connection):
        wait = Connection.wait

    module = SimpleNamespace(
        Connection=ItsConnection,
        waiting=SimpleNamespace(wait=their_wait),
        capabilities=SimpleNamespace(has_cancel_safe=lambda: False),
    )
    only(psycopg=module)
    return module


def test_neither_driver_is_there(only: Any) -> None:
    only()
    with pytest.raises(ImportError, match="neither is there"):
        psycopg.install()


def test_its_own_waiting_is_replaced_where_it_would_give_way(psycopg3: Any) -> None:
    """Unpatched it holds the loop, as everything does; and it is done once."""
    psycopg.install()
    wait, wait_at_all = psycopg3.waiting.wait, psycopg3.Connection.wait
    assert (wait is not their_wait) == PATCHED
    psycopg.install()
    assert psycopg3.waiting.wait is wait
    assert psycopg3.Connection.wait is wait_at_all


def test_a_pool_that_knows_of_no_exceptions_in_its_clients(psycopg3: Any, only: Any) -> None:
    """As psycopg_pool before it had that name, which must not be given to it."""
    pool = ModuleType("psycopg_pool.pool")
    only(**{"psycopg": psycopg3, "psycopg_pool.pool": pool})
    psycopg.install()
    assert not hasattr(pool, "CLIENT_EXCEPTIONS")


def test_a_killed_wait_on_a_connection_that_is_lost(psycopg3: Any) -> None:
    """The server can't be told any more; nobody uses it again all the same."""
    psycopg.install()
    connection = psycopg3.Connection()
    with pytest.raises(GreenletExit):
        connection.wait()
    assert connection.closed


def test_a_query_is_cancelled_in_a_thread_before_libpq_17(psycopg3: Any) -> None:
    connection = psycopg3.Connection()
    psycopg._cancel_psycopg(connection)
    (ident,) = connection.cancelled_in
    assert ident != thread_ident()
