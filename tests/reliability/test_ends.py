"""How programs end with calls in flight: nothing hangs, and every Deferred has fired by then."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gevent
import pytest
from programs import (
    LIMIT,
    MISSES_ENDS,
    MISSES_ENDS_PATCHED,
    ON_LIBUV,
    PATCH,
    PATCHED,
    gunicorn,
    run_python,
    run_twistd,
)

import greendefer
from greendefer._deadlines import Deadline

from . import ends

EXIT = 15
"""Seconds which a busy machine may take for the exit of an interpreter, beyond the grace."""

# 1,000 calls of which 500 begin, and block until they are killed. What follows that ends them.
IN_FLIGHT = f"""
import json, os, signal, sys, time, gevent, greendefer
from greendefer.shutdown import set_shutdown_grace

set_shutdown_grace(running=0.1, ending={ends.GRACE})
pool = greendefer.GreenPool(500)
counts = dict.fromkeys(("begun", "fired", "ended"), 0)

def block():
    counts["begun"] += 1
    try:
        gevent.sleep(3600)
    finally:
        gevent.sleep(0.01)
        counts["ended"] += 1

def fired(failure):
    failure.trap(greendefer.PoolClosed)
    counts["fired"] += 1

def submit():
    for _ in range(1000):
        pool.submit(block).addErrback(fired)

def until_they_block():
    while counts["begun"] < 500:
        gevent.sleep(0)
    counts["told"] = time.monotonic()

def report():
    print(json.dumps(counts))

"""

# And 1,000 more on each of the other carriers: ten workers, 20 native threads, two processes.
ON_ALL_CARRIERS = """
import multiprocessing.resource_tracker
from concurrent.futures import ProcessPoolExecutor
from gevent import monkey
from twisted.internet.defer import Deferred, ensureDeferred

# Later on, under twistd, sys.stderr says that it has descriptor -1: see docs/limits.md.
multiprocessing.resource_tracker.ensure_running()

native_sleep = monkey.get_original("time", "sleep")
kept = greendefer.GreenPool(10)
threads = greendefer.NativeThreadPool(20)
never = Deferred()
in_threads, answered, pids = [], [], []

def make_executor():
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))

processes = greendefer.ExecutorPool(make_executor, 2)

def block_natively():
    in_threads.append(1)
    native_sleep(3600)

async def work():
    async with kept.worker() as w:
        for _ in range(100):
            w.submit(block).addErrback(fired)
        await never

submit_to_greenlets = submit

def submit():
    submit_to_greenlets()
    for _ in range(10):
        ensureDeferred(work()).addErrback(lambda failure: failure.trap(greendefer.PoolClosed))
    for _ in range(1000):
        threads.submit(block_natively).addErrback(fired)
    if {processes}:  # one has answered when the first of these is sent there
        processes.submit(os.getpid).addCallback(answered.append)
        for _ in range(1000):
            processes.submit(time.sleep, 3600).addErrback(fired)

def until_they_block():
    while counts["begun"] < 510 or len(in_threads) < 20 or len(answered) < {processes}:
        gevent.sleep(0.01)
    pids.extend(process.pid for process in multiprocessing.active_children())
    assert len(pids) >= {processes}
    counts["told"] = time.monotonic()

