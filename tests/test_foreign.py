"""Reactors that are not green, beside the table in test_anywhere.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from programs import PATCHED, run_python

TRIAL = """
import threading
from twisted.internet import defer, reactor
from twisted.trial import unittest
import greendefer
from greendefer import CallTimeout, green_deferred

pool = greendefer.GreenPool(2)

@green_deferred(pool=pool, timeout=30)
def add(a, b):
    return a + b

class Tests(unittest.TestCase):
    def test_not_green(self):
        self.assertFalse(hasattr(reactor, "cooperative_wait"))

    @defer.inlineCallbacks
    def test_a_call(self):
        self.assertEqual((yield add(1, 2)), 3)
        self.assertEqual((yield greendefer.NativeThreadPool(1).submit(add.__wrapped__, 1, 2)), 3)

    @defer.inlineCallbacks
    def test_many(self):
        results = yield defer.gatherResults([add(n, n) for n in range(200)])
        self.assertEqual(results, [2 * n for n in range(200)])

    def test_a_failure(self):
        return self.assertFailure(add(1, "2"), TypeError)

    def test_out_of_time(self):
        event = threading.Event()
        late = green_deferred(pool=greendefer.NativeThreadPool(1), timeout=0.01)(event.wait)
        d = self.assertFailure(late(), CallTimeout)
        d.addCallback(lambda _: event.set())
        return d

    def test_blocking_from_a_call(self):
        def wait():
            return greendefer.blocking_from_greenlet(add)(3, 4)
        return pool.submit(wait).addCallback(self.assertEqual, 7)
