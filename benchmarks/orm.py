"""A Django ORM query of one row on PostgreSQL: 50 at once, over 20 connections.

Against Django in threads with a persistent connection each, under Twisted and under asyncio.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

from harness import HERE, Bench, Missing, Round, Side, middle, run

CONNECTIONS = 20


def set_up(port: int, database: dict[str, Any]) -> Any:
    """Configure Django. Returns a model."""
    import django
    from django.conf import settings

    address = {"NAME": "postgres", "USER": "postgres", "HOST": "127.0.0.1", "PORT": port}
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", **address, **database}},
        INSTALLED_APPS=["greendefer.contrib.django"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()
    from django.db import models

    class Line(models.Model):
        text = models.CharField(max_length=100)

        class Meta:
            app_label = "benchmark"

    return Line


def table(port: int) -> Callable[[], Round]:
    """Not measured: the one table, and its one row."""
    line = set_up(port, {})
    from django.db import connection

    def round() -> Round:
        with connection.schema_editor() as editor:
            editor.create_model(line)
        line(pk=1, text="the only one").save(force_insert=True)
        return {}

    return round


def all_queries(
    query: Callable[[Callable[[Any], None], Callable[[Any], None]], Any],
    loop: Any,
    at_once: int,
    queries: int,
) -> Callable[[], Awaitable[Round]]:
    """A round: see :func:`at_once.make_calls` for the arguments."""
    from at_once import make_calls

    def is_right(row: Any) -> bool:
        return bool(row.text == "the only one")

    async def round() -> Round:
        seconds, lateness = await make_calls(query, is_right, loop, at_once, queries)
        return {"us": seconds / queries * 1e6, **lateness}

    return round


def green(port: int, at_once: int, queries: int, database: dict[str, Any]) -> Any:
    line = set_up(port, database)
    from twisted.internet import reactor

    import greendefer
    from greendefer.contrib.django import closing_connections

    pool = greendefer.GreenPool(CONNECTIONS, around=closing_connections)

    @greendefer.green_deferred(pool=pool)
    def get() -> Any:
        return line.objects.get(pk=1)

    return all_queries(lambda *ends: get().addCallbacks(*ends), reactor, at_once, queries)


def threads(port: int, at_once: int, queries: int) -> Any:
    line = set_up(port, {"CONN_MAX_AGE": None})
    from twisted.internet import reactor
    from twisted.internet.threads import deferToThread

    reactor.suggestThreadPoolSize(CONNECTIONS)

    def query(*ends: Callable[[Any], None]) -> None:
        deferToThread(line.objects.get, pk=1).addCallbacks(*ends)

    return all_queries(query, reactor, at_once, queries)


def sync_to_async(port: int, at_once: int, queries: int, own_threads: bool) -> Any:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from asgiref.sync import sync_to_async

    line = set_up(port, {"CONN_MAX_AGE": None})
    if own_threads:
        executor = ThreadPoolExecutor(CONNECTIONS)
        get = sync_to_async(line.objects.get, thread_sensitive=False, executor=executor)
    else:
        get = sync_to_async(line.objects.get)

    def query(ended: Callable[[Any], None], failed: Callable[[Any], None]) -> None:
        asyncio.ensure_future(get(pk=1)).add_done_callback(lambda task: ended(task.result()))

    return all_queries(query, asyncio.get_running_loop(), at_once, queries)


def postgresql() -> Any:
    """A PostgreSQL of our own, as the tests have it."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    import pytest
    import servers

    try:
        return servers.PostgreSQL()
    except (pytest.skip.Exception, pytest.fail.Exception) as e:
        raise Missing(str(e)) from None
    finally:
        sys.path.pop(0)


def main(bench: Bench) -> None:
    server = postgresql()
    try:
        at = {"port": server.port}
        bench.measure([Side("table", "table", options=at)], rounds=1, warm_up=0)
        options = {**at, "at_once": bench.size(50, 10), "queries": bench.size(1000, 20)}
        engine = "django_db_geventpool.backends.postgresql_psycopg3"
        pooled = {"ENGINE": engine, "CONN_MAX_AGE": 0, "OPTIONS": {"MAX_CONNS": CONNECTIONS}}
        kept = {"CONN_MAX_AGE": None}
        samples = bench.measure(
            [
                Side("geventpool", "green", "green", True, {**options, "database": pooled}),
                Side("persistent", "green", "green", True, {**options, "database": kept}),
                Side("deferToThread", "threads", "epoll", options=options),
                Side(
                    *("sync_to_async, 20 threads", "sync_to_async", "asyncio", False),
                    {**options, "own_threads": True},
                ),
                Side(
                    *("sync_to_async, its one thread", "sync_to_async", "asyncio", False),
                    {**options, "own_threads": False},
                ),
            ]
        )
    finally:
        server.remove()
    # The last is what Django's own `aget()` does. It has one connection, and no two at once.
    peers = ("deferToThread", "sync_to_async, 20 threads", "sync_to_async, its one thread")
    for ours, connections in (
        ("persistent", "a persistent connection a worker"),
        ("geventpool", "django-db-geventpool"),
    ):
        for peer in peers:
            named = peer is not peers[-1]
            what = f"a Django query, {connections}"
            bench.row(what, samples, ours, peer, "us", "us", at_least=1.1 if named else None)
            what = f"the reactor's lateness meanwhile, p99, {connections}"
            limit = 1.0 if named else None
            bench.row(what, samples, ours, peer, "p99 ms", "ms", at_least=limit, cpu=False)
    bench.series["orm"] = {
        side: {cost: middle(samples, side, cost) for cost in ("us", "p99 ms")} for side in samples
    }


if __name__ == "__main__":
    run(__file__, main)
