"""The measures of the other tests notice what blocks: see ``conftest.py``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import gevent
import pytest
from gevent import monkey
from programs import PATCHED
from servers import MariaDB, PostgreSQL, Redis
from twisted.internet.defer import Deferred

import greendefer
from greendefer import GreenPool, NativeThreadPool

from .clients import NAP as LONG_NAP
from .conftest import DRIVER, needs

unpatched = pytest.mark.skipif(PATCHED, reason="patched, it gives way")
native_sleep: Callable[[float], None] = monkey.get_original("time", "sleep")

AT_ONCE = 8
NAP = 0.2


class Server:
    """Counts who waits in it."""

    def __init__(self, wait: Callable[[float], object], seconds: float = NAP) -> None:
        self.waiting = 0
        self._wait = wait
        self._seconds = seconds

    def call(self) -> None:
        self.waiting += 1
        self._wait(self._seconds)
        self.waiting -= 1


def calls(server: Server, pool: Any) -> list[Deferred[None]]:
    return [pool.submit(server.call) for _ in range(AT_ONCE)]


def test_calls_that_give_way(in_the_time_of_one: Any) -> None:
    server = Server(gevent.sleep, LONG_NAP)
    in_the_time_of_one(lambda: calls(server, GreenPool(AT_ONCE)), LONG_NAP)


def test_calls_that_block_but_not_here(in_the_time_of_one: Any) -> None:
    server = Server(native_sleep, LONG_NAP)
    in_the_time_of_one(lambda: calls(server, NativeThreadPool(AT_ONCE)), LONG_NAP)


def test_calls_that_block_take_the_time_of_all(in_the_time_of_one: Any) -> None:
    with pytest.raises(AssertionError):
        in_the_time_of_one(lambda: calls(Server(native_sleep), GreenPool(AT_ONCE)), NAP)


def test_one_call_that_blocks_holds_the_ticker(in_the_time_of_one: Any) -> None:
    """Although all of them together take little more than the time of one."""

    def start() -> list[Deferred[None]]:
        one = GreenPool(1).submit(Server(native_sleep).call)
        return [one, *calls(Server(gevent.sleep), GreenPool(AT_ONCE))]

    with pytest.raises(AssertionError):
        in_the_time_of_one(start, NAP)


def test_calls_one_after_the_other_take_too_long(in_the_time_of_one: Any) -> None:
    """Although the reactor goes on."""
    with pytest.raises(AssertionError):
        in_the_time_of_one(lambda: calls(Server(gevent.sleep), GreenPool(1)), NAP)


def test_calls_that_block_are_never_together(measures: Any) -> None:
    server = Server(native_sleep)
    measures.times = 2 * AT_ONCE
    started = calls(server, GreenPool(AT_ONCE))
    with pytest.raises(AssertionError, match="wait in the server"):
        measures.together(started, lambda: server.waiting, lambda: None)
    for d in started:
        greendefer.wait_for_deferred(d)


# And so they do for real clients on real servers, where those are not patched.


def blocks(wait: Callable[[float], object], in_the_time_of_one: Any) -> None:
    with pytest.raises(AssertionError):
        in_the_time_of_one(lambda: calls(Server(wait), GreenPool(AT_ONCE)), NAP)


@unpatched
def test_postgresql_unpatched(postgresql: PostgreSQL, in_the_time_of_one: Any) -> None:
    psycopg = needs(DRIVER)
    if DRIVER == "psycopg2":
        psycopg.extensions.set_wait_callback(None)  # which another test may have installed

    def wait(seconds: float) -> None:
        connection = psycopg.connect(f"host=127.0.0.1 port={postgresql.port} user=postgres")
        with closing(connection), connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(%s)", [seconds])

    blocks(wait, in_the_time_of_one)


@unpatched
def test_pymysql_unpatched(mariadb: MariaDB, in_the_time_of_one: Any) -> None:
    pymysql = needs("pymysql")

    def wait(seconds: float) -> None:
        connection = pymysql.connect(host="127.0.0.1", port=mariadb.port, user="root")
        with closing(connection), connection.cursor() as cursor:
            cursor.execute("SELECT SLEEP(%s)", [seconds])

    blocks(wait, in_the_time_of_one)


@unpatched
def test_redis_unpatched(redis_server: Redis, in_the_time_of_one: Any) -> None:
    redis = needs("redis")

    def wait(seconds: float) -> None:
        with redis.Redis(port=redis_server.port) as client:
            client.blpop("nothing comes here", timeout=seconds)

    blocks(wait, in_the_time_of_one)
