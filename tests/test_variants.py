"""Every kind of reactor, in programs of their own; what is special about asyncio; old names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from programs import PATCHED, run_python
from test_programs import PROCESSES

KINDS = ["native", "poll", "select", "asyncio"]


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_calls_wakes_and_stop(self, kind: str, run_program: Any) -> None:
        run_program(
            f"""
            import gevent, gevent.socket, greendefer
            from gevent.event import Event
            greendefer.install({kind!r})
            from twisted.internet import reactor, protocol
            from twisted.internet.defer import gatherResults
            pool = greendefer.GreenPool(10)

            class Echo(protocol.Protocol):
                def dataReceived(self, data):
                    self.transport.write(data)
            factory = protocol.ServerFactory()
            factory.protocol = Echo

            def client(port):
                sock = gevent.socket.create_connection(("127.0.0.1", port))
                for n in range(20):
                    sock.sendall(b"x" * 100)
                    got = 0
                    while got < 100:
                        got += len(sock.recv(100))
                sock.close()
                return 1

            def main():
                # In a greenlet that is not the reactor's, while that sleeps.
                gevent.sleep(0.01)
                port = reactor.listenTCP(0, factory, interface="127.0.0.1")
                calls = [pool.submit(client, port.getHost().port) for _ in range(50)]
                assert greendefer.wait_for_deferred(gatherResults(calls)) == [1] * 50
                gevent.sleep(0.01)
                later = Event()
                call = reactor.callLater(3600, later.set)
                gevent.sleep(0.01)
                call.reset(0)
                assert later.wait(10)
                soon = Event()
                reactor.callFromThread(soon.set)
                assert soon.wait(10)
                thread = Event()
                gevent.get_hub().threadpool.apply(reactor.callFromThread, (thread.set,))
                assert thread.wait(10)
                assert reactor.running
                reactor.stop()
                return "done"

            g = gevent.spawn(main)
            reactor.run()
            assert g.get(timeout=10) == "done"
            """
        )

    def test_calls_from_a_thread_before_it_runs(self, kind: str, run_program: Any) -> None:
        """They are kept, however many, and in their order. The thread waits for others with each
        that is too many; the reactor's own does not."""
        run_program(
            f"""
            import gevent, greendefer
            from greendefer._reactor import green
            from greendefer._reactor.wait import get_thread_ident as this_thread
            greendefer.install({kind!r})
            from twisted.internet import reactor
            got, slept = [], []
            sleep = green.native_sleep
            green.native_sleep = lambda seconds: (slept.append(this_thread()), sleep(seconds))

            def thread():
                for n in range(green.BACKLOG + 500):
                    reactor.callFromThread(got.append, n)
                return this_thread()

            other = gevent.get_hub().threadpool.apply(thread)
            assert slept == [other] * 500, slept
            assert got == []
            reactor.callFromThread(got.append, "ours")
            reactor.callFromThread(reactor.callLater, 0, reactor.stop)
            reactor.run()
            assert got == [*range(green.BACKLOG + 500), "ours"], got
            assert len(slept) == 500
            """
        )

    def test_a_greenlet_adds_a_reader_and_takes_it_away(self, kind: str, run_program: Any) -> None:
        run_program(
            f"""
            import gevent, greendefer, socket
            from gevent.event import Event
            greendefer.install({kind!r})
            from twisted.internet import reactor
            ours, theirs = socket.socketpair()
            ours.setblocking(False)

            class Reader:
                def __init__(self):
                    self.got = Event()
                def fileno(self):
                    return ours.fileno()
                def logPrefix(self):
                    return "reader"
                def connectionLost(self, reason):
                    pass
                def doRead(self):
                    ours.recv(1)
                    self.got.set()

            def until_it_sleeps():
                while not reactor.cooperative_wait.is_parked:
                    gevent.sleep(0)
                gevent.sleep(0.01)

            def main():
                until_it_sleeps()
                for _ in range(3):
                    reader = Reader()
                    reactor.addReader(reader)
                    until_it_sleeps()
                    theirs.send(b"x")
                    assert reader.got.wait(10)
                    until_it_sleeps()
                    reactor.removeReader(reader)
                    theirs.send(b"y")  # which nobody wants, and nobody turns round and round for
                    until_it_sleeps()
                    turns = reactor.cooperative_wait.turns
                    gevent.sleep(0.05)
                    assert reactor.cooperative_wait.turns - turns < 5
                    assert ours.recv(1) == b"y"
                reactor.stop()
                return "done"

            g = gevent.spawn(main)
            reactor.run()
            assert g.get(timeout=10) == "done"
            """
        )

    def test_no_child_process_is_lost(self, kind: str, run_program: Any) -> None:
        source = PROCESSES.replace("install()", f"install({kind!r})")
        done = run_program(source.format(subprocess="gevent.subprocess", n=200))
        assert "all 200" in done.stdout, done

    def test_exits_that_only_the_signal_tells_on_libuv(self, kind: str, run_program: Any) -> None:
        """Their pipes are closed long before: then Twisted asks for them, in vain."""
        run_program(
            f"""
            import gevent.subprocess, greendefer
            greendefer.install({kind!r})
            from twisted.internet import reactor
            from twisted.internet.defer import Deferred, gatherResults
            from twisted.internet.protocol import ProcessProtocol

            class Exit(ProcessProtocol):
                def __init__(self, n):
                    self.ended = Deferred()
                    code = f"exec 0<&- 1>&- 2>&-; sleep 0.5; exit {{n}}"
                    reactor.spawnProcess(self, "/bin/sh", ["sh", "-c", code], env={{}})

                def processEnded(self, reason):
                    self.ended.callback(reason.value.exitCode)

            def gevent_child(n):
                return gevent.subprocess.call(["/bin/sh", "-c", f"sleep 0.5; exit {{n}}"])

            async def main():
                for _ in range(2):
                    ours = [Exit(n).ended for n in range(5)]
                    theirs = [greendefer.defer_to_greenlet(gevent_child, n) for n in range(5)]
                    assert await gatherResults(ours + theirs) == [*range(5)] * 2

            go(main)
            """,
            GEVENT_LOOP="libuv",
        )

    def test_it_is_twisteds_own_of_that_kind(self, kind: str, run_program: Any) -> None:
        bases = {
            "native": "epollreactor.EPollReactor",
            "poll": "pollreactor.PollReactor",
            "select": "selectreactor.SelectReactor",
            "asyncio": "asyncioreactor.AsyncioSelectorReactor",
        }
        run_program(
            f"""
            import greendefer
            greendefer.install({kind!r})
            from twisted.internet import reactor
            from twisted.python.reflect import namedAny
            assert isinstance(reactor, namedAny("twisted.internet.{bases[kind]}"))
            """
        )

    def test_ctrl_c_without_signal_handlers(self, kind: str, run_program: Any) -> None:
        run_program(
            f"""
            import os, signal, gevent, greendefer
            signal.signal(signal.SIGINT, signal.default_int_handler)
            greendefer.install({kind!r})
            from twisted.internet import reactor
            greendefer.defer_to_greenlet(gevent.sleep, 3600)
            reactor.callLater(0.01, os.kill, os.getpid(), signal.SIGINT)
            try:
                reactor.run(installSignalHandlers=False)
            except KeyboardInterrupt:
                os._exit(0)
            os._exit(1)
            """
        )


