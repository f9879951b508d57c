"""Flask and Django under twisted.web, on a thread pool of greenlets."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from servers import PostgreSQL
from twisted.web.server import Site
from twisted.web.wsgi import WSGIResource

import greendefer
from greendefer.threadpool import GreenThreadPool

from .conftest import CONNECTIONS, needs, until

AT_ONCE = 1000
SERVER = str(Path(__file__).parent / "wsgi_server.py")

Serve = Callable[[Any], int]


@pytest.fixture
def threads(reactor: Any) -> Iterator[GreenThreadPool]:
    threads = GreenThreadPool(0, 1000)
    yield threads
    greendefer.wait_for_deferred(threads.stopped())


@pytest.fixture
def serve(reactor: Any, in_reactor: Any, threads: GreenThreadPool) -> Iterator[Serve]:
    """Serve a WSGI application; returns the port."""
    ports = []

    def serve(application: Any) -> int:
        site = Site(WSGIResource(reactor, threads, application))
        port = in_reactor(lambda: reactor.listenTCP(0, site, backlog=1000, interface="127.0.0.1"))
        ports.append(port)
        number: int = port.getHost().port
        return number

    yield serve
    for port in ports:
        in_reactor(port.stopListening)


def request(port: int, path: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    return client


def answer(client: socket.socket) -> tuple[int, str]:
    with client, client.makefile("rb") as stream:
        head, _, body = stream.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def get(port: int, path: str) -> tuple[int, str]:
    return answer(request(port, path))


class FlaskApplication:
    """``/wait`` waits until the gate is opened, and then streams what it has."""

    def __init__(self) -> None:
        flask = needs("flask")
        self.gate = Event()
        self.waiting = 0
        self.app = flask.Flask("slow")

        @self.app.get("/wait/<int:n>")
        def wait(n: int) -> Any:
            self.waiting += 1
            self.gate.wait()
            self.waiting -= 1
            return flask.Response(
                (f"{n} {part} " * 1000 for part in range(3)), mimetype="text/plain"
            )

        @self.app.post("/length")
        def length() -> str:
            return str(len(flask.request.get_data()))

        @self.app.get("/fail")
        def fail() -> None:
            raise RuntimeError("as ordered")


@pytest.fixture
def flask_application() -> Iterator[FlaskApplication]:
    application = FlaskApplication()
    yield application
    application.gate.set()


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Enough for both ends of a thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Program:
    """``wsgi_server.py``, in a process of its own."""

    def __init__(self, *args: Any) -> None:
        kind = os.environ.get("GREENDEFER_TEST_REACTOR", "native")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", SERVER, kind, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def ask(self, what: str) -> Any:
        """``counts``, ``open`` or ``close``, which Twisted answers by itself."""
        status, body = get(self.port, f"/{what}")
        assert status == 200
        return json.loads(body)

    def has_ticked(self, times: int) -> bool:
        """So often, since it has started."""
        return bool(self.ask("counts")["ticks"] >= times)

    def close(self) -> None:
        self._process.communicate()  # ends its input
        assert self._process.returncode == 0


@pytest.fixture
def flask_program() -> Iterator[Program]:
    needs("flask")
    program = Program("flask")
    yield program
    program.close()


@pytest.fixture
def django_program(django_server: PostgreSQL) -> Iterator[Program]:
    program = Program("django", django_server.port)
    yield program
    program.close()


@pytest.fixture(params=["flask", "django"])
def program(request: Any) -> Any:
    return request.getfixturevalue(f"{request.param}_program")


def test_a_thousand_slow_requests(program: Program, descriptors: None, patient: None) -> None:
    """With ``install(threads="green")``: all are inside of the application at one moment, on one
    thread, and the reactor ticks on and answers others. Then 200 of the clients go away. The
    others get their answers, and of those nothing is left.

    In Django's view each of them then waits in PostgreSQL, for one of 20 connections first; that
    its user has more of them the server itself does not allow.
    """
    for _ in range(2):  # and the same once more
        clients = {n: request(program.port, f"/app/slow/{n}") for n in range(AT_ONCE)}
        until(lambda: program.ask("counts")["inside"] == AT_ONCE, "1000 requests are inside")
        counts = program.ask("counts")
        assert counts["threads"] == 1
        assert counts["workers"] == AT_ONCE
        until(partial(program.has_ticked, counts["ticks"] + 5), "the reactor ticks")
        for n in range(0, AT_ONCE, 5):
            clients.pop(n).close()
        program.ask("open")
        answers = {n: gevent.spawn(answer, client) for n, client in clients.items()}
        for n, each in answers.items():
            body = "".join(f"{n} {part} " * 100 for part in range(3))
            assert each.get(timeout=50) == (200, body)
        until(lambda: program.ask("counts")["workers"] == 0, "all requests have ended")
        counts = program.ask("counts")
        assert counts["errors"] == []
        assert counts["inside"] == 0
        program.ask("close")


def test_clients_that_go_away(
    flask_application: FlaskApplication, serve: Serve, threads: GreenThreadPool, in_reactor: Any
) -> None:
    """Their requests end when the application has; nobody else notices, nothing is logged."""
    port = serve(flask_application.app)
    impatient = [request(port, f"/wait/{n}") for n in range(100)]
    patient = [gevent.spawn(get, port, f"/wait/{n}") for n in range(100)]
    until(lambda: flask_application.waiting == 200)
    for client in impatient:
        client.close()
    in_reactor(lambda: None)
    flask_application.gate.set()
    assert [client.get(timeout=20)[0] for client in patient] == [200] * 100
    until(lambda: threads.workers == 0)
    assert flask_application.waiting == 0


def test_an_application_that_fails(
    flask_application: FlaskApplication, serve: Serve, caplog: Any
) -> None:
    port = serve(flask_application.app)
    with caplog.at_level(logging.CRITICAL, "slow"):
        assert get(port, "/fail")[0] == 500
    flask_application.gate.set()
    assert get(port, "/wait/1")[0] == 200


def test_a_request_with_a_body(flask_application: FlaskApplication, serve: Serve) -> None:
    with socket.create_connection(("127.0.0.1", serve(flask_application.app))) as client:
        client.sendall(b"POST /length HTTP/1.0\r\nContent-Length: 1000000\r\n\r\n")
        client.sendall(b"x" * 1_000_000)
        assert answer(client) == (200, "1000000")


class TestDjango:
    @pytest.fixture
    def asked(self, django_server: PostgreSQL) -> Callable[[str], Any]:
        from systems.exampleapp.models import sql

        return lambda statement: sql("control", statement)

    @pytest.fixture
    def port(self, django_server: PostgreSQL, serve: Serve) -> int:
        from django.core.wsgi import get_wsgi_application

        return serve(get_wsgi_application())

    SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app_default'"

    def test_views_wait_in_the_database(
        self, port: int, asked: Callable[[str], Any], ticker: Any
    ) -> None:
        """As many as there are connections; Django gives each back when the request has ended."""
        asked("SELECT pg_advisory_lock(1) IS NULL")
        clients = [gevent.spawn(get, port, "/wait") for _ in range(200)]
        waiting = f"{self.SESSIONS} AND wait_event_type = 'Lock'"
        until(lambda: asked(waiting) == CONNECTIONS)
        ticker.wait_for(5)
        asked("SELECT pg_advisory_unlock(1)")
        assert [client.get(timeout=20) for client in clients] == [(200, "through\n")] * 200
        assert asked(self.SESSIONS) <= CONNECTIONS

    def test_views_that_fail_and_clients_that_go_away(
        self, port: int, asked: Callable[[str], Any], threads: GreenThreadPool, caplog: Any
    ) -> None:
        asked("SELECT pg_advisory_lock(1) IS NULL")
        clients = [request(port, "/wait") for _ in range(CONNECTIONS)]
        until(lambda: asked(f"{self.SESSIONS} AND wait_event_type = 'Lock'") == CONNECTIONS)
        for client in clients:
            client.close()
        asked("SELECT pg_advisory_unlock(1)")
        assert [get(port, "/fail")[0] for _ in range(2 * CONNECTIONS)] == [500] * 2 * CONNECTIONS
        until(lambda: threads.workers == 0)
        assert [get(port, "/wait")[0] for _ in range(2 * CONNECTIONS)] == [200] * 2 * CONNECTIONS