"""


@pytest.mark.skipif(PATCHED, reason="trial starts by itself")
@pytest.mark.parametrize("kind", ["epoll", "asyncio", "select", "poll"])
def test_trials_check_of_the_reactor(kind: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TRIAL)
    done = run_python("-m", "twisted.trial", f"--reactor={kind}", "test_it", cwd=tmp_path)
    assert "successes=6" in done.stdout, done.stdout


def test_a_call_before_the_reactor_runs_and_after_it_has_stopped(run_program: Any) -> None:
    run_program(
        """
        import _thread
        from twisted.internet import selectreactor
        selectreactor.install()
        from twisted.internet import reactor
        import greendefer
        got = []
        pool = greendefer.NativeThreadPool(1)
        d = pool.submit(len, "four")
        d.addCallback(got.append)
        d.addBoth(lambda _: reactor.stop())
        reactor.run()
        assert got == [4]
        late = []
        threads = _thread._count()
        for p in (pool, greendefer.GreenPool(1)):
            p.submit(len, "").addErrback(lambda f: late.append(f.type))
        assert late == [greendefer.PoolClosed] * 2, late
        assert _thread._count() <= threads  # nobody would end one
        """
    )


def test_tracers_and_profilers_see_what_runs_in_a_thread(run_program: Any) -> None:
    run_program(
        """
        import sys, threading
        import greendefer
        traced, profiled = [], []

        def trace(frame, event, arg):
            traced.append(frame.f_code.co_name)

        def profile(frame, event, arg):
            profiled.append(frame.f_code.co_name)

        def call():
            return threading.get_ident()

        threading.settrace(trace)
        threading.setprofile(profile)
        greendefer.install()
        greendefer.start_reactor()
        pool = greendefer.NativeThreadPool(1)
        greendefer.wait_for_deferred(pool.submit(call))
        greendefer.wait_for_deferred(pool.close())
        assert "call" in traced and "call" in profiled, (traced, profiled)
        """
    )


def test_a_process_ends_while_calls_run(run_program: Any) -> None:
    run_program(
        """
        from twisted.internet import selectreactor
        selectreactor.install()
        from twisted.internet import reactor
        from gevent import monkey
        import greendefer
        never = monkey.get_original("_thread", "allocate_lock")()
        never.acquire()
        pool = greendefer.NativeThreadPool(2)
        failures = []
        for _ in range(3):
            pool.submit(never.acquire).addErrback(lambda f: failures.append(f.type))
        reactor.callLater(0, reactor.stop)
        reactor.run()
        assert failures == [greendefer.PoolClosed] * 3, failures
        """
    )


@pytest.mark.skipif(PATCHED, reason="Twisted's threads are greenlets then")
def test_another_thread_runs_the_reactor_than_made_the_first_call(run_program: Any) -> None:
    """Calls may come there before it is known which one it is; and the first one no more."""
    run_program(
        """
        import threading
        from twisted.internet import selectreactor
        selectreactor.install()
        import greendefer
        from twisted.internet import reactor
        from twisted.internet.defer import gatherResults
        got = []
        running = threading.Event()

        def first_of_all():
            d = gatherResults([early, pool.submit(len, "fives")])
            d.addBoth(got.append)
            # Later: what was made for the first call has its turn at the start after this one, and
            # learns there whose thread it is in.
            reactor.callLater(0, running.set)

        reactor.callWhenRunning(first_of_all)
        pool = greendefer.NativeThreadPool(1)
        early = pool.submit(len, "four")
        thread = threading.Thread(target=reactor.run, kwargs={"installSignalHandlers": False})
        thread.start()
        assert running.wait(60)
        try:
            greendefer.NativeThreadPool(1).submit(len, "")
        except greendefer.GreendeferError as e:
            assert "does not run on gevent's hub" in str(e), e
            got.append("refused")
        while len(got) < 2:
            threading.Event().wait(0.001)
        reactor.callFromThread(reactor.stop)
        thread.join(60)
        assert sorted(got, key=str) == [[4, 5], "refused"], got
        """
    )


def test_a_thread_that_can_not_start(run_program: Any) -> None:
    run_program(
        """
        from twisted.internet import selectreactor
        selectreactor.install()
        from twisted.internet import reactor
        import greendefer
        from greendefer._carriers import threads
        start = threads.start_thread
        def refuse(f, name):
            raise RuntimeError("can't start new thread")
        pool = greendefer.NativeThreadPool(1)
        got = []
        async def main():
            threads.start_thread = refuse
            try:
                await pool.submit(len, "")
            except greendefer.GreendeferError as e:
                assert "can't start new thread" in str(e), e
                got.append("refused")
            threads.start_thread = start
            got.append(await pool.submit(len, "four"))
            s = pool.stats()
            assert (s.failed, s.completed, s.running) == (1, 1, 0), s
        go(main)
        assert got == ["refused", 4], got
        """
    )


def test_a_call_that_is_made_while_the_reactor_stops(run_program: Any) -> None:
    """It is killed, in the helper thread, and its ``finally`` block runs before the reactor is
    gone: nothing else is left to be waited for."""
    run_program(
        """
        from gevent import monkey
        monkey.patch_all()
        from twisted.internet import selectreactor
        selectreactor.install()
        import gevent, greendefer
        from twisted.internet import reactor, task
        begun = monkey.get_original("_thread", "allocate_lock")()
        begun.acquire()
        got = []

        def call():
            begun.release()
            try:
                gevent.sleep(3600)
            finally:
                gevent.sleep(0.01)
                got.append("ended")

        def at_the_last_moment():
            pool.submit(call).addErrback(lambda f: got.append(f.type))
            assert begun.acquire(timeout=60)

        reactor.addSystemEventTrigger(
            "before", "shutdown", task.deferLater, reactor, 0, at_the_last_moment)
        pool = greendefer.GreenPool(1)
        pool.submit(len, "four").addBoth(got.append).addBoth(lambda _: reactor.stop())
        reactor.run()
        assert got[0] == 4 and set(got[1:]) == {greendefer.PoolClosed, "ended"}, got
        """
    )


def test_calls_of_a_worker_in_the_helper_thread_are_cancelled(run_program: Any) -> None:
    """One that runs, one that waits for it; and one whose whole worker is killed around it."""
    run_program(
        """
        from gevent import monkey
        monkey.patch_all()
        from twisted.internet import selectreactor
        selectreactor.install()
        import gevent, greendefer
        from twisted.internet import reactor
        from twisted.internet.defer import CancelledError, Deferred
        got = []

        def call(begun):
            reactor.callFromThread(begun.callback, None)
            try:
                gevent.sleep(3600)
            finally:
                got.append("ended")

        async def main():
            pool = greendefer.GreenPool(1)
            try:
                async with pool.worker() as w:
                    begun = Deferred()
                    runs, waits = w.submit(call, begun), w.submit(len, "")
                    await begun
                    waits.cancel()
                    runs.cancel()
                    assert type(await error_of(waits)) is CancelledError
                    assert type(await error_of(runs)) is CancelledError
                    assert await w.submit(len, "four") == 4
                    assert got == ["ended"], got
                    begun = Deferred()
                    runs = w.submit(call, begun)
                    await begun
                    closed = pool.close(grace=0)
                    assert type(await error_of(runs)) is greendefer.PoolClosed
                    await closed
            except greendefer.PoolClosed:
                got.append("closed")
            return "done"

        end = []
        reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()).addBoth(
            lambda r: (end.append(r), reactor.stop())))
        reactor.run()
        assert end == ["done"], end[0].getTraceback()
        assert sorted(got) == ["closed", "ended", "ended"], got
        """
    )


def test_sqlite_stays_on_its_worker(run_program: Any) -> None:
    """Its connections check which thread it is that uses them."""
    run_program(
        """
        import sqlite3
        from twisted.internet import selectreactor
        selectreactor.install()
        from twisted.internet.task import react
        import greendefer

        async def main(reactor):
            pool = greendefer.NativeThreadPool(4)
            async with pool.worker() as w:
                connection = await w.submit(sqlite3.connect, ":memory:")
                await w.submit(connection.execute, "create table t (n)")
                for n in range(10):
                    await w.submit(connection.execute, "insert into t values (?)", (n,))
                cursor = await w.submit(connection.execute, "select count(*) from t")
                assert await w.submit(cursor.fetchone) == (10,)
                try:
                    await pool.submit(connection.execute, "select 1")
                except sqlite3.ProgrammingError:
                    pass
                else:
                    raise AssertionError("another thread")
                await w.submit(connection.close)

        react(main)
        """
    )


@pytest.mark.parametrize("kind", ["green", "stock"])
def test_asyncio_futures_are_waited_for(kind: str, run_program: Any) -> None:
    run_program(
        """
        import asyncio, sys, traceback
        import greendefer
        if sys.argv[1] == "green":
            greendefer.install("asyncio")
        else:
            from twisted.internet import asyncioreactor
            asyncioreactor.install()
        from twisted.internet.task import react

        @greendefer.blocking_from_greenlet(timeout=20)
        def later(what):
            loop = reactor._asyncioEventloop
            async def coroutine():
                await asyncio.sleep(0)
                if isinstance(what, Exception):
                    raise what
                return what
            return loop.create_task(coroutine())

        @greendefer.blocking_from_greenlet(timeout=0.01)
        def never():
            future = reactor._asyncioEventloop.create_future()
            futures.append(future)
            return future

        futures = []

        def call():
            assert later(5) == 5
            try:
                later(KeyError("x"))
            except KeyError as e:
                names = [f.name for f in traceback.extract_tb(e.__traceback__)]
                assert "coroutine" in names and "call" in names, names
            else:
                raise AssertionError
            try:
                never()
            except greendefer.CallTimeout:
                pass
            else:
                raise AssertionError
            return "done"

        async def main(r):
            assert await greendefer.defer_to_greenlet(call) == "done"
            await greendefer.defer_to_greenlet(len, "")
            assert futures[0].cancelled()

        from twisted.internet import reactor
        react(main)
        """,
        args=[kind],
    )


def test_an_error_that_came_at_once_has_both_tracebacks(run_program: Any) -> None:
    run_program(
        """
        import traceback
        from twisted.internet import selectreactor
        selectreactor.install()
        from twisted.internet.task import react
        import greendefer

        @greendefer.blocking_from_greenlet
        async def at_once():
            raise KeyError("x")

        def call():
            try:
                at_once()
            except KeyError as e:
                return [f.name for f in traceback.extract_tb(e.__traceback__)]

        async def main(reactor):
            names = await greendefer.defer_to_greenlet(call)
            assert "at_once" in names and "call" in names, names

        react(main)
        """
    )


def test_a_reactor_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from twisted.internet.testing import MemoryReactorClock

    from greendefer import GreendeferError, GreenPool

    monkeypatch.setitem(sys.modules, "twisted.internet.reactor", MemoryReactorClock())
    monkeypatch.setattr("twisted.python.threadable.ioThread", None)
    with pytest.raises(GreendeferError, match=r"greendefer\.testing"):
        GreenPool(1).submit(len, "")


def test_the_historical_functions(run_program: Any) -> None:
    """Those that need no reactor of ours: what one is asked for is on the default pool."""
    run_program(
        """
        from twisted.internet import selectreactor
        selectreactor.install()
        from twisted.internet import reactor
        from twisted.python import log
        from greendefer.geventreactor import callMultipleInGreenlet, deferToGreenlet
        errors, got = [], []
        log.addObserver(lambda event: errors.append(event) if event["isError"] else None)

        async def main():
            callMultipleInGreenlet([(got.append, (n,), {}) for n in range(3)])
            callMultipleInGreenlet([(int, ("four",), {}), (got.append, (4,), {})])
            assert await deferToGreenlet(len, "four") == 4
            while len(errors) + len(got) < 4:
                await deferToGreenlet(len, "")
        go(main)
        assert got == [0, 1, 2], got
        assert [event["failure"].type for event in errors] == [ValueError]
        """
    )