class TestAsyncio:
    def test_tasks_deferreds_and_greenlets_take_turns(self, run_program: Any) -> None:
        run_program(
            """
            import asyncio, gevent, greendefer
            greendefer.install("asyncio")
            from twisted.internet import reactor
            from twisted.internet.defer import Deferred
            turns = []

            async def task():
                for _ in range(5):
                    turns.append("asyncio")
                    await asyncio.sleep(0.01)
                # Each side awaits the other's.
                got = await greendefer.defer_to_greenlet(len, "four").asFuture(
                    asyncio.get_running_loop())
                assert got == 4
                reactor.stop()

            def greenlet():
                for _ in range(5):
                    turns.append("gevent")
                    gevent.sleep(0.01)

            def twisted(n=5):
                turns.append("twisted")
                if n:
                    reactor.callLater(0.01, twisted, n - 1)

            def start():
                asyncio.get_event_loop().create_task(task())
                greendefer.defer_to_greenlet(greenlet)
                twisted()
            reactor.callWhenRunning(start)
            reactor.run()
            assert set(turns[:9]) == {"asyncio", "gevent", "twisted"}, turns
            assert turns.count("gevent") == 5
            """
        )

    def test_no_other_greenlet_sees_the_loop_as_running(self, run_program: Any) -> None:
        run_program(
            """
            import asyncio, gevent, greendefer
            greendefer.install("asyncio")
            from twisted.internet import reactor
            from twisted.internet.defer import gatherResults
            seen = []

            def call():
                for _ in range(3):
                    seen.append(asyncio._get_running_loop())
                    gevent.sleep(0.001)

            def own_loop(n):
                async def main():
                    await asyncio.sleep(0.001)
                    return n, asyncio.get_running_loop()
                return asyncio.run(main())

            async def main():
                loop = asyncio.get_running_loop()
                await gatherResults([greendefer.defer_to_greenlet(call) for _ in range(3)])
                assert seen == [None] * 9, seen
                for n in range(3):
                    got, other = await greendefer.defer_to_greenlet(own_loop, n)
                    assert got == n and other is not loop
                    assert asyncio.get_running_loop() is loop

            go(main)
            """
        )

    def test_scheduling_from_a_greenlet_takes_effect_at_once(self, run_program: Any) -> None:
        run_program(
            """
            import asyncio, gevent, greendefer
            from gevent.event import Event
            greendefer.install("asyncio")
            from twisted.internet import reactor
            def main():
                loop = reactor._asyncioEventloop
                for schedule in loop.call_soon, lambda f: loop.call_later(0.001, f):
                    gevent.sleep(0.01)
                    done = Event()
                    schedule(done.set)
                    assert done.wait(10)
                gevent.sleep(0.01)
                done = Event()
                async def task():
                    done.set()
                loop.create_task(task())
                assert done.wait(10)
                reactor.stop()
                return "done"
            g = gevent.spawn(main)
            reactor.run()
            assert g.get(timeout=10) == "done"
            """
        )

    def test_a_loop_that_is_not_green_is_refused(self, run_program: Any) -> None:
        run_program(
            """
            import asyncio
            from greendefer.geventasyncioreactor import GeventAsyncioReactor, GreenEventLoop
            try:
                GeventAsyncioReactor(asyncio.SelectorEventLoop())
            except TypeError as e:
                assert "GreenEventLoop" in str(e)
            else:
                raise AssertionError("not refused")
            GeventAsyncioReactor(GreenEventLoop())
            """
        )