"""


def all_in_flight(misses_ends: bool) -> tuple[str, int]:
    """Such a program, and how many Deferreds are to fire."""
    text = IN_FLIGHT + ON_ALL_CARRIERS.format(processes=0 if misses_ends else 1)
    return text, 3000 if misses_ends else 4000


def until_they_are_gone(pids: list[int]) -> None:
    for pid in pids:
        with gevent.Timeout(LIMIT):
            while is_running(pid):
                gevent.sleep(0.01)


def is_running(pid: int) -> bool:
    """Not a zombie, whose parent is not ours, and may not ask."""
    if sys.platform != "linux":
        ps = ["ps", "-o", "stat=", "-p", str(pid)]
        state = subprocess.run(ps, stdout=subprocess.PIPE, check=False).stdout.strip()
        return not (state == b"" or state.startswith(b"Z"))
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def seconds_since(told: float) -> float:
    """As its process, which has gone by now, was told to stop: all have the same clock."""
    return time.monotonic() - told


def has_ended_well(report: str) -> bool:
    """Whether a program of IN_FLIGHT, which has exited, has done so before its grace was over, with
    all that it had in flight accounted for. (Else it fails, and shows what is wrong.)"""
    counts = json.loads(report)
    assert seconds_since(counts.pop("told")) < ends.GRACE
    assert counts == {"begun": 500, "fired": 1000, "ended": 500}
    return True


def run_ends(kind: str, carrier: str, how: str, last: str = "for ever") -> dict[str, Any]:
    patched = ["patched"] if PATCHED else []
    done = run_python(ends.__file__, kind, carrier, how, last, *patched)
    assert not done.stderr, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    report["seconds"] = seconds_since(report["told"])
    return report


def are_native(kind: str) -> bool:
    """Whether calls of a GreenPool run in native threads there, which can't be killed."""
    return kind == "stock-poll" and not PATCHED


@pytest.mark.parametrize("how", ends.HOW)
@pytest.mark.parametrize("carrier", ends.CARRIERS)
@pytest.mark.parametrize("kind", ends.REACTORS)
def test_a_thousand_calls_in_flight(kind: str, carrier: str, how: str) -> None:
    """Queued ones fail, running ones are killed after the grace, ``finally`` blocks run to their
    end, waiting for both sides; all Deferreds fire while the reactor is there; and the process has
    exited without waiting out what is left of the grace."""
    if MISSES_ENDS and carrier == "processes":
        pytest.skip("Python's executor waits for ever there")
    report = run_ends(kind, carrier, how)
    assert report["outcomes"] == {"PoolClosed": ends.CALLS}
    assert report["fired_late"] == 0
    assert report["seconds"] < ends.GRACE
    if carrier in ("greenlets", "workers") and not are_native(kind):
        assert report["begun"] == report["ended"] > 0
    elif carrier != "processes":
        assert report["begun"] > 0


@pytest.mark.parametrize("how", ["stop", "SIGTERM"])
@pytest.mark.parametrize("carrier", ["greenlets", "threads"])
@pytest.mark.parametrize("kind", ends.REACTORS)
def test_calls_that_end_in_the_grace(kind: str, carrier: str, how: str) -> None:
    """They have their results, and the process has exited when the last of them has ended: before
    the grace is over."""
    report = run_ends(kind, carrier, how, "until told")
    begun = report["begun"]
    assert report["outcomes"] == {"NoneType": begun, "PoolClosed": ends.CALLS - begun}
    assert begun > 0
    assert report["fired_late"] == 0
    assert report["seconds"] < ends.GRACE


@pytest.mark.parametrize("how", ["stop", "SIGTERM"])
@pytest.mark.parametrize("carrier", ["greenlets", "workers"])
@pytest.mark.parametrize("kind", ends.REACTORS)
def test_calls_that_will_not_end(kind: str, carrier: str, how: str) -> None:
    """They are left when both of their times are over, and the process exits."""
    if are_native(kind):
        pytest.skip("native threads are not told to end")
    if ON_LIBUV and kind.startswith("stock-"):
        pytest.skip("their hub is another thread's, and there as the process ends: docs/limits.md")
    report = run_ends(kind, carrier, how, "will not end")
    assert report["outcomes"] == {"PoolClosed": ends.CALLS}
    assert report["fired_late"] == 0
    assert report["begun"] > 0
    # Each is told once, and once more if it is the worker that is to end; or not, in time.
    assert report["ended"] <= 2 * report["begun"]
    assert 2 * ends.SHORT <= report["seconds"] < 2 * ends.SHORT + EXIT


