"""Whole programs: how they start, how they end, and what they are refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from programs import EXAMPLES, LIMIT, PATCH, PATCHED, joined, run_python


class TestRefused:
    def test_a_call_before_any_reactor_is_installed(self, run_program: Any) -> None:
        """It says what to write, and does not install the default reactor."""
        run_program(
            """
            import sys, greendefer
            from twisted.internet.defer import succeed
            decorated = greendefer.green_deferred(len)
            blocking = greendefer.blocking_from_greenlet(lambda: succeed(1))
            for call in (
                lambda: decorated(""),
                lambda: greendefer.defer_to_greenlet(len, ""),
                lambda: greendefer.GreenPool().submit(len, ""),
                lambda: greendefer.wait_for_deferred(succeed(1)),
                blocking,
            ):
                try:
                    call()
                except greendefer.GreendeferError as e:
                    assert "greendefer.install()" in str(e), e
                else:
                    raise AssertionError("not refused")
            assert "twisted.internet.reactor" not in sys.modules
            greendefer.install()
            """
        )

    def test_waiting_in_the_thread_of_a_reactor_that_is_not_green(self, run_program: Any) -> None:
        run_program(
            """
            import greendefer
            from twisted.internet import selectreactor
            selectreactor.install()
            from twisted.internet.defer import succeed
            import gevent
            for wait in (
                lambda: greendefer.wait_for_deferred(succeed(1)),
                lambda: greendefer.wait_for_greenlet(gevent.spawn(len, "")),
                greendefer.blocking_from_greenlet(len),
            ):
                try:
                    wait()
                except greendefer.GreendeferError as e:
                    assert "SelectReactor" in str(e), e
                else:
                    raise AssertionError("not refused")
            """
        )

    def test_installing_after_twisteds_default_reactor(self, run_program: Any) -> None:
        run_program(
            """
            import greendefer
            from twisted.internet import error, selectreactor
            selectreactor.install()
            try:
                greendefer.install()
            except error.ReactorAlreadyInstalledError as e:
                assert "before anything imports" in str(e)
            else:
                raise AssertionError("not refused")
            """
        )

    def test_a_wait_that_nobody_could_end(self, run_program: Any) -> None:
        run_program(
            """
            import greendefer
            greendefer.install()
            from twisted.internet.defer import Deferred
            try:
                greendefer.wait_for_deferred(Deferred())
            except greendefer.WouldDeadlock as e:
                assert "reactor.run()" in str(e)
            else:
                raise AssertionError("not refused")
            """
        )


class TestBeforeRun:
    def test_calls_and_waits_that_begin_before_the_reactor_runs(self, run_program: Any) -> None:
        run_program(
            """
            import gevent, greendefer
            greendefer.install()
            from twisted.internet import reactor
            got = []
            def wait():
                got.append(greendefer.wait_for_deferred(greendefer.defer_to_greenlet(len, "four")))
                reactor.stop()
            gevent.spawn(wait)
            greendefer.defer_to_greenlet(len, "x").addCallback(got.append)
            gevent.sleep(0.01)
            assert got == []  # results are delivered by the reactor
            reactor.run()
            assert sorted(got) == [1, 4], got
            """
        )


class TestStop:
    def test_with_calls_in_flight(self, run_program: Any) -> None:
        """Queued calls fail; running ones get their grace and are killed; all Deferreds fire, in
        the reactor's greenlet, before run() returns."""
        run_program(
            """
            import gevent, greendefer
            from gevent.event import Event
            greendefer.install()
            from twisted.internet import reactor
            pool = greendefer.GreenPool(10)
            fired, cleaned, quick = [], [], []
            def call():
                try:
                    Event().wait()
                finally:
                    cleaned.append(1)
            ds = [pool.submit(call) for _ in range(20)]
            for d in ds:
                d.addBoth(lambda f: fired.append((f.type, gevent.getcurrent())))
            greendefer.defer_to_greenlet(gevent.sleep, 0.05).addCallback(quick.append)
            reactor.callLater(0.01, reactor.stop)
            reactor.run()
            assert {f for f, _ in fired} == {greendefer.PoolClosed}, fired
            assert {g for _, g in fired} == {gevent.getcurrent()}
            assert len(fired) == 20 and len(cleaned) == 10
            assert quick == [None]  # it ended by itself within the grace
            d = pool.submit(len, "")
            d.addErrback(lambda f: f.trap(greendefer.PoolClosed))
            assert d.called
            """
        )

    @pytest.mark.parametrize("kind", ["green", "stock"])
    @pytest.mark.parametrize("how", ["in time", "never", "by then", "no grace"])
    def test_with_a_deferred_that_a_call_has_returned(
        self, kind: str, how: str, run_program: Any
    ) -> None:
        """It has its grace, as the call had before; then it is cancelled, and the call fails."""
        run_program(
            """
            import sys
            import gevent, greendefer
            from greendefer.shutdown import set_shutdown_grace
            kind, how = sys.argv[1:]
            if kind == "green":
                greendefer.install()
            from twisted.internet import reactor
            from twisted.internet.defer import Deferred
            from twisted.internet.task import deferLater
            set_shutdown_grace({"in time": 20, "no grace": 0, "by then": 2}.get(how, 0.1), 0.1)
            pool = greendefer.GreenPool(2)
            fired, cancelled = [], []
            def call():
                if how == "in time":
                    return deferLater(reactor, 0.2, str, "its value")
                return Deferred(cancelled.append)
            def late():
                gevent.sleep(0.05)  # it runs when the reactor is told to stop
                return call()
            if how == "by then":
                d = pool.submit(late)
                reactor.callWhenRunning(reactor.stop)
            else:
                d = pool.submit(call)
                def look():
                    if pool._unfired_calls():  # it has returned that, and this is known here
                        reactor.stop()
                    else:
                        reactor.callLater(0.001, look)
                reactor.callWhenRunning(look)
            d.addBoth(lambda r: fired.append(getattr(r, "type", r)))
            reactor.run()
            if how == "in time":
                assert fired == ["its value"] and not cancelled, (fired, cancelled)
            else:
                assert fired == [greendefer.PoolClosed], fired
                assert len(cancelled) == 1, cancelled
            s = pool.stats()
            assert s.completed + s.cancelled == 1, s
            """,
            args=[kind, how],
        )

    def test_with_a_call_that_swallows_the_kill(self, run_program: Any) -> None:
        run_program(
            """
            import gevent, greendefer
            greendefer.install()
            from twisted.internet import reactor
            def stubborn():
                while True:
                    try:
                        gevent.sleep(3600)
                    except gevent.GreenletExit:
                        pass
            d = greendefer.defer_to_greenlet(stubborn)
            d.addErrback(lambda f: f.trap(greendefer.PoolClosed))
            reactor.callLater(0.01, reactor.stop)
            reactor.run()
            assert d.called
            """
        )

    def test_calls_may_be_made_while_others_shut_down(self, run_program: Any) -> None:
        """A service that saves its state when it is stopped, in more than one step."""
        run_program(
            """
            import gevent, greendefer
            greendefer.install()
            from twisted.internet import reactor
            from twisted.internet.defer import ensureDeferred
            saved = []
            greendefer.defer_to_greenlet(len, "")  # before the service adds its trigger
            async def stop_service():
                saved.append(await greendefer.defer_to_greenlet(len, "one"))
                await greendefer.defer_to_greenlet(gevent.sleep, 0.01)
                saved.append(await greendefer.GreenPool().submit(len, "four"))
            reactor.addSystemEventTrigger(
                "before", "shutdown", lambda: ensureDeferred(stop_service()))
            reactor.callLater(0.01, reactor.stop)
            reactor.run()
            assert saved == [3, 4], saved
            """
        )

    def test_waits_end_with_it(self, run_program: Any) -> None:
        run_program(
            """
            import gevent, greendefer
            from gevent import monkey
            greendefer.install()
            from twisted.internet import reactor
            from twisted.internet.defer import Deferred
            ended = []
            def wait(f, *args):
                try:
                    f(*args)
                except greendefer.GreendeferError as e:
                    ended.append(str(e))
            never = greendefer.blocking_from_greenlet(Deferred)
            waiting = [gevent.spawn(wait, greendefer.wait_for_deferred, Deferred(), t)
                       for t in (None, 3600)]
            start = monkey.get_original("_thread", "start_new_thread")
            start(wait, (never,))
            reactor.callLater(0.05, reactor.stop)
            reactor.run()
            gevent.joinall(waiting)
            while len(ended) < 3:
                gevent.sleep(0.001)
            wait(never)
            wait(greendefer.wait_for_deferred, Deferred())
            assert len(ended) == 5 and all("has stopped" in e for e in ended), ended
            """
        )

    def test_sysexit_in_a_call_does_not_end_the_reactor(self, run_program: Any) -> None:
        run_program(
            """
            import sys, gevent, greendefer
            greendefer.install()
            from twisted.internet import reactor
            def call():
                gevent.sleep(0)
                sys.exit(3)
            d = greendefer.defer_to_greenlet(call)
            d.addErrback(lambda f: f.trap(SystemExit) and reactor.callLater(0.01, reactor.stop))
            reactor.run()
            """
        )