@pytest.mark.parametrize("kind", KINDS)
def test_twisted_itself_is_not_patched(kind: str, run_program: Any) -> None:
    """Its threads are threads, and its sockets the plain ones; the program's own are gevent's."""
    run_program(
        f"""
        import socket, time, greendefer
        from gevent import monkey
        greendefer.install({kind!r})
        from twisted.internet import reactor, protocol, threads
        from twisted.internet.defer import Deferred
        from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
        import _socket, gevent.socket
        ident = monkey.get_original("_thread", "get_ident")
        seen = []

        class Echo(protocol.Protocol):
            def connectionMade(self):
                seen.append(self.transport.socket)
                self.transport.write(b"x")

        class Client(protocol.Protocol):
            def __init__(self):
                self.got = Deferred()
            def dataReceived(self, data):
                seen.append(self.transport.socket)
                self.transport.loseConnection()
                self.got.callback(data)

        def in_thread():
            # It may hold its thread, and block as the program does, and nothing else stops.
            time.sleep(0.001)
            return ident()

        async def main():
            factory = protocol.ServerFactory()
            factory.protocol = Echo
            port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
            client = Client()
            await TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port).connect(
                protocol.ClientFactory.forProtocol(lambda: client))
            assert await client.got == b"x"
            assert len(seen) == 2
            for sock in seen:
                assert isinstance(sock, _socket.socket), sock
                assert not isinstance(sock, gevent.socket.socket), sock
            assert await threads.deferToThread(in_thread) != ident()
            assert await threads.deferToThread(
                threads.blockingCallFromThread, reactor, ident) == ident()
            if monkey.is_module_patched("socket"):
                assert await greendefer.defer_to_greenlet(
                    threads.blockingCallFromThread, reactor, ident) == ident()

        go(main)
        if monkey.is_module_patched("socket"):
            assert socket.socket is gevent.socket.socket
        """
    )


