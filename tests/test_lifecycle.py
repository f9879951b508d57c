"""From start to end: forks, daemons, signals, second hubs, idling, and who was there first."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from programs import ON_LIBUV, PATCH, PATCHED, run_twistd

KINDS = ["native", "poll", "select", "asyncio"]

SERVER = """
    import os, sys, gevent, greendefer
    greendefer.install({kind!r})
    from twisted.internet import protocol, reactor
    from twisted.internet.defer import ensureDeferred

    class Pid(protocol.Protocol):
        def connectionMade(self):
            d = greendefer.defer_to_greenlet(self.work)
            d.addCallback(lambda pid: self.transport.loseConnection())
            d.addErrback(lambda f: (f.printTraceback(), self.transport.abortConnection()))
        def work(self):
            gevent.sleep(0.001)
            self.transport.write(b"%d" % os.getpid())

    port = reactor.listenTCP(
        0, protocol.Factory.forProtocol(Pid), interface="127.0.0.1").getHost().port

    async def ask():
        from twisted.internet.endpoints import TCP4ClientEndpoint
        from twisted.internet.defer import Deferred
        class Client(protocol.Protocol):
            def connectionMade(self):
                self.got, self.done = b"", Deferred()
            def dataReceived(self, data):
                self.got += data
            def connectionLost(self, reason):
                self.done.callback(int(self.got))
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        return await (await endpoint.connect(protocol.Factory.forProtocol(Client))).done
    """


@pytest.fixture
def run_with_server(run_program: Any) -> Any:
    def run(source: str, kind: str) -> Any:
        return run_program(SERVER.format(kind=kind), source)

    return run


class TestFork:
    @pytest.mark.parametrize("kind", KINDS)
    def test_workers_that_are_forked_before_the_reactor_runs(
        self, kind: str, run_with_server: Any
    ) -> None:
        """They share the listening port, and nothing else."""
        run_with_server(
            """
            from gevent import monkey
            reactor.callLater(0, lambda: None)
            gevent.sleep(0)
            back = os.pipe()
            pids = []
            for _ in range(3):
                pid = os.fork()
                if not pid:
                    async def serve():
                        # Answers come from whichever of the processes accepts.
                        assert all([await ask() for _ in range(5)])
                        done = await greendefer.defer_to_greenlet(len, "done")
                        # Another thread wakes this process, and no other.
                        from twisted.internet.threads import deferToThread
                        assert await deferToThread(len, "thread") == 6
                        os.write(back[1], b"%d" % done)
                        return done
                    def failed(f):
                        f.printTraceback()
                        sys.stderr.flush()
                        os._exit(1)
                    reactor.callLater(0, lambda: ensureDeferred(serve()).addErrback(failed))
                    reactor.run()
                    os._exit(2)
                pids.append(pid)
            get_original_waitpid = monkey.get_original("os", "waitpid")
            async def main():
                seen = {await ask() for _ in range(20)}
                assert seen <= {os.getpid(), *pids}, seen
                assert await greendefer.defer_to_greenlet(len, "done") == 4
                got = b""
                def read():
                    return os.read(back[0], 1)
                while len(got) < 3:
                    from twisted.internet.threads import deferToThread
                    got += await deferToThread(read)
                assert got == b"444"
                for pid in pids:
                    os.kill(pid, 9)
                    get_original_waitpid(pid, 0)
                assert {await ask() for _ in range(5)} == {os.getpid()}
            go(main)
            """,
            kind,
        )

    @pytest.mark.parametrize("patch", [False, True], ids=["", "patched"])
    @pytest.mark.parametrize("reactor", ["stock", "green"])
    @pytest.mark.parametrize("pool", ["GreenPool", "NativeThreadPool"])
    def test_calls_made_before_it(
        self, pool: str, reactor: str, patch: bool, run_program: Any
    ) -> None:
        """Threads are the parent's alone. What one runs fails in the child; all else goes on."""
        run_program(
            f"""
            from gevent import monkey
            sleep, Lock = (monkey.get_original("time", "sleep"),
                           monkey.get_original("_thread", "allocate_lock"))
            waitpid = monkey.get_original("os", "waitpid")
            if {patch}:
                monkey.patch_all()
            import gevent, greendefer, os
            if {reactor == "green"}:
                greendefer.install()
            from twisted.internet import reactor
            from twisted.internet.defer import DeferredList, ensureDeferred

            pool = greendefer.{pool}(2)
            is_lost = {pool == "NativeThreadPool" or reactor == "stock"}
            # (These tests may run patched themselves.)
            is_green = {reactor == "green"} or monkey.is_module_patched("socket")
            nap = gevent.sleep if is_green and {pool == "GreenPool"} else sleep
            """
            + """
            locks = [Lock() for _ in range(3)]
            for lock in locks:
                lock.acquire()
            begun = []

            def work(n):
                begun.append(n)
                while not locks[n].acquire(False):
                    nap(0.001)
                return n

            # The first has ended when the process is forked, the second runs, the third waits.
            calls = [pool.submit(work, n) for n in range(3)]
            if is_lost:
                while not {0, 1} <= {*begun}:
                    sleep(0.001)
                locks[0].release()
                while len(pool._runtime._outbox) < 3:  # begun, begun, ended
                    sleep(0.001)
            else:
                locks[0].release()
                while {*begun} < {0, 1} or locks[0].acquire(False):
                    gevent.sleep(0.001)
            pid = os.fork()
            if pid:
                assert waitpid(pid, 0)[1] == 0
            for lock in locks[1:]:
                lock.release()

            async def main():
                results = await DeferredList(calls, consumeErrors=True)
                assert results[0] == (True, 0) and results[2] == (True, 2), results
                if is_lost and not pid:
                    assert "forked" in results[1][1].getErrorMessage(), results
                else:
                    assert results[1] == (True, 1), results
                assert await DeferredList([pool.submit(len, "abc") for _ in range(5)])
                slow = greendefer.green_deferred(nap, pool=pool, timeout=0.01)
                try:
                    await slow(0.1)
                except greendefer.CallTimeout:
                    pass
                await pool.close()
                return "done"

            ended = []
            reactor.callWhenRunning(lambda: ensureDeferred(main()).addBoth(
                lambda result: (ended.append(result), reactor.stop())))
            reactor.run()
            stats = pool.stats()
            print(pid, ended, stats)
            assert ended == ["done"], ended
            assert (stats.running, stats.queued, stats.lingering) == (0, 0, 0), stats
            assert stats.failed == (is_lost and not pid), stats
            os._exit(0) if not pid else None
            """
        )

    def test_a_worker_that_is_there(self, run_program: Any) -> None:
        """Its thread is the parent's: in the child it is lost, and its block is left."""
        run_program(
            """
            from gevent import monkey
            waitpid = monkey.get_original("os", "waitpid")
            import greendefer, os
            from twisted.internet import selectreactor
            selectreactor.install()
            from twisted.internet import reactor

            pool = greendefer.NativeThreadPool(2)
            pid = None

            async def main():
                global pid
                async with pool.worker() as w:
                    assert await w.submit(len, "four") == 4
                    pid = os.fork()
                    if pid:
                        assert waitpid(pid, 0)[1] == 0
                        assert await w.submit(len, "four") == 4
                    else:
                        assert await pool.submit(len, "child") == 5
                        try:
                            await w.submit(len, "four")
                        except greendefer.PoolClosed:
                            os._exit(0)
                        os._exit(1)
                return "done"

            assert go(main) == "done"
            """
        )

    @pytest.mark.parametrize("kind", ["native", "asyncio"])
    def test_while_a_thread_is_about_to_deliver(self, kind: str, run_program: Any) -> None:
        """It has noted that it will have the reactor called, and in the child it never does."""
        run_program(
            """
            from gevent import monkey
            waitpid = monkey.get_original("os", "waitpid")
            import gevent, greendefer, os, signal, sys
            greendefer.install(sys.argv[1])
            from greendefer._runtime import runtime_here
            from twisted.internet import reactor

            async def main():
                assert await greendefer.defer_to_greenlet(len, "four") == 4
                runs = greendefer.defer_to_greenlet(gevent.sleep, 0.05)
                noted = [runtime_here(), reactor] if sys.argv[1] == "asyncio" else [runtime_here()]
                for each in noted:
                    each._posted = True
                pid = os.fork()
                if pid:
                    for each in noted:
                        each._posted = False
                    assert waitpid(pid, 0)[1] == 0
                else:
                    signal.alarm(60)
                    assert await runs is None  # it makes no new call before that
                    assert await greendefer.defer_to_greenlet(len, "child") == 5
                    os._exit(0)
                return "done"

            assert go(main) == "done"
            """,
            args=[kind],
        )

    def test_a_limit_that_was_set_before_it(self, run_program: Any) -> None:
        """The thread that minds the time is the parent's: the child has another one."""
        run_program(
            """
            from gevent import monkey
            Lock = monkey.get_original("_thread", "allocate_lock")
            waitpid = monkey.get_original("os", "waitpid")
            import greendefer, os
            from twisted.internet import selectreactor
            selectreactor.install()
            from twisted.internet import reactor
            from twisted.internet.defer import DeferredList

            lock = Lock()
            lock.acquire()

            def work():
                with lock:
                    return "done"

            pool = greendefer.NativeThreadPool(1)
            runs, next_one = pool.submit(work), pool.submit(work)
            waits = greendefer.green_deferred(work, pool=pool, timeout=1)()
            waits.addErrback(lambda f: (f.trap(greendefer.CallTimeout), lock.release()))
            pid = os.fork()
            if pid:
                assert waitpid(pid, 0)[1] == 0

            async def main():
                await waits
                (ran, result), = await DeferredList([runs], consumeErrors=True)
                assert ran == bool(pid), result
                if not pid:
                    assert "forked" in result.getErrorMessage(), result
                assert await next_one == "done"
                await pool.close()
                assert pool.stats().timed_out == 1
            try:
                go(main)
            except BaseException:
                if not pid:
                    import traceback
                    traceback.print_exc()
                    os._exit(1)
                raise
            os._exit(0) if not pid else None
            """
        )

    def test_a_call_in_the_slot_of_another(self, run_program: Any) -> None:
        """Both are lost with the helper thread, and the slot is free."""
        run_program(
            """
            from gevent import monkey
            monkey.patch_all()
            sleep, waitpid = (monkey.get_original("time", "sleep"),
                              monkey.get_original("os", "waitpid"))
            from twisted.internet import selectreactor
            selectreactor.install()
            import gevent, greendefer, os, traceback
            from twisted.internet import reactor
            from twisted.internet.task import deferLater

            pool = greendefer.GreenPool(1)
            begun, released = [], []

            def borrower():
                begun.append(1)
                while not released:
                    gevent.sleep(0.001)
                return "done"

            def lender():
                return greendefer.blocking_from_greenlet(
                    greendefer.green_deferred(borrower, pool=pool))()

            def in_child(running):
                errors, got = [], []
                running.addErrback(lambda f: errors.append(f.getErrorMessage()))
                pool.submit(len, "four").addBoth(got.append)
                # Its waker is the parent's, too, so that it can not just go on.
                while not got:
                    sleep(0.001)
                    reactor.runUntilCurrent()
                assert got == [4], got
                (error,) = errors
                assert error.startswith("lender ran in a thread"), error
                stats = pool.stats()
                assert (stats.running, stats.queued, stats.lingering) == (0, 0, 0), stats
                assert (stats.completed, stats.failed) == (1, 2), stats

            async def main():
                running = pool.submit(lender)
                while not begun:
                    await deferLater(reactor, 0.001)
                assert pool.stats().queued == 1  # in the slot of the other
                pid = os.fork()
                if not pid:
                    try:
                        in_child(running)
                    except BaseException:
                        traceback.print_exc()
                        os._exit(1)
                    os._exit(0)
                assert waitpid(pid, 0)[1] == 0
                released.append(1)
                assert await running == "done"

            go(main)
            """
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_in_a_call_while_the_reactor_runs(self, kind: str, run_with_server: Any) -> None:
        """A child that ends by itself takes nothing from its parent."""
        run_with_server(
            """
            from gevent import monkey
            def fork():
                gevent.sleep(0.001)
                pid = os.fork()
                if not pid:
                    gevent.sleep(0.001)
                    port_object.stopReading()
                    os._exit(7)
                return monkey.get_original("os", "waitpid")(pid, 0)
            port_object = next(r for r in reactor.getReaders() if hasattr(r, "getHost"))
            async def main():
                pid, status = await greendefer.defer_to_greenlet(fork)
                assert os.waitstatus_to_exitcode(status) == 7
                assert await ask() == os.getpid()
            go(main)
            """,
            kind,
        )


TAC = """
import os, gevent, greendefer
from twisted.application import service, internet
from twisted.internet import endpoints, protocol, reactor
from twisted.internet.threads import deferToThread

class Pid(protocol.Protocol):
    def dataReceived(self, data):
        d = deferToThread(len, data)
        d.addCallback(lambda n: greendefer.defer_to_greenlet(self.work, n))
        d.addErrback(lambda f: self.transport.write(f.getTraceback().encode()))
        d.addBoth(lambda _: self.transport.loseConnection())
    def work(self, n):
        gevent.sleep(0.001)
        child = gevent.subprocess.check_output(["echo", "child"])
        self.transport.write(b"%d %d " % (os.getpid(), n) + child)

class ReportPort(service.Service):
    def startService(self):
        port = reactor.listenTCP(0, protocol.Factory.forProtocol(Pid), interface="127.0.0.1")
        with open("port.new", "w") as f:
            f.write(str(port.getHost().port))
        os.rename("port.new", "port")

application = service.Application("pids")
ReportPort().setServiceParent(application)
import gevent.subprocess
"""


class TestTwistd:
    @pytest.mark.parametrize("name", ["gevent", "gevent-asyncio"])
    def test_daemon_serves_requests(self, name: str, tmp_path: Path) -> None:
        """It forks twice after the reactor was installed."""
        (tmp_path / "pids.tac").write_text(PATCH + TAC)
        run_twistd(tmp_path, f"--reactor={name}", "--python=pids.tac", "--pidfile=pid")
        deadline = time.monotonic() + 30
        try:
            while not (tmp_path / "port").exists():
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.01)
            pid = int((tmp_path / "pid").read_text())
            port = int((tmp_path / "port").read_text())
            for _ in range(5):
                with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                    connection.sendall(b"four")
                    with connection.makefile("rb") as reply:
                        assert reply.read() == b"%d 4 child\n" % pid
        finally:
            pid = int((tmp_path / "pid").read_text())
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + 60
            # It removes its pid file, and says that after it (run() in twisted/application/app.py).
            while "Server Shut Down" not in (tmp_path / "log").read_text():
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert not (tmp_path / "pid").exists()