SIGINT = """
    import os, signal, sys, gevent, greendefer
    from gevent.event import Event
    # As in a terminal: a shell starts what it runs in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    greendefer.install()
    from twisted.internet import reactor
    fired = []
    def spin():  # most signals will hit this one
        while True:
            gevent.sleep(0)
    d = greendefer.defer_to_greenlet(spin)
    d.addErrback(lambda f: fired.append(f.type))
    """


class TestInterrupt:
    """A real SIGINT reaches the program, whichever greenlet it hits."""

    @staticmethod
    def interrupt(*parts: str) -> subprocess.CompletedProcess[str]:
        program = subprocess.Popen(
            [sys.executable, "-c", joined(PATCH, *parts)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert program.stdout is not None
        try:
            assert program.stdout.readline() == "ready\n"
            program.send_signal(signal.SIGINT)
            out, err = program.communicate(timeout=LIMIT)
        finally:
            program.kill()  # one that did not notice would go on for ever
        return subprocess.CompletedProcess([], program.returncode, out, err)

    def test_with_twisteds_handlers(self) -> None:
        done = self.interrupt(
            SIGINT,
            """
            reactor.callLater(0.1, print, "ready", flush=True)
            reactor.run()
            print("stopped", fired)
            """,
        )
        assert "stopped [<class 'greendefer.PoolClosed'>]" in done.stdout, done
        # Twisted itself sends it again, to die of it, in its scripts only.
        assert done.returncode == 0

    def test_without_them(self) -> None:
        done = self.interrupt(
            SIGINT,
            """
            reactor.callLater(0.1, print, "ready", flush=True)
            try:
                reactor.run(installSignalHandlers=False)
            except KeyboardInterrupt:
                print("interrupted", fired)
            """,
        )
        assert "interrupted []" in done.stdout, done

    @pytest.mark.parametrize("main", ["Event().wait()", "gevent.sleep(3600)", "spin()"])
    def test_in_a_gevent_first_program(self, main: str) -> None:
        done = self.interrupt(
            SIGINT,
            f"""
            gevent.spawn(reactor.run, installSignalHandlers=False)
            # (A print() that is interrupted by a switch to another greenlet has a lock.)
            reactor.callLater(0.1, os.write, 1, b"ready\\n")
            try:
                {main}
            except KeyboardInterrupt:
                print("interrupted", fired)
            """,
        )
        assert "interrupted []" in done.stdout, done

    def test_between_two_callbacks_of_the_hub(self, run_program: Any) -> None:
        """On libuv, nobody gets what is raised there."""
        run_program(
            """
            import signal, gevent, greendefer
            from greenlet import getcurrent
            signal.signal(signal.SIGINT, signal.default_int_handler)
            greendefer.install()
            from twisted.internet import reactor
            hub = gevent.get_hub()
            update_now = hub.loop.update_now
            hit = []
            def update_and_interrupt():  # what the loop calls between callbacks
                update_now()
                if not hit and getcurrent() is hub:
                    hit.append(True)
                    signal.raise_signal(signal.SIGINT)
            gevent.spawn(reactor.run, installSignalHandlers=False)
            reactor.callLater(0, setattr, hub.loop, "update_now", update_and_interrupt)
            try:
                gevent.sleep(3600)
            except KeyboardInterrupt:
                hit.append("interrupted")
            assert hit == [True, "interrupted"]
            # And all goes on.
            assert greendefer.wait_for_deferred(greendefer.defer_to_greenlet(len, "four")) == 4
            reactor.callFromThread(reactor.stop)
            """,
            GEVENT_LOOP="libuv",
        )

    def test_a_call_that_never_gives_way(self) -> None:
        done = self.interrupt(
            SIGINT,
            """
            gevent.spawn(reactor.run, installSignalHandlers=False)
            def hog():
                os.write(1, b"ready\\n")
                while True:
                    pass
            greendefer.defer_to_greenlet(hog)
            try:
                Event().wait()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
                os._exit(0)
            """,
        )
        assert "interrupted" in done.stdout, done

    def test_in_a_program_that_iterates(self) -> None:
        done = self.interrupt(
            SIGINT,
            """
            reactor.callLater(0.1, print, "ready", flush=True)
            try:
                while True:
                    reactor.iterate(0.01)
            except KeyboardInterrupt:
                print("interrupted", fired)
            """,
        )
        assert "interrupted []" in done.stdout, done

    def test_the_handler_is_put_back(self, run_program: Any) -> None:
        run_program(
            """
            import signal, greendefer
            signal.signal(signal.SIGINT, signal.default_int_handler)
            greendefer.install()
            from twisted.internet import reactor
            reactor.callWhenRunning(reactor.stop)
            reactor.run(installSignalHandlers=False)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            """
        )


INTERRUPT = """
    import signal, gevent, greendefer
    signal.signal(signal.SIGINT, signal.default_int_handler)
    greendefer.install()
    from twisted.internet import reactor
    got = []

    def interrupt():
        signal.raise_signal(signal.SIGINT)  # its handler has run when this returns
        got.append("went on")

    def until_interrupted(f, *args, **kwargs):
        try:
            f(*args, **kwargs)
        except KeyboardInterrupt:
            got.append("interrupted")
    """


class TestInterruptWhere:
    """A SIGINT of which it is known which greenlet it hits."""

    @pytest.fixture
    def run(self, run_program: Any) -> Callable[[str], Any]:
        return lambda source: run_program(INTERRUPT, source)

    def test_a_call(self, run: Any) -> None:
        """It goes on, when the program has been told."""
        run(
            """
            gevent.spawn(reactor.run, installSignalHandlers=False)
            d = greendefer.defer_to_greenlet(interrupt)
            d.addBoth(got.append)
            until_interrupted(gevent.sleep, 3600)
            while len(got) < 3:
                gevent.sleep(0.001)
            assert got == ["interrupted", "went on", None], got
            """
        )

    def test_the_main_greenlet(self, run: Any) -> None:
        run(
            """
            greendefer.start_reactor()
            until_interrupted(interrupt)
            assert got == ["interrupted"], got
            assert greendefer.wait_for_deferred(greendefer.defer_to_greenlet(len, "four")) == 4
            """
        )

    def test_the_hub(self, run: Any) -> None:
        run(
            """
            greendefer.start_reactor()
            gevent.get_hub().loop.run_callback(interrupt)
            until_interrupted(gevent.sleep, 3600)
            assert got == ["interrupted"], got
            assert greendefer.wait_for_deferred(greendefer.defer_to_greenlet(len, "four")) == 4
            """
        )

    def test_the_reactors_greenlet_which_is_main(self, run: Any) -> None:
        """Twisted would log what a callback raises, and go on."""
        run(
            """
            reactor.callWhenRunning(interrupt)
            until_interrupted(reactor.run, installSignalHandlers=False)
            assert got == ["went on", "interrupted"], got
            """
        )


PROCESSES = """
    import sys, gevent, greendefer
    import {subprocess} as subprocess
    greendefer.install()
    from twisted.internet import reactor, defer, protocol
    N = {n}
    ours, theirs = [], []

    class Exit(protocol.ProcessProtocol):
        def __init__(self):
            self.ended = defer.Deferred()
        def processEnded(self, reason):
            self.ended.callback((reason.value.exitCode, reason.value.signal))

    def twisted_child(n):
        p = Exit()
        code = "exit %d" % (n % 256) if n % 3 else "kill -TERM $$"
        reactor.spawnProcess(p, "/bin/sh", ["sh", "-c", code], env={{}})
        return p.ended

    def gevent_child(n):
        code = "exit %d" % (n % 256) if n % 3 else "kill -TERM $$"
        return subprocess.call(["/bin/sh", "-c", code])

    async def main():
        pool = greendefer.GreenPool(N)
        results = []
        both = []
        for n in range(N):
            both.append(twisted_child(n))
            both.append(pool.submit(gevent_child, n))
        results = await defer.gatherResults(both)
        for n in range(N):
            assert results[2 * n] == ((n % 256, None) if n % 3 else (None, 15)), (n, results[2 * n])
            assert results[2 * n + 1] == (n % 256 if n % 3 else -15), (n, results[2 * n + 1])
        print("all", N)

    go(main)
    assert subprocess.call(["/bin/sh", "-c", "exit 7"]) == 7  # and after the reactor has stopped
    """


class TestChildProcesses:
    @pytest.mark.skipif(PATCHED, reason="patched, it is gevent's")
    def test_the_standard_librarys_own(self, run_program: Any) -> None:
        """Unpatched, where nothing uses gevent's: exit codes are right, as on a stock reactor."""
        source = PROCESSES.replace("pool.submit(gevent_child, n)", "defer.succeed(gevent_child(n))")
        done = run_program(source.format(subprocess="subprocess", n=20))
        assert "all 20" in done.stdout, done

    @pytest.mark.parametrize("late_patch", ["", "monkey.patch_os()"])
    def test_one_of_twisteds_ends_while_gevent_waits_for_another(
        self, late_patch: str, run_program: Any
    ) -> None:
        """libev, which has the signal then, takes its exit, and Twisted is told: it would hear of
        it by nothing else, because there are no pipes to that one. (A late patch, of os alone, has
        Twisted ask gevent, which knows.)"""
        run_program(
            f"""
            import gevent, gevent.subprocess, greendefer
            from gevent import monkey
            greendefer.install()
            {late_patch}
            from twisted.internet import protocol, reactor
            from twisted.internet.defer import Deferred, ensureDeferred
            shell = ["/bin/sh", "-c", "read x; exit 7"]

            class Child(protocol.ProcessProtocol):
                def __init__(self):
                    self.ended = Deferred()

                def processEnded(self, reason):
                    self.ended.callback(reason.value.signal)

            async def main():
                ours = Child()
                reactor.spawnProcess(ours, "/bin/sleep", ["sleep", "3600"], env={{}}, childFDs={{}})
                theirs = gevent.subprocess.Popen(shell, stdin=gevent.subprocess.PIPE)
                waits = greendefer.defer_to_greenlet(theirs.wait)
                while not waits.is_running:
                    await greendefer.defer_to_greenlet(gevent.sleep, 0)
                ours.transport.signalProcess("TERM")
                assert await ours.ended == 15
                theirs.stdin.close()
                assert await waits == 7
                return "done"

            got = []
            reactor.callWhenRunning(lambda: ensureDeferred(main()).addBoth(
                lambda r: (got.append(r), reactor.stop())))
            reactor.run()
            assert got == ["done"], got[0].getTraceback()
            """
        )

    def test_one_that_was_started_before_the_reactor(self, run_program: Any) -> None:
        run_program(
            """
            import gevent.subprocess, greendefer
            greendefer.install()
            from twisted.internet import reactor
            child = gevent.subprocess.Popen(["/bin/sh", "-c", "read x; exit 5"],
                                            stdin=gevent.subprocess.PIPE)
            reactor.callLater(0.05, reactor.stop)
            reactor.run()
            child.stdin.close()
            assert child.wait() == 5
            """
        )


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (["agent_client.py"], ["Response received: 200", "The same in a greenlet: 200"]),
        (["line_server.py", "--demo"], ["'after', 'the', 'delay'", "'quitting', 'in', '2'"]),
    ],
)
def test_the_historical_readmes_programs(example: list[str], said: list[str]) -> None:
    done = run_python(EXAMPLES / example[0], *example[1:])
    assert not done.stderr, done.stderr
    for each in said:
        assert each in done.stdout, done.stdout


def test_quickstart() -> None:
    done = run_python(EXAMPLES / "quickstart.py")
    assert "500 calls of 200 ms each, 250 at once" in done.stdout
    assert "completed=500, failed=0" in done.stdout