SERVICE = """
from twisted.application import service
from twisted.internet import reactor

slept = []

def end():
    until_they_block()
    {end}

class Calls(service.Service):
    def startService(self):
        submit()
        gevent.spawn(end)
    def stopService(self):
        # A service may call while it stops, for longer than the grace of those before.
        return greendefer.defer_to_greenlet(gevent.sleep, 0.3).addCallback(slept.append)

def report():
    with open("report", "w") as f:
        json.dump([counts, len(slept), pids, type(reactor).__name__], f)

reactor.addSystemEventTrigger("after", "shutdown", report)
"""
TAC = """
application = service.Application("calls")
Calls().setServiceParent(application)
"""
PLUGIN = """
from twisted.application.service import ServiceMaker

calls = ServiceMaker("calls", "calls", "Calls that are in flight", "calls")
"""
TAP = """
from twisted.python.usage import Options

def makeService(options):
    return Calls()
"""
ENDS = pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("reactor.stop()", 0),
    ],
)


def is_served_out(folder: Path, calls: int, reactor: str) -> None:
    """All is as it should be after such a service, whose process has exited."""
    counts, slept, pids, name = json.loads((folder / "report").read_text())
    assert seconds_since(counts.pop("told")) < ends.GRACE
    assert (counts, slept) == ({"begun": 510, "fired": calls, "ended": 510}, 1)
    assert name == reactor
    assert "Traceback" not in (folder / "log").read_text()
    until_they_are_gone(pids)


@ENDS
def test_under_twistd(end: str, code: int, tmp_path: Path) -> None:
    """It exits with the signal that stopped it, or well, if that was the application itself.
    Services may make calls as they stop."""
    in_flight, calls = all_in_flight(MISSES_ENDS)
    (tmp_path / "calls.tac").write_text(PATCH + in_flight + SERVICE.format(end=end) + TAC)
    options = ("--reactor=gevent", "--nodaemon", "--python=calls.tac")
    done = run_twistd(tmp_path, *options, check=False)
    assert done.returncode == code, done.stderr
    is_served_out(tmp_path, calls, "GeventReactor")


@ENDS
@pytest.mark.parametrize(
    ("name", "reactor"),
    [("gevent", "GeventReactor"), ("gevent-asyncio", "GeventAsyncioReactor")],
)
def test_under_twist(name: str, reactor: str, end: str, code: int, tmp_path: Path) -> None:
    """The same, of a plugin."""
    in_flight, calls = all_in_flight(MISSES_ENDS)
    plugins = tmp_path / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "calls_plugin.py").write_text(PLUGIN)
    (tmp_path / "calls.py").write_text(in_flight + SERVICE.format(end=end) + TAP)
    twist = Path(sys.executable).with_name("twist")
    patch = ["-m", "gevent.monkey"] if PATCHED else []
    options = (f"--reactor={name}", "--log-file=log", "--log-format=text", "calls")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = run_python(*patch, twist, *options, check=False, cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == code, done.stderr
    is_served_out(tmp_path, calls, reactor)


WSGI = """
def report():
    with open("report.new", "w") as f:
        json.dump([counts, pids], f)
    os.rename("report.new", "report")

def app(environ, start_response):
    reactor = greendefer.start_reactor()
    reactor.addSystemEventTrigger("after", "shutdown", report)
    greendefer.blocking_from_greenlet(submit)()
    until_they_block()
    if environ["PATH_INFO"] == "/stop":
        reactor.stop()
    start_response("200 OK", [])
    return [b"begun in %d" % os.getpid()]
"""


# How its workers have ended: gunicorn asks, and says nothing of it where all is well.
WAITS = """
import os

gunicorn, waitpid = os.getpid(), os.waitpid

def noted(*args):
    pid, status = waitpid(*args)
    if pid and os.getpid() == gunicorn:
        with open("exits", "a") as f:
            print(pid, os.waitstatus_to_exitcode(status), file=f)
    return pid, status

os.waitpid = noted
"""


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "Ctrl-C", "stop"])
def test_in_a_gunicorn_worker(how: str, tmp_path: Path) -> None:
    """A SIGINT has gunicorn end its workers at once, by ``sys.exit()`` in a greenlet. Ctrl-C in a
    terminal goes to the workers as well: they have theirs and gunicorn's."""
    pytest.importorskip("gunicorn")
    in_flight, calls = all_in_flight(MISSES_ENDS_PATCHED)  # gunicorn patches
    (tmp_path / "app.py").write_text(in_flight + WSGI)
    (tmp_path / "gunicorn.conf.py").write_text(WAITS)
    report = tmp_path / "report"
    with gunicorn(tmp_path, "app:app") as (process, port):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"GET /%s HTTP/1.0\r\n\r\n" % how.encode())
            with connection.makefile("rb") as reply:
                words = reply.read().split()
        assert words[-3:-1] == [b"begun", b"in"]
        if how == "stop":  # the worker stays
            with gevent.Timeout(30):
                while not report.exists():
                    gevent.sleep(0.01)
        worker = int(words[-1])
        told = time.monotonic()
        if how == "Ctrl-C":  # both have it before either does anything
            os.kill(worker, signal.SIGSTOP)
            os.kill(worker, signal.SIGINT)
        process.send_signal(signal.SIGTERM if how in ("SIGTERM", "stop") else signal.SIGINT)
        if how == "Ctrl-C":
            os.kill(worker, signal.SIGCONT)
        assert process.wait(timeout=LIMIT) == 0
        assert seconds_since(told) < ends.GRACE
    assert (tmp_path / "exits").read_text() == f"{worker} 0\n"
    counts, pids = json.loads(report.read_text())
    del counts["told"]  # by itself: `told` is when gunicorn was
    assert counts == {"begun": 510, "fired": calls, "ended": 510}
    until_they_are_gone(pids)