class TestSignals:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
    def test_stop_the_reactor(self, kind: str, name: str, run_program: Any) -> None:
        """Also while greenlets keep the hub busy, and in a greenlet that is not main."""
        run_program(
            f"""
            import os, signal, gevent, greendefer
            signal.signal(signal.SIGINT, signal.default_int_handler)
            greendefer.install({kind!r})
            from twisted.internet import reactor
            fired = []
            def spin():
                while True:
                    gevent.sleep(0)
            greendefer.defer_to_greenlet(spin).addErrback(lambda f: fired.append(f.type))
            reactor.callLater(0.01, os.kill, os.getpid(), signal.{name})
            reactor.run()
            assert fired == [greendefer.PoolClosed], fired
            """
        )

    @pytest.mark.parametrize("kind", ["native", "asyncio"])
    def test_the_reactor_tells_which(self, kind: str, run_program: Any) -> None:
        """To `twist` and `twistd`, which exit with that (ReactorBase._exitSignal): see
        tests/reliability/test_ends.py."""
        run_program(
            f"""
            import os, signal, greendefer
            greendefer.install({kind!r})
            from twisted.internet import reactor
            reactor.callLater(0.01, os.kill, os.getpid(), signal.SIGTERM)
            reactor.run()
            assert reactor._exitSignal == signal.SIGTERM
            """
        )