GEVENTREACTOR = """
    import gevent, logging
    from greendefer import geventreactor
    geventreactor.install()
    from twisted.internet import reactor, defer, error
    from twisted.python import log
    assert isinstance(reactor, geventreactor.GeventReactor)
    assert geventreactor.IReactorGreenlets.providedBy(reactor)
    names = ["GeventReactor", "GeventResolver", "IReactorGreenlets", "install",
             "deferToGreenlet", "deferToGreenletPool", "callMultipleInGreenlet",
             "waitForGreenlet", "waitForDeferred", "blockingCallFromGreenlet"]
    assert sorted(names) == geventreactor.__all__
    from greendefer.geventreactor import *
    errors = []
    log.addObserver(lambda event: errors.append(event) if event["isError"] else None)

    class ExampleModel:
        class objects:
            @staticmethod
            def all():
                gevent.sleep(0.001)
                return iter([1, 2, 3])

    def in_greenlet():
        later = defer.Deferred()
        reactor.callLater(0.001, later.callback, 5)
        assert waitForDeferred(later) == 5
        assert blockingCallFromGreenlet(reactor, defer.succeed, 6) == 6
        assert blockingCallFromGreenlet(reactor, lambda: 7) == 7
        return "in greenlet"

    async def main():
        d = reactor.deferToGreenlet(ExampleModel.objects.all)
        assert list(await d) == [1, 2, 3]
        assert await reactor.deferToGreenlet(list, ExampleModel.objects.all()) == [1, 2, 3]
        assert await deferToGreenlet(in_greenlet) == "in greenlet"
        assert await deferToGreenletPool(reactor, reactor.getGreenletPool(), len, "four") == 4
        assert await waitForGreenlet(gevent.spawn(len, "four")) == 4
        got = []
        callMultipleInGreenlet([(got.append, [1], {}), (got.append, (2,), {})])
        reactor.callInGreenlet(got.append, 3)
        while len(got) < 3:
            await deferToGreenlet(gevent.sleep, 0.001)
        assert sorted(got) == [1, 2, 3]
        fired = defer.Deferred()
        reactor.callFromGreenlet(fired.callback, gevent.getcurrent())
        assert await fired is gevent.getcurrent()
        reactor.suggestGreenletPoolSize(7)
        assert reactor.getGreenletPool().size == 7
        resolver = GeventResolver(reactor)
        assert await resolver.getHostByName("localhost") == "127.0.0.1"
        try:
            await resolver.getHostByName("no-such-host.invalid")
        except error.DNSLookupError:
            pass
        else:
            raise AssertionError("found")
        assert not errors
        reactor.callInGreenlet(lambda: 1 / 0)
        while not errors:
            await deferToGreenlet(gevent.sleep, 0.001)
        print("all of it")

    go(main)
    """


def test_geventreactors_names(run_program: Any) -> None:
    done = run_program(GEVENTREACTOR)
    assert "all of it" in done.stdout, done


@pytest.mark.skipif(PATCHED, reason="trial starts by itself")
@pytest.mark.parametrize(
    ("name", "expected"),
    [("gevent", "GeventReactor"), ("gevent-asyncio", "GeventAsyncioReactor")],
)
def test_reactor_option_of_trial(name: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        f"""
from twisted.trial.unittest import TestCase
from twisted.internet import reactor
import greendefer

class Tests(TestCase):
    def test_kind(self):
        self.assertEqual(type(reactor).__name__, {expected!r})

    async def test_call(self):
        self.assertEqual(await greendefer.defer_to_greenlet(len, "four"), 4)
"""
    )
    done = run_python("-m", "twisted.trial", f"--reactor={name}", "test_it", cwd=tmp_path)
    assert "successes=2" in done.stdout
