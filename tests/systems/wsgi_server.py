"""A server of ``test_wsgi.py``: ``python wsgi_server.py REACTOR flask|django [POSTGRESQL_PORT]``.

An application under twisted.web, on the reactor's own thread pool, made of greenlets. It prints its
port. What is below ``/app`` the application answers, everything else Twisted does by itself.
"""

from gevent import monkey

monkey.patch_all()

import sys

import greendefer

greendefer.install(sys.argv[1], threads="green")

import json
import resource
from typing import Any

import gevent
from gevent.event import Event
from gevent.os import tp_read
from twisted.internet import reactor
from twisted.internet.task import LoopingCall
from twisted.python import log
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.wsgi import WSGIResource

AT_ONCE = 1000

get_native_id = monkey.get_original("threading", "get_native_id")


class Counts:
    """What goes on in here."""

    def __init__(self) -> None:
        self.inside = 0
        self.ticks = 0
        self.errors: list[str] = []
        self.threads: set[int] = set()
        self.gate = Event()

    def wait(self) -> None:
        """What a view does first: it waits for the gate, and says so."""
        self.inside += 1
        self.threads.add(get_native_id())
        try:
            self.gate.wait()
        finally:
            self.inside -= 1

    def tick(self) -> None:
        self.ticks += 1

    def log(self, event: dict[str, Any]) -> None:
        if event["isError"]:
            self.errors.append(log.textFromEventDict(event) or "?")

    def report(self) -> dict[str, Any]:
        """They, and how many requests have a slot of the thread pool."""
        return {
            "inside": self.inside,
            "ticks": self.ticks,
            "errors": self.errors,
            "threads": len(self.threads | {get_native_id()}),
            "workers": reactor.getThreadPool().workers,
        }


counts = Counts()


def flask_application() -> Any:
    import flask

    app = flask.Flask("slow")

    @app.get("/slow/<int:n>")
    def slow(n: int) -> Any:
        counts.wait()
        return flask.Response((f"{n} {part} " * 100 for part in range(3)), mimetype="text/plain")

    return app


def django_application() -> Any:
    """Its view sleeps for 50 ms in PostgreSQL, on one of 20 connections."""
    import importlib.util

    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.urls import path

    number = 3 if importlib.util.find_spec("psycopg") else 2
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": f"django_db_geventpool.backends.postgresql_psycopg{number}",
                "NAME": "postgres",
                "USER": "app_default",
                "HOST": "127.0.0.1",
                "PORT": int(sys.argv[3]),
                "CONN_MAX_AGE": 0,
                "OPTIONS": {"MAX_CONNS": 20},
            }
        },
        INSTALLED_APPS=["greendefer.contrib.django"],
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="no secret",
        USE_TZ=True,
    )
    django.setup()
    from django.db import connection

    def slow(request: Any, n: int) -> HttpResponse:
        counts.wait()
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.05), %s", [n])
            n = cursor.fetchone()[1]
        return HttpResponse("".join(f"{n} {part} " * 100 for part in range(3)))

    globals()["urlpatterns"] = [path("slow/<int:n>", slow)]
    return get_wsgi_application()


class Root(Resource):
    def __init__(self, application: Any) -> None:
        super().__init__()
        self.putChild(b"app", WSGIResource(reactor, reactor.getThreadPool(), application))
        for name, f in {
            b"counts": counts.report,
            b"open": counts.gate.set,
            b"close": counts.gate.clear,
        }.items():
            self.putChild(name, Answer(f))


class Answer(Resource):
    isLeaf = True

    def __init__(self, f: Any) -> None:
        super().__init__()
        self._f = f

    def render_GET(self, request: Any) -> bytes:
        return json.dumps(self._f()).encode()


def stop_with_the_other_side() -> None:
    """Whoever has started this program ends it, by closing its input."""
    tp_read(0, 1)
    reactor.callFromThread(reactor.stop)


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    log.addObserver(counts.log)
    reactor.suggestThreadPoolSize(AT_ONCE)
    application = {"flask": flask_application, "django": django_application}[sys.argv[2]]()
    site = Site(Root(application))
    port = reactor.listenTCP(0, site, backlog=AT_ONCE, interface="127.0.0.1")
    LoopingCall(counts.tick).start(0.01)
    print(port.getHost().port, flush=True)
    gevent.spawn(stop_with_the_other_side)
    reactor.run()


if __name__ == "__main__":
    main()