class TestRun:
    @pytest.mark.parametrize("kind", KINDS)
    def test_in_a_greenlet_that_is_not_main(self, kind: str, run_program: Any) -> None:
        run_program(
            f"""
            import gevent, greendefer
            greendefer.install({kind!r})
            from twisted.internet import reactor
            seen = []
            def main():
                seen.append(greendefer.wait_for_deferred(greendefer.defer_to_greenlet(len, "x")))
                reactor.callFromThread(lambda: seen.append(gevent.getcurrent()))
                reactor.callLater(0.01, reactor.stop)
            running = gevent.spawn(reactor.run)
            gevent.spawn(main)
            running.get()
            assert seen == [1, running], seen
            """
        )

    @pytest.mark.parametrize("where", ["here", "in a thread"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_while_it_runs(self, kind: str, where: str, run_program: Any) -> None:
        """It is refused, and the one that runs goes on as before: with its children, too."""
        run_program(
            f"""
            import greendefer
            from gevent import monkey
            greendefer.install({kind!r})
            from twisted.internet import protocol, reactor
            from twisted.internet.defer import Deferred
            from twisted.internet.error import ReactorAlreadyRunning

            class Child(protocol.ProcessProtocol):
                def processEnded(self, reason):
                    ended.callback(reason.value.exitCode)

            def again():
                try:
                    reactor.run()
                except Exception as e:
                    reactor.callFromThread(refused.callback, type(e))

            refused, ended = Deferred(), Deferred()

            async def main():
                if {where!r} == "here":
                    again()
                else:
                    monkey.get_original("_thread", "start_new_thread")(again, ())
                assert await refused is ReactorAlreadyRunning
                assert await greendefer.defer_to_greenlet(len, "four") == 4
                # Without pipes, only SIGCHLD tells of its end.
                reactor.spawnProcess(Child(), "/bin/sh", ["sh", "-c", "exit 3"], childFDs={{}})
                assert await ended == 3

            go(main)
            """
        )

    @pytest.mark.parametrize("kind", ["native", "select"])
    def test_iterate_in_two_greenlets(self, kind: str, run_program: Any) -> None:
        """Which of them is the reactor's is known also where they end in any order."""
        run_program(
            f"""
            import gevent, greendefer
            greendefer.install({kind!r})
            from gevent.event import Event
            from twisted.internet import reactor
            begun, goes_on = [Event(), Event()], [Event(), Event()]
            def wait(n):  # in the reactor's greenlet
                begun[n].set()
                goes_on[n].wait()
            def iterate(n):
                reactor.callLater(0, wait, n)
                while not begun[n].is_set():
                    reactor.iterate(0)
            wait_for = reactor.cooperative_wait
            first = gevent.spawn(iterate, 0)
            begun[0].wait()
            assert wait_for.greenlet is first
            second = gevent.spawn(iterate, 1)
            begun[1].wait()
            assert wait_for.greenlet is second
            goes_on[0].set()
            first.join()
            assert wait_for.greenlet is second
            goes_on[1].set()
            second.join()
            assert wait_for.greenlet is None
            """
        )

    @pytest.mark.parametrize("kind", ["native", "select"])
    def test_ctrl_c_while_a_greenlet_iterates(self, kind: str, run_program: Any) -> None:
        """It is for the main greenlet, which runs the reactor, and comes out of that."""
        run_program(
            f"""
            import gevent, greendefer, signal
            signal.signal(signal.SIGINT, signal.default_int_handler)
            greendefer.install({kind!r})
            from gevent.event import Event
            from twisted.internet import reactor
            begun, goes_on = Event(), Event()
            def wait():
                begun.set()
                goes_on.wait()
            def iterate():
                reactor.callLater(0, wait)
                while not begun.is_set():
                    reactor.iterate(0)
                return "no exception"
            other = gevent.spawn(iterate)
            begun.wait()
            reactor.callLater(0.01, signal.raise_signal, signal.SIGINT)
            try:
                reactor.run(installSignalHandlers=False)
            except KeyboardInterrupt:
                goes_on.set()
                assert other.get() == "no exception"
            else:
                raise AssertionError("not interrupted")
            """
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_crash_and_iterate(self, kind: str, run_program: Any) -> None:
        run_program(
            f"""
            import gevent, greendefer
            greendefer.install({kind!r})
            from twisted.internet import reactor
            reactor.callLater(0.01, reactor.crash)
            reactor.run()
            assert not reactor.running
            got = []
            greendefer.defer_to_greenlet(gevent.sleep, 0.01).addCallback(got.append)
            while not got:
                reactor.iterate(0.01)
            assert got == [None]
            """
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_second_hub_in_another_thread(self, kind: str, run_program: Any) -> None:
        """It has its own greenlets, which wait for the reactor without stopping each other."""
        run_program(
            f"""
            import gevent, greendefer
            from gevent import monkey
            greendefer.install({kind!r})
            from twisted.internet import reactor
            from twisted.internet.defer import Deferred
            out = []

            @greendefer.blocking_from_greenlet
            def later(value):
                d = Deferred()
                reactor.callLater(0.001, d.callback, value)
                return d

            def thread():
                ticks = []
                def tick():
                    while True:
                        ticks.append(1)
                        gevent.sleep(0)
                ticker = gevent.spawn(tick)
                got = gevent.pool.Group().map(later, range(50))
                ticker.kill()
                out.append((got == list(range(50)), len(ticks) > 1))
                gevent.get_hub().destroy()
                reactor.callFromThread(reactor.stop)
            import gevent.pool
            reactor.callWhenRunning(
                monkey.get_original("_thread", "start_new_thread"), thread, ())
            reactor.run()
            assert out == [(True, True)], out
            """
        )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells")
@pytest.mark.skipif(
    ON_LIBUV,
    reason="gevent's libuv loop wakes every 300 ms by itself, to look for signals",
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_idle_reactor_sleeps(kind: str) -> None:
    """In 2 seconds of nothing the process gives way to the kernel twice at most (context switches
    of all its threads, as the kernel counts them), once it has settled down."""
    program = f"""
        import greendefer, sys
        greendefer.install({kind!r})
        from twisted.internet import reactor
        greendefer.defer_to_greenlet(len, "")  # everything is there
        reactor.callWhenRunning(print, "runs", flush=True)
        reactor.run()
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )

    def switches() -> int:
        return sum(
            int(status.read_text().split("voluntary_ctxt_switches:")[1].split()[0])
            for status in Path(f"/proc/{process.pid}/task").glob("*/status")
        )

    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        counts = []
        for _ in range(4):
            before = switches()
            time.sleep(2)
            counts.append(switches() - before)
            if counts[-1] <= 2:
                return
        raise AssertionError(counts)
    finally:
        process.kill()
        process.wait()


class TestAlreadyInstalled:
    def test_it_says_which_module_imported_it(self, tmp_path: Path, run_program: Any) -> None:
        (tmp_path / "culprit.py").write_text(
            "import os\n\n\nfrom twisted.internet import defer, reactor\n"
        )
        run_program(
            f"""
            import sys
            sys.path.insert(0, {str(tmp_path)!r})
            import culprit, greendefer
            from greendefer import geventreactor, geventasyncioreactor
            from twisted.internet.error import ReactorAlreadyInstalledError
            for install in greendefer.install, lambda: greendefer.install("asyncio"):
                try:
                    install()
                except ReactorAlreadyInstalledError as e:
                    assert "culprit (" in str(e) and "culprit.py, line 4)" in str(e), e
                    assert "greendefer.install()" in str(e)
                else:
                    raise AssertionError("not refused")
            for module in geventreactor, geventasyncioreactor:
                try:
                    module.install()
                except ReactorAlreadyInstalledError as e:
                    assert "culprit.py, line 4)" in str(e), e
                else:
                    raise AssertionError("not refused")
            """
        )

    def test_in_a_function_and_nobody_knows_where(self, run_program: Any) -> None:
        run_program(
            """
            import greendefer
            from twisted.internet import selectreactor
            from twisted.internet.error import ReactorAlreadyInstalledError
            def main():
                from twisted.internet import reactor
                greendefer.install()
            selectreactor.install()
            for f, said in (main, "main() (<string>"), (greendefer.install, "python -v"):
                try:
                    f()
                except ReactorAlreadyInstalledError as e:
                    assert said in str(e), e
                    assert "SelectReactor" in str(e)
                else:
                    raise AssertionError("not refused")
            """
        )


@pytest.mark.skipif(PATCHED, reason="the program patches by itself")
@pytest.mark.parametrize("kind", ["native", "asyncio"])
def test_a_program_that_is_patched_after_the_reactor_was_made(kind: str, run_program: Any) -> None:
    """Twisted stays on the native primitives; what the program uses becomes cooperative."""
    run_program(
        f"""
        import greendefer
        greendefer.install({kind!r})
        from twisted.internet import reactor
        from gevent import monkey
        monkey.patch_all()
        import time, threading, gevent.socket, socket
        from twisted.internet import tcp, threads
        assert socket.socket is gevent.socket.socket
        assert tcp.socket.socket is not socket.socket
        ident = monkey.get_original("_thread", "get_ident")
        async def main():
            ticks = []
            def tick():
                ticks.append(1)
                reactor.callLater(0.001, tick)
            tick()
            def naps():
                while len(ticks) <= 3:
                    time.sleep(0.001)  # cooperative, or this would never end
            await greendefer.defer_to_greenlet(naps)
            assert await threads.deferToThread(ident) != ident()
        go(main)
        """
    )


def test_on_libuv_a_pool_leaves_no_watcher_behind(
    run_program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libuv keeps a pointer to each that is not closed: once its pool is garbage, the next one that
    is made there, or closed, writes to memory that is somebody else's."""
    monkeypatch.setenv("GEVENT_LOOP", "libuv")
    run_program(
        """
        import time, gevent, greendefer
        greendefer.install()
        from twisted.internet import reactor
        from greendefer import GreenPool, defer_to_greenlet, wait_for_deferred

        def open_but_stopped():
            gevent.sleep(0.01)  # they are closed in the loop's next round
            handles = gevent.get_hub().loop.debug()
            return sum(not each.active and not each.closing for each in handles)

        def longer_than_a_slice():
            until = time.monotonic() + 0.003
            while time.monotonic() < until:
                pass

        def run():
            before = open_but_stopped()
            pools = [GreenPool(2) for _ in range(5)]
            for d in [pool.submit(longer_than_a_slice) for pool in pools for _ in range(4)]:
                wait_for_deferred(d)
            assert open_but_stopped() == before, (open_but_stopped(), before)
            reactor.stop()

        running = gevent.spawn(run)
        running.link_exception(lambda _: reactor.crash())
        reactor.run()
        assert running.successful()
        """
    )


def test_on_libuv_other_threads_leave_the_loop_alone(
    run_program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may end its poll, and nothing more: a handle that another thread starts while the loop
    goes through them can crash the process."""
    monkeypatch.setenv("GEVENT_LOOP", "libuv")
    run_program(
        """
        import traceback
        import gevent, greendefer
        from gevent._hub_local import get_hub_if_exists
        from gevent.libuv.loop import loop as Loop
        greendefer.install()
        from greendefer._holdups import HoldupWatch, warn_of_holdups
        from twisted.internet import reactor
        from twisted.internet.defer import inlineCallbacks
        from twisted.internet.task import deferLater
        from twisted.internet.threads import deferToThread

        meddled = set()
        knocks = []
        start = Loop._start_callback_timer
        answer = HoldupWatch._answer
        HoldupWatch._answer = lambda self, *args: (knocks.append(1), answer(self, *args))

        def noted(loop):
            hub = get_hub_if_exists()
            if hub is None or hub.loop is not loop:
                meddled.add("".join(traceback.format_stack(limit=5)))
            start(loop)

        Loop._start_callback_timer = noted
        warn_of_holdups(5)

        @greendefer.blocking_from_greenlet
        def soon(n):
            return deferLater(reactor, 0, lambda: n)

        def in_a_thread_with_a_hub():
            waiting = [gevent.spawn(soon, n) for n in range(5)]
            gevent.joinall(waiting)
            results = [each.value for each in waiting]
            gevent.get_hub().destroy(destroy_loop=True)
            return results

        @inlineCallbacks
        def main():
            for _ in range(5):
                assert (yield deferToThread(in_a_thread_with_a_hub)) == list(range(5))
            yield greendefer.defer_to_greenlet(gevent.sleep, 0.01)
            while not knocks:
                yield deferLater(reactor, 0.001)
            reactor.stop()

        reactor.callWhenRunning(lambda: main().addErrback(
            lambda failure: (failure.printTraceback(), reactor.crash())))
        reactor.run()
        assert not meddled, "\\n\\n".join(meddled)
        """
    )


def test_on_libuv_a_reactor_that_runs_in_another_thread_leaves_no_watcher_behind(
    run_program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop of the thread that has imported it would keep pointers to what is gone."""
    monkeypatch.setenv("GEVENT_LOOP", "libuv")
    run_program(
        """
        import gevent, greendefer
        from gevent import monkey
        greendefer.install()
        from twisted.internet import reactor

        def open_but_stopped():
            gevent.sleep(0.01)  # they are closed in the loop's next round
            handles = gevent.get_hub().loop.debug()
            return sum(not each.active and not each.closing for each in handles)

        before = open_but_stopped()
        reactor.callWhenRunning(reactor.stop)
        ended = monkey.get_original("_thread", "allocate_lock")()
        ended.acquire()

        def run():
            try:
                reactor.run(installSignalHandlers=False)
            finally:
                ended.release()

        monkey.get_original("_thread", "start_new_thread")(run, ())
        assert ended.acquire(timeout=20)
        assert open_but_stopped() < before
        """
    )
