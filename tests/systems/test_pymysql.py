"""PyMySQL, which is pure Python, on MariaDB."""

from __future__ import annotations

from typing import Any

import pytest
from servers import MariaDB

from .conftest import needs
from .mysql import MySQLClient, MySQLTests, query

pymysql = needs("pymysql")


def connect(port: int) -> Any:
    # Or it reads the machine's certificates at each connect, though the server has no TLS.
    return pymysql.connect(
        host="127.0.0.1", port=port, user="root", autocommit=True, ssl_disabled=True
    )


class PyMySQLClient(MySQLClient):
    errors = (
        pymysql.err.OperationalError,
        pymysql.err.InterfaceError,
        pymysql.err.InternalError,
    )

    def connect(self, port: int) -> Any:
        return connect(port)

    def is_open(self, connection: Any) -> bool:
        return bool(connection.open)


class TestPyMySQL(MySQLTests):
    client_class = PyMySQLClient


DJANGO = """
    import sys, pymysql
    pymysql.install_as_MySQLdb()
    import greendefer
    greendefer.install(sys.argv[2])
    import gevent
    from django.conf import settings
    from twisted.internet.defer import CancelledError, gatherResults
    from twisted.internet.task import deferLater, react
    from twisted.python import log

    settings.configure(
        DATABASES={"default": {
            "ENGINE": "django.db.backends.mysql", "NAME": "test", "USER": "root",
            "HOST": "127.0.0.1", "PORT": int(sys.argv[1]), "OPTIONS": {"ssl_disabled": True},
        }},
        INSTALLED_APPS=["greendefer.contrib.django"],
    )
    import django
    django.setup()
    from django.db import connection, transaction

    N = 20
    table = f"ledger_{sys.argv[2]}"
    errors = []
    log.addObserver(lambda event: errors.append(event) if event["isError"] else None)

    def sql(statement):
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return (cursor.fetchone() or [None])[0]

    def half():
        with transaction.atomic():
            sql(f"INSERT INTO {table} VALUES (1)")
            sql("SELECT SLEEP(600)")

    def leaves_open():
        transaction.atomic().__enter__()
        sql(f"INSERT INTO {table} VALUES (2)")

    run = greendefer.defer_to_greenlet

    async def until(statement, expected):
        while await run(sql, statement) != expected:
            await deferLater(reactor, 0.01)

    async def main(reactor):
        calls = [run(half) for _ in range(N)]
        sleeping = "SELECT count(*) FROM information_schema.processlist WHERE state = 'User sleep'"
        await until(sleeping, N)
        ticks = [await deferLater(reactor, 0.01) for _ in range(5)]
        for d in calls:
            d.cancel()
        for d in calls:
            try:
                await d
            except CancelledError:
                pass
            else:
                raise AssertionError("not cancelled")
        numbers = [run(sql, f"SELECT {n}") for n in range(200)]
        assert await gatherResults(numbers) == list(range(200))
        await run(leaves_open)
        # The server itself goes on with what a killed call has asked for: see the README.
        await until(f"SELECT count(*) FROM {table}", 0)
        assert await run(lambda: connection.connection) is None
        assert not errors, errors
        print("done")

    from twisted.internet import reactor
    react(main)
    """


@pytest.mark.parametrize("kind", ["native", "asyncio"])
def test_django_in_greenlets(kind: str, mariadb: MariaDB, run_program: Any) -> None:
    """On PyMySQL the ORM gives way; calls that are killed leave no half-read connection behind."""
    needs("django")
    with connect(mariadb.port) as control:
        query(control, f"CREATE TABLE test.ledger_{kind} (n INT) ENGINE=InnoDB")
    assert run_program(DJANGO, args=[str(mariadb.port), kind]).stdout == "done\n"