class TestWithoutStop:
    """The interpreter exits while the reactor runs in a greenlet."""

    @pytest.mark.parametrize(
        ("end", "code"), [("pass", 0), ("sys.exit(3)", 3), ("raise KeyError", 1)]
    )
    def test_start_reactor(self, end: str, code: int, run_program: Any) -> None:
        """It stops the reactor itself: with the grace."""
        done = run_program(
            IN_FLIGHT,
            f"""
            reactor = greendefer.start_reactor()
            reactor.addSystemEventTrigger("after", "shutdown", report)
            submit()
            until_they_block()
            {end}
            """,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert has_ended_well(done.stdout), done.stderr
        assert "KeyError" in done.stderr if code == 1 else not done.stderr

    def test_start_reactor_and_a_stop_that_is_not_over(self, run_program: Any) -> None:
        """The program stops the reactor, and ends at once: calls have their grace all the same."""
        done = run_program(
            IN_FLIGHT,
            """
            reactor = greendefer.start_reactor()
            reactor.addSystemEventTrigger("after", "shutdown", report)
            submit()
            until_they_block()
            reactor.stop()
            """,
        )
        assert has_ended_well(done.stdout), done.stderr
        assert not done.stderr

    @pytest.mark.parametrize("again", ["os.kill(os.getpid(), signal.SIGINT)", "sys.exit(4)"])
    def test_start_reactor_and_an_end_during_the_end(self, again: str, run_program: Any) -> None:
        """Ctrl-C, or somebody else's ``sys.exit()``, while ``finally`` blocks run, again and again:
        Python says so, and they run on."""
        done = run_program(
            IN_FLIGHT,
            f"""
            def end_again():
                try:
                    gevent.sleep(3600)
                finally:
                    for _ in range(3):
                        gevent.spawn(lambda: {again})
                        gevent.sleep(0.01)

            reactor = greendefer.start_reactor()
            reactor.addSystemEventTrigger("after", "shutdown", report)
            greendefer.defer_to_greenlet(end_again).addErrback(lambda failure: None)
            submit()
            until_they_block()
            """,
        )
        assert has_ended_well(done.stdout), done.stderr
        assert ("KeyboardInterrupt" if "SIGINT" in again else "SystemExit") in done.stderr
        assert "ReactorNotRunning" not in done.stderr

    @pytest.mark.parametrize("stays", [True, False])
    def test_start_reactor_in_another_thread(self, stays: bool, run_program: Any) -> None:
        """That thread is asked, and waited for; unless it has gone without a word."""
        done = run_program(
            IN_FLIGHT,
            f"""
            import atexit
            import twisted.python._inotify  # it runs ldconfig, which gevent has the main thread do
            from gevent import monkey

            # A thread that runs while Python exits is unwound, by pthread_exit(), wherever it is:
            # in greenlet, or with malloc's lock. See docs/limits.md. gevent's libuv loop wakes
            # every 300 ms; and any may be on its way yet from telling that the reactor has ended
            # to its next poll. This comes after what start_reactor() does at exit.
            if {stays}:
                atexit.register(lambda: (sys.stdout.flush(), os._exit(0)))

            thread = monkey.get_original("_thread", "start_new_thread")
            allocate_lock = monkey.get_original("_thread", "allocate_lock")
            begun = allocate_lock()
            begun.acquire()

            def other_thread():
                reactor = greendefer.start_reactor()
                reactor.addSystemEventTrigger("after", "shutdown", report)
                if {stays}:
                    submit()
                    until_they_block()
                begun.release()
                if {stays}:
                    gevent.sleep(3600)

            ident = thread(other_thread, ())
            begun.acquire()
            while not {stays} and ident in sys._current_frames():
                monkey.get_original("time", "sleep")(0.001)
            """,
        )
        assert has_ended_well(done.stdout) if stays else not done.stdout
        assert not done.stderr

    @pytest.mark.parametrize("kind", ["workers", "threads", "processes"])
    @pytest.mark.parametrize(
        ("last", "code"),
        [("pass", 0), ("reactor.stop()", 0), ("sys.exit(3)", 3), ("raise KeyError", 1)],
    )
    def test_start_reactor_and_other_carriers(
        self, kind: str, last: str, code: int, run_program: Any
    ) -> None:
        """Workers end as greenlets do, native threads are left behind, and worker processes
        terminated: also where the module of the executor was imported after the reactor had been
        started, and has Python wait for them first."""
        if MISSES_ENDS and kind == "processes":
            pytest.skip("Python's executor waits for ever there")
        done = run_program(
            f"""
            import json, sys, time
            import gevent, greendefer
            from gevent import monkey
            from greendefer.shutdown import set_shutdown_grace
            from twisted.internet.defer import Deferred
            set_shutdown_grace(running=0.1, ending={ends.GRACE})

            def processes():
                import multiprocessing
                from concurrent.futures import ProcessPoolExecutor
                return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))

            def block():
                try:
                    gevent.sleep(3600)
                finally:
                    gevent.sleep(0.01)
                    ended.append(1)

            reactor = greendefer.start_reactor()
            fired, ended, never = [], [], Deferred()
            native_sleep = monkey.get_original("time", "sleep")
            if {kind!r} == "workers":
                pool, call = greendefer.GreenPool(2), (block,)
            elif {kind!r} == "threads":
                pool, call = greendefer.NativeThreadPool(2), (native_sleep, 3600)
            else:
                pool, call = greendefer.ExecutorPool(processes, 2), (time.sleep, 3600)
            tell = lambda: print(json.dumps([fired, len(ended), told]))
            reactor.addSystemEventTrigger("after", "shutdown", tell)

            def submit_to(carrier, n):
                for _ in range(n):
                    d = carrier.submit(*call)
                    d.addErrback(lambda failure: fired.append(failure.type.__name__))

            async def work():
                async with pool.worker() as w:
                    submit_to(w, 500)
                    await never

            @greendefer.blocking_from_greenlet
            def submit():
                if {kind!r} != "workers":
                    submit_to(pool, 1000)
                    return
                for _ in range(2):
                    Deferred.fromCoroutine(work()).addErrback(lambda failure: None)

            submit()
            while pool.stats().running < 2:
                gevent.sleep(0.01)
            gevent.sleep(0.01)
            told = time.monotonic()
            {last}
            """,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "KeyError" in done.stderr if code == 1 else not done.stderr
        fired, ended, told = json.loads(done.stdout)
        assert (fired, ended) == (["PoolClosed"] * 1000, 2 if kind == "workers" else 0)
        assert seconds_since(told) < ends.GRACE

    @pytest.mark.parametrize(("end", "code"), [("pass", 0), ("sys.exit(3)", 3)])
    def test_a_greenlet_of_ones_own(self, end: str, code: int, run_program: Any) -> None:
        """Python drops all greenlets as it always does. It neither hangs nor complains."""
        done = run_program(
            IN_FLIGHT,
            f"""
            greendefer.install()
            from twisted.internet import reactor
            threads = greendefer.NativeThreadPool(2)
            gevent.spawn(reactor.run, installSignalHandlers=False)
            gevent.sleep(0)
            assert greendefer.wait_for_deferred(threads.submit(len, "four")) == 4
            threads.submit(__import__("gevent.monkey").monkey.get_original("time", "sleep"), 99)
            submit()
            until_they_block()
            {end}
            """,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_the_grace_is_given(run_program: Any) -> None:
    """Calls that end in it have their results; the reactor waits for no longer than they need."""
    run_program(
        """
        import gevent, greendefer
        from greendefer.shutdown import set_shutdown_grace
        set_shutdown_grace(running=3600)
        greendefer.install()
        from twisted.internet import reactor
        results = []
        def call():
            gevent.sleep(0.05)
            return "in time"
        def main():
            greendefer.defer_to_greenlet(call).addBoth(results.append)
            reactor.stop()
        reactor.callWhenRunning(main)
        reactor.run()
        assert results == ["in time"], results
        """
    )


@pytest.mark.parametrize("again", ["SIGTERM", "SIGINT"])
def test_a_second_signal_changes_nothing(again: str, run_program: Any) -> None:
    """While ``finally`` blocks run: Twisted logs that it has been told, and they run on."""
    done = run_program(
        IN_FLIGHT,
        f"""
        greendefer.install()
        from twisted.internet import reactor

        def end_again():
            try:
                gevent.sleep(3600)
            finally:
                os.kill(os.getpid(), signal.{again})

        def main():
            greendefer.defer_to_greenlet(end_again).addErrback(lambda failure: None)
            submit()
            gevent.spawn(end)

        def end():
            until_they_block()
            os.kill(os.getpid(), signal.SIGTERM)

        reactor.callWhenRunning(main)
        reactor.run()
        report()
        assert reactor._exitSignal == signal.{again}
        """,
    )
    assert has_ended_well(done.stdout), done.stderr
    assert "ReactorNotRunning" in done.stderr
    assert done.stderr.count("Traceback") == 1


def test_who_will_not_end_is_left(run_program: Any) -> None:
    """A call that swallows its kill, and a ``finally`` block that waits for ever."""
    done = run_program(
        """
        import gevent, greendefer
        from greendefer.shutdown import set_shutdown_grace
        set_shutdown_grace(running=0.01, ending=0.05)
        greendefer.install()
        from twisted.internet import reactor
        results = []
        def swallow():
            while True:
                try:
                    gevent.sleep(3600)
                except BaseException:
                    pass
        def wait_on():
            try:
                gevent.sleep(3600)
            finally:
                gevent.sleep(3600)
        def main():
            for f in swallow, wait_on:
                greendefer.defer_to_greenlet(f).addErrback(lambda f: results.append(f.type))
            gevent.spawn(reactor.stop)
        reactor.callWhenRunning(main)
        reactor.run()
        assert results == [greendefer.PoolClosed] * 2, results
        print(greendefer._pool.default_pool.stats().lingering)
        """
    )
    assert done.stdout == "2\n"


def test_calls_made_while_services_stop(run_program: Any) -> None:
    """They go on for as long as the shutdown is held back, and their ``finally`` blocks run."""
    run_program(
        """
        import gevent, greendefer
        from greendefer.shutdown import set_shutdown_grace
        set_shutdown_grace(running=0.01, ending=5)
        greendefer.install()
        from twisted.internet import reactor
        from twisted.internet.defer import Deferred
        events = []
        def other():
            try:
                gevent.sleep(3600)
            finally:
                gevent.sleep(0.01)
                events.append("cleaned up")
        def save():
            gevent.sleep(0.2)
            return "saved"
        def stop_service():
            greendefer.defer_to_greenlet(other).addErrback(lambda f: events.append(f.type))
            return greendefer.defer_to_greenlet(save).addBoth(events.append)
        reactor.addSystemEventTrigger("before", "shutdown", stop_service)
        reactor.callWhenRunning(reactor.stop)
        reactor.run()
        assert events == ["saved", greendefer.PoolClosed, "cleaned up"], events
        """
    )


def test_deferreds_that_calls_return_while_services_stop(run_program: Any) -> None:
    """The reactor does not wait for these. Who would fire one hears of it, and then whoever waits
    for the call."""
    run_program(
        """
        import greendefer
        from greendefer.shutdown import set_shutdown_grace
        set_shutdown_grace(running=0.01, ending=5)
        greendefer.install()
        from twisted.internet import reactor
        from twisted.internet.defer import Deferred
        events = []
        def never():
            return Deferred(lambda d: events.append("cancelled"))
        def stop_service():
            d = greendefer.green_deferred(never)()
            d.addErrback(lambda f: events.append(f.type))
        reactor.addSystemEventTrigger("before", "shutdown", stop_service)
        reactor.callWhenRunning(reactor.stop)
        reactor.run()
        assert events == ["cancelled", greendefer.PoolClosed], events
        """
    )


def test_a_pool_that_is_closed_has_its_own_grace(run_program: Any) -> None:
    """Whoever closes it in a trigger says how long its calls have, and nobody else."""
    run_program(
        """
        import gevent, greendefer
        from gevent.event import Event
        from greendefer.shutdown import set_shutdown_grace
        set_shutdown_grace(running=0.01, ending=20)
        greendefer.install()
        from twisted.internet import reactor
        pool = greendefer.GreenPool(2)
        events = []
        killed = Event()
        def long():
            killed.wait()
            return "done"
        def was_killed(failure):
            events.append(failure.type)
            killed.set()
        def main():
            pool.submit(long).addBoth(events.append)
            greendefer.defer_to_greenlet(gevent.sleep, 3600).addErrback(was_killed)
            reactor.addSystemEventTrigger("before", "shutdown", pool.close, grace=3600)
            reactor.stop()
        reactor.callWhenRunning(main)
        reactor.run()
        assert events == [greendefer.PoolClosed, "done"], events
        """
    )


def test_green_threads_of_twisteds_pool(run_program: Any) -> None:
    """``deferToThread`` on green threads: their results, too, get out before the reactor ends."""
    run_program(
        """
        import gevent, greendefer
        from greendefer.shutdown import set_shutdown_grace
        set_shutdown_grace(running=0.05, ending=20)
        greendefer.install(threads="green")
        from twisted.internet import reactor
        from twisted.internet.threads import deferToThread
        reactor.suggestThreadPoolSize(500)
        fired, begun, ended = [], [], []
        def block():
            begun.append(1)
            if len(begun) == 499:  # one is that which is in time
                reactor.stop()
            try:
                gevent.sleep(3600)
            finally:
                gevent.sleep(0.01)
                ended.append(1)
        def main():
            deferToThread(lambda: gevent.sleep(0.01) or "in time").addBoth(
                lambda result: fired.append((result, reactor.running)))
            for _ in range(1000):
                deferToThread(block).addBoth(
                    lambda result: fired.append((result.type, reactor.running)))
        reactor.callWhenRunning(main)
        reactor.run()
        assert len(fired) == 1001 and all(running for _, running in fired), fired[-1]
        assert len(ended) == len(begun) >= 499, (len(begun), len(ended))
        """
    )


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", ends.REACTORS)
def test_a_thread_of_twisteds_that_waits_for_the_reactor(
    kind: str, used: bool, run_program: Any
) -> None:
    """Twisted waits for its threads as it stops, and takes no more turns: none may wait for one.
    It does not matter which was there first, Twisted's pool or ours."""
    done = run_program(
        f"""
        import importlib, greendefer
        kind = {kind!r}
        if kind.startswith("green-"):
            greendefer.install(kind.removeprefix("green-"))
        else:
            importlib.import_module("twisted.internet.pollreactor").install()
        from twisted.internet import reactor
        from twisted.internet.defer import Deferred
        never = Deferred()

        @greendefer.blocking_from_greenlet
        def wait():
            reactor.callLater(0, reactor.stop)
            return never

        def in_thread():
            try:
                wait()
            except greendefer.GreendeferError as e:
                print(e)

        if {used}:
            reactor.callWhenRunning(greendefer.NativeThreadPool(1).submit, int)
        reactor.callWhenRunning(reactor.callInThread, in_thread)
        reactor.run()
        """
    )
    assert done.stdout == "The reactor has stopped, and the result is not there\n"


class TestTheSetting:
    @pytest.mark.parametrize("name", ["running", "ending"])
    @pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 10**400, "1", None, True])
    def test_refuses(self, name: str, value: Any) -> None:
        from greendefer.shutdown import longest_shutdown, set_shutdown_grace

        before = longest_shutdown()
        with pytest.raises((TypeError, ValueError), match=rf"set_shutdown_grace\({name}=.*not "):
            set_shutdown_grace(**{name: value})
        assert longest_shutdown() == before

    @pytest.mark.parametrize(
        ("setting", "running", "ending"),
        [
            ("", 1.0, 1.0),
            ("set_shutdown_grace(5, 6); set_shutdown_grace()", 1.0, 1.0),
            ("set_shutdown_grace(running=3)", 3.0, 1.0),
            ("set_shutdown_grace(ending=3)", 1.0, 3.0),
        ],
    )
    @pytest.mark.parametrize("makes_one", [False, True])
    def test_one_second_each_by_default(
        self, setting: str, running: float, ending: float, makes_one: bool, run_program: Any
    ) -> None:
        """What is asked of the clock for a call that will not end: `running`, then `ending`; and
        `ending` again, when the reactor takes no more turns, for one that a service has made
        meanwhile. No time passes."""
        run_program(
            f"""
            from itertools import count
            import gevent, greendefer
            from greendefer import _runtime, shutdown
            from greendefer.shutdown import set_shutdown_grace
            greendefer.install()
            from twisted.internet import reactor
            {setting}
            asked, looks, killed = [], [], []
            def swallow():
                while True:
                    try:
                        gevent.sleep(3600)
                    except BaseException:
                        killed.append(len(asked))
            def at_once(when, f):
                asked.append(when - 1000)
                return at(0.0, f)
            def make_one():
                greendefer.defer_to_greenlet(swallow).addErrback(lambda failure: None)
            def main():
                global at
                make_one()
                runtime = _runtime._runtime
                at = runtime.deadlines.at
                runtime.now = lambda: 1000
                runtime.deadlines.at = at_once
                looks_at = count(1000, 0.25).__next__
                shutdown.monotonic = lambda: looks.append(looks_at()) or looks[-1]
                gevent.spawn(reactor.stop)
            if {makes_one}:
                reactor.addSystemEventTrigger("before", "shutdown", make_one)
            reactor.callWhenRunning(main)
            reactor.run()
            assert asked == [{running}, {ending}], asked
            assert killed == ([2, 2] if {makes_one} else [2]), killed
            assert looks[-1] - looks[0] == ({ending} if {makes_one} else 0), looks
            """
        )

    def test_close_has_no_grace_by_default(
        self, gate: Any, result: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No time is set after which its calls would be killed."""
        pool = greendefer.GreenPool(1)
        call = result(pool.submit(gate))
        assert gate.entered.wait(20)
        asked: list[float] = []
        runtime: Any = pool._runtime
        monkeypatch.setattr(runtime, "now", lambda: 1000)
        monkeypatch.setattr(
            runtime.deadlines, "at", lambda when, f: asked.append(when - 1000) or Deadline(None, f)
        )
        closed = [result(pool.close()), result(pool.close(grace=None))]
        assert asked == []
        closed.append(result(pool.close(grace=20)))
        assert asked == [20]
        gate.opened.set()
        assert call.get() == "through"
        assert [each.get() for each in closed] == [None] * 3
