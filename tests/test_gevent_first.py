"""Programs whose main loop is gevent's, and the reactor a greenlet in them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import gevent
import pytest
from programs import gunicorn
from twisted.internet.defer import Deferred, gatherResults
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

import greendefer
from greendefer import GreendeferError, start_reactor, wait_for_deferred
from greendefer._background import _Ending

AT_ONCE = 200


class Together(Resource):
    """Answers when `AT_ONCE` requests are there, and not before: so they must all wait at once."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Any] = []

    def render_GET(self, request: Any) -> int:
        self.waiting.append(request)
        if len(self.waiting) == AT_ONCE:
            for each in self.waiting:
                each.write(b"answer " + each.args[b"n"][0])
                each.finish()
        return NOT_DONE_YET


APP = """
from flask import Flask
import greendefer
greendefer.start_reactor()
import os
import treq
from twisted.internet import reactor

app = Flask(__name__)

@greendefer.blocking_from_greenlet
async def fetch(n):
    response = await treq.get(os.environ["BACKEND"] + "?n=" + n, timeout=100, persistent=False)
    return await response.text()

@app.route("/<n>")
def page(n):
    return fetch(n) + " from " + str(os.getpid())
"""


@pytest.fixture
def backend(reactor: Any) -> Any:
    listening = reactor.listenTCP(0, Site(Together()), interface="127.0.0.1")
    yield f"http://127.0.0.1:{listening.getHost().port}/"
    wait_for_deferred(listening.stopListening())


def get_all(port: int) -> set[str]:
    """Ask for all pages at once, and check the answers. Returns who answered."""
    treq = pytest.importorskip("treq")

    async def get(n: int) -> str:
        response = await treq.get(f"http://127.0.0.1:{port}/{n}", timeout=100, persistent=False)
        text: str = await response.text()
        answer, pid = text.split(" from ")
        assert answer == f"answer {n}"
        return pid

    return set(
        wait_for_deferred(
            gatherResults([Deferred.fromCoroutine(get(n)) for n in range(AT_ONCE)]), timeout=120
        )
    )


def test_flask_under_pywsgi(backend: str, reactor: Any) -> None:
    program = (
        "from gevent import monkey; monkey.patch_all()\n"
        + APP
        + textwrap.dedent("""
        from gevent.pywsgi import WSGIServer
        server = WSGIServer(("127.0.0.1", 0), app, log=None)
        server.start()
        print(server.server_port, flush=True)
        import sys
        from gevent.fileobject import FileObject
        FileObject(sys.stdin).readline()
        assert reactor.running
        """)
    )
    pytest.importorskip("flask")
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "BACKEND": backend},
    )
    try:
        assert process.stdout is not None
        assert len(get_all(int(process.stdout.readline()))) == 1
        process.communicate("\n", timeout=60)  # it ends by itself, and stops the reactor
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("preload", [False, True])
def test_flask_under_gunicorn(preload: bool, backend: str, tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    pytest.importorskip("flask")
    (tmp_path / "flask_app.py").write_text(
        APP.replace("start_reactor", "install") if preload else APP
    )
    (tmp_path / "gunicorn.conf.py").write_text(
        "def post_worker_init(worker):\n"
        "    import greendefer\n"
        "    greendefer.start_reactor()\n"
        f"preload_app = {preload}\n"
    )
    with gunicorn(tmp_path, "flask_app:app", workers=2, BACKEND=backend) as (process, port):
        pids = get_all(port)
        assert str(process.pid) not in pids
        assert 1 <= len(pids) <= 2
        process.terminate()
        assert process.wait(timeout=60) == 0


def test_where_the_reactor_runs_already(reactor: Any) -> None:
    assert start_reactor() is reactor


def test_in_a_forked_process(run_program: Any) -> None:
    """A reactor that ran already is refused there; one that did not is its own."""
    run_program(
        """
        import os, sys, traceback
        import greendefer
        from greendefer._reactor import install
        from twisted.internet.threads import deferToThread

        def in_a_child(f):
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    f()
                    status = 0
                except BaseException:
                    traceback.print_exc()
                sys.stderr.flush()
                os._exit(status)
            assert os.waitpid(pid, 0)[1] == 0

        install()
        from twisted.internet import reactor
        threads = greendefer.NativeThreadPool(2)

        def use():
            greendefer.start_reactor()
            assert greendefer.wait_for_deferred(threads.submit(len, "four"), 10) == 4
            assert greendefer.wait_for_deferred(deferToThread(len, "four"), 10) == 4

        in_a_child(use)
        use()
        threads.submit(len, "idle")

        def refused():
            try:
                greendefer.start_reactor()
            except greendefer.GreendeferError as e:
                assert "forked" in str(e), e
            else:
                raise AssertionError("not refused")
            # Our threads did not come along.
            assert greendefer.wait_for_deferred(threads.submit(len, "four"), 10) == 4

        in_a_child(refused)
        """
    )


def test_from_many_greenlets_and_after_the_end(run_program: Any) -> None:
    run_program(
        """
        import gevent
        import greendefer
        both = [gevent.spawn(greendefer.start_reactor) for _ in range(2)]
        gevent.joinall(both, raise_error=True)
        from twisted.internet import reactor
        assert all(g.value is reactor for g in both)
        assert reactor.running
        stopped = gevent.event.Event()
        reactor.addSystemEventTrigger("after", "shutdown", stopped.set)
        reactor.callFromThread(reactor.stop)
        assert stopped.wait(10)
        gevent.sleep(0)
        try:
            greendefer.start_reactor()
        except greendefer.GreendeferError as e:
            assert "stopped" in str(e), e
        else:
            raise AssertionError("not refused")
        """
    )


def test_it_stops_with_the_program(run_program: Any) -> None:
    done = run_program(
        """
        import greendefer
        reactor = greendefer.start_reactor()
        reactor.addSystemEventTrigger("before", "shutdown", print, "stopping")
        print("the end")
        """
    )
    assert done.stdout == "the end\nstopping\n"


def test_it_ends_just_after_the_reactors_thread() -> None:
    """That thread has no frames any more, and its greenlets do not know yet. Nobody will answer, so
    nobody waits, however often Python says that it ends. (In a program this is a moment, see
    reliability/test_ends.py, `TestWithoutStop`; here the thread is one that never was.)"""
    hub = types.SimpleNamespace(thread_ident=0)
    wait = types.SimpleNamespace(is_this_thread=lambda: False, hub=hub)
    asked: list[Any] = []
    reactor = types.SimpleNamespace(cooperative_wait=wait, callFromThread=asked.append)
    background = gevent.spawn(gevent.event.Event().wait)
    ending = _Ending(reactor, background)
    try:
        ending()
        ending()
        assert not background.dead
    finally:
        background.kill()
    assert len(asked) == 1


def test_on_a_reactor_that_is_not_green(run_program: Any) -> None:
    run_program(
        """
        import greendefer
        from twisted.internet import selectreactor
        selectreactor.install()
        try:
            greendefer.start_reactor()
        except greendefer.GreendeferError as e:
            assert "SelectReactor" in str(e), e
        else:
            raise AssertionError("not refused")
        """
    )


def test_start_reactor_in_another_thread_than_the_reactors() -> None:
    with pytest.raises(GreendeferError, match="another thread"):
        gevent.get_hub().threadpool.apply(greendefer.start_reactor)
