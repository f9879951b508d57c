"""The programs in examples/ that the documentation includes, and that need no SDK."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from threading import Thread
from typing import Any

import pytest
from programs import EXAMPLES, LIMIT, run_python
from servers import PostgreSQL

pytestmark = pytest.mark.skipif(
    "gevent.monkey" in sys.orig_argv, reason="each is patched by itself"
)


def needs(module: str) -> None:
    if os.environ.get("GREENDEFER_TEST_DOCS"):
        __import__(module)
    else:
        pytest.importorskip(module)


def get(url: str, **options: Any) -> bytes:
    """What a URL answers, without any proxy."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=30, **options) as response:
        body: bytes = response.read()
        return body


def status(url: str) -> int:
    try:
        get(url)
    except urllib.error.HTTPError as e:
        return e.code
    return 200


def later(f: Any, *args: Any) -> Any:
    """Call `f` in a thread; returns a function that waits for its result."""
    results: Queue[Any] = Queue()

    def run() -> None:
        try:
            results.put(f(*args))
        except Exception as e:
            results.put(e)

    Thread(target=run, daemon=True).start()
    return lambda: results.get(timeout=30)


@contextmanager
def started(script: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service from examples/, on a free port, and its URL."""
    path = EXAMPLES / script
    process = subprocess.Popen(
        [sys.executable, str(path), "0"],
        cwd=path.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, process.communicate(timeout=30)
        yield process, url.rpartition("/")[0]
    finally:
        process.kill()
        process.communicate()


def until_it_says(what: bytes, url: str) -> None:
    until = time.monotonic() + 60
    while what not in get(f"{url}/stats"):
        assert time.monotonic() < until


def test_the_tutorials_first_program() -> None:
    *ticks, squares = run_python(EXAMPLES / "tutorial/first.py").stdout.splitlines()
    assert squares == "[0, 1, 4, 9, 16]"
    assert ticks.count("tick") == len(ticks) > 1  # the first is there before any call


def test_gevent_first() -> None:
    needs("treq")
    assert "hello from upstream" in run_python(EXAMPLES / "gevent_first.py").stdout


class TestGraceful:
    def test_a_request_that_runs_is_answered_and_nothing_new_is_taken(self) -> None:
        with started("graceful.py") as (process, url):
            assert status(f"{url}/ready") == 200
            # Two seconds: longer than calls have that nobody waits for.
            answer = later(get, f"{url}/work?2")
            until_it_says(b"running=1", url)
            process.send_signal(signal.SIGTERM)
            assert process.stdout is not None
            assert process.stdout.readline() == "ending; 1 at work\n"
            # It is not ready any more, until it does not even listen.
            with pytest.raises(OSError, match=r"503|refused|reset"):
                get(f"{url}/ready")
            assert answer() == b"done\n"
            assert process.stdout.readline() == "all done\n"
            assert process.wait(30) == 0

    def test_at_rest_it_ends_at_once(self) -> None:
        with started("graceful.py") as (process, _):
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
            assert out == "ending; 0 at work\nall done\n"
            assert process.returncode == 0, err


class TestTutorialService:
    @pytest.fixture
    def server(self) -> Iterator[PostgreSQL]:
        needs("django")
        needs("psycopg_pool")
        server = PostgreSQL()
        yield server
        server.remove()

    def test_as_the_tutorial_goes(self, server: PostgreSQL) -> None:
        environment = {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": "postgres"}
        subprocess.run(
            [
                *(sys.executable, "-m", "django"),
                *("migrate", "--run-syncdb", "--settings", "settings", "--verbosity", "0"),
            ],
            cwd=EXAMPLES / "tutorial",
            env={**os.environ, **environment},
            check=True,
            timeout=LIMIT,
        )
        with started("tutorial/service.py", **environment) as (process, url):
            assert get(f"{url}/notes", data=b"buy tea") == b'{"id": 1, "notes": 1}\n'
            assert get(f"{url}/notes") == b'[{"id": 1, "text": "buy tea"}]\n'

            many = [later(status, f"{url}/slow?seconds=1") for _ in range(100)]
            until_it_says(b"running=20", url)
            assert [each() for each in many] == [200] * 100

            assert status(f"{url}/slow?seconds=60") == 504
            assert b"timed_out=1" in get(f"{url}/stats")

            server.stop()
            assert status(f"{url}/notes") == 500
            server.start()
            while status(f"{url}/notes") == 500:
                pass
            assert get(f"{url}/notes") == b'[{"id": 1, "text": "buy tea"}]\n'

            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
            assert process.returncode == 0
