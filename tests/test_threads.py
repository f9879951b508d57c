"""Threads, and what takes their place: deferToThread, green thread pools, WSGI, adbapi, names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from greendefer import wait_for_deferred
from greendefer.threadpool import GreenThreadPool

KINDS = ["native", "poll", "select", "asyncio"]

PROGRAM = """
    import os, socket, sys, gevent, greendefer
    from gevent import monkey
    greendefer.install({kind!r}, threads={threads!r})
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
    from twisted.internet.threads import blockingCallFromThread, deferToThread
    get_ident = monkey.get_original("_thread", "get_ident")
    """


@pytest.fixture
def run_in_reactor(run_program: Any) -> Any:
    def run(*parts: str, kind: str = "native", threads: str = "native") -> Any:
        prelude = PROGRAM.format(kind=kind, threads=threads)
        return run_program(prelude, *parts, "assert go(main) == 'done'\n")

    return run


class TestThreads:
    @pytest.mark.parametrize("kind", KINDS)
    def test_native_by_default(self, kind: str, run_in_reactor: Any) -> None:
        """What computes in one does not stop the loop."""
        run_in_reactor(
            """
            def compute(stop):
                while not stop:
                    pass
                return get_ident()

            async def main():
                stop = []
                d = deferToThread(compute, stop)
                reactor.callLater(0.01, stop.append, True)
                assert await d != get_ident()
                return "done"
            """,
            kind=kind,
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_green_ones_are_greenlets(self, kind: str, run_in_reactor: Any) -> None:
        run_in_reactor(
            """
            everybody = gevent.event.Event()
            started = []

            def call(n):
                started.append(n)
                if len(started) == 300:
                    everybody.set()
                everybody.wait()
                assert blockingCallFromThread(reactor, get_ident) == get_ident()
                later = Deferred()
                reactor.callLater(0.001, later.callback, n)
                return blockingCallFromThread(reactor, lambda: later), get_ident()

            async def main():
                reactor.suggestThreadPoolSize(300)
                results = await gatherResults([deferToThread(call, n) for n in range(300)])
                assert results == [(n, get_ident()) for n in range(300)]
                assert started == list(range(300))
                pool = reactor.getThreadPool()
                assert pool.max == 300 and pool.workers == 0 and pool.q.qsize() == 0, pool.workers
                try:
                    await deferToThread(lambda: 1 / 0)
                except ZeroDivisionError:
                    return "done"
            """,
            kind=kind,
            threads="green",
        )

    def test_green_ones_that_take_their_time_to_end(self, run_program: Any) -> None:
        """They have failed before that, and are told so once."""
        run_program(
            """
            import gevent, greendefer
            greendefer.install(threads="green")
            from twisted.internet import reactor
            from twisted.python import log
            log.addObserver(lambda event: logged.append(event) if event["isError"] else None)
            logged, ends, cleaned = [], [], []
            def call():
                reactor.callFromThread(reactor.stop)
                try:
                    gevent.sleep(3600)
                finally:
                    gevent.sleep(0.01)
                    cleaned.append(True)
            def told(success, result):
                ends.append((success, result.type))
            reactor.callWhenRunning(
                lambda: reactor.getThreadPool().callInThreadWithCallback(told, call))
            reactor.run()
            assert cleaned
            assert ends == [(False, greendefer.PoolClosed)], ends
            assert not logged, logged
            """
        )

    def test_green_ones_in_flight_when_the_reactor_stops(self, run_program: Any) -> None:
        run_program(
            """
            import gevent, greendefer
            greendefer.install(threads="green")
            from twisted.internet import reactor
            from twisted.internet.threads import deferToThread
            from twisted.python import log
            reactor.suggestThreadPoolSize(2)
            ends = []
            log.addObserver(lambda event: logged.append(log.textFromEventDict(event)))
            logged = []
            for _ in range(4):
                deferToThread(gevent.sleep, 3600).addErrback(lambda f: ends.append(f.type))
            reactor.callLater(0.01, reactor.stop)
            reactor.run()
            assert ends[:2] == [greendefer.PoolClosed] * 2, ends
            assert len(ends) == 4
            assert not any("swallowed" in str(text) for text in logged), logged
            """
        )

    def test_blocking_call_in_the_reactors_greenlet(self, run_in_reactor: Any) -> None:
        run_in_reactor(
            """
            async def main():
                try:
                    blockingCallFromThread(reactor, len, "")
                except greendefer.WouldDeadlock:
                    return "done"
            """
        )

    def test_unknown(self, run_program: Any) -> None:
        run_program(
            """
            import greendefer, sys
            try:
                greendefer.install(threads="purple")
            except ValueError as e:
                assert "'native' or 'green', not 'purple'" in str(e)
            else:
                raise AssertionError("not refused")
            assert "twisted.internet.reactor" not in sys.modules
            """
        )


WSGI = """
    from twisted.web.server import Site
    from twisted.web.wsgi import WSGIResource
    from twisted.web.client import Agent, HTTPConnectionPool, readBody, FileBodyProducer
    from io import BytesIO
    inside = []
    everybody = gevent.event.Event() if {threads!r} == "green" else None

    def application(environ, start_response):
        inside.append(get_ident())
        if everybody is not None:
            if len(inside) == {n}:
                everybody.set()
            everybody.wait()
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"you said: "
        if everybody is not None:
            gevent.sleep(0.001)
        yield body

    async def main():
        reactor.suggestThreadPoolSize({n} if everybody else 10)
        site = Site(WSGIResource(reactor, reactor.getThreadPool(), application))
        port = reactor.listenTCP(0, site, backlog={n}, interface="127.0.0.1")
        url = b"http://127.0.0.1:%d/" % port.getHost().port
        agent = Agent(reactor)

        async def ask(n):
            body = FileBodyProducer(BytesIO(b"%d" % n))
            return await readBody(await agent.request(b"POST", url, None, body))

        said = await gatherResults([ensureDeferred(ask(n)) for n in range({n})])
        assert said == [b"you said: %d" % n for n in range({n})], said
        idents = set(inside)
        if everybody is not None:
            assert idents == {{get_ident()}}
        else:
            assert get_ident() not in idents
        await port.stopListening()
        return "done"
    """


class TestWSGI:
    @pytest.mark.parametrize("kind", ["native", "asyncio"])
    @pytest.mark.parametrize(("threads", "n"), [("native", 50), ("green", 200)])
    def test_resource(self, kind: str, threads: str, n: int, run_in_reactor: Any) -> None:
        """On green threads all requests are inside of the application at once."""
        source = WSGI.format(threads=threads, n=n)
        run_in_reactor(source, kind=kind, threads=threads)


DRIVER = """
    import sys, types
    from gevent.event import Event
    driver = types.ModuleType("fakedb")
    begun, may_end = Event(), Event()

    class Connection:
        opened = 0
        def __init__(self):
            Connection.opened += 1
            self.log, self.user, self.closed = [], None, False
        def cursor(self):
            return Cursor(self)
        def commit(self):
            self.log.append("commit")
        def rollback(self):
            self.log.append("rollback")
        def close(self):
            assert self.user is None
            self.closed = True

    class Cursor:
        def __init__(self, connection):
            self.connection = connection
        def execute(self, query):
            connection = self.connection
            assert not connection.closed
            assert connection.user is None, "two at once"
            connection.user = gevent.getcurrent()
            try:
                if query == "fail":
                    raise RuntimeError(query)
                if query == "select last":
                    begun.set()
                    may_end.wait()
                gevent.sleep(0.001)
                self.row = (query,)
            finally:
                connection.user = None
        def fetchall(self):
            return [self.row]
        def close(self):
            pass

    driver.connect, driver.apilevel, driver.threadsafety = Connection, "2.0", 1
    sys.modules["fakedb"] = driver
    """


class TestAdbapi:
    def test_connection_pool(self, run_in_reactor: Any) -> None:
        """Never more connections than cp_max, each with one interaction at a time, also when the
        greenlets that first opened them are gone."""
        run_in_reactor(
            DRIVER,
            """
            from greendefer.adbapi import GreenConnectionPool

            async def main():
                pool = GreenConnectionPool("fakedb", cp_max=7)
                for _ in range(3):
                    queries = [pool.runQuery(f"select {n}") for n in range(100)]
                    results = await gatherResults(queries)
                    assert results == [[(f"select {n}",)] for n in range(100)]
                    for worker in list(pool.threadpool.pool._carrier.idle):
                        gevent.spawn(worker.throw, gevent.GreenletExit)
                assert Connection.opened == 7
                try:
                    await pool.runQuery("fail")
                except RuntimeError:
                    pass
                connections = list(pool.connections.values())
                assert sum(c.log.count("rollback") for c in connections) == 1
                running = pool.runQuery("select last")
                await greendefer.defer_to_greenlet(begun.wait)
                assert pool.threadpool.workers == 1
                closed = pool.close()
                may_end.set()
                assert await running == [("select last",)]
                await closed
                assert all(c.closed for c in connections)
                return "done"
            """,
        )

    def test_no_threads(self, run_in_reactor: Any) -> None:
        """Not even for a while: Twisted's own pool has cp_min of them at once."""
        run_in_reactor(
            DRIVER,
            """
            import threading
            from greendefer.adbapi import GreenConnectionPool

            async def main():
                await greendefer.defer_to_greenlet(len, "")  # whose thread looks for holdups
                started = []
                start = threading.Thread.start
                threading.Thread.start = lambda self: started.append(self) or start(self)
                pool = GreenConnectionPool("fakedb", cp_min=20, cp_max=20)
                assert not started
                assert await pool.runQuery("select 1") == [("select 1",)]
                assert not started
                await pool.close()
                return "done"
            """,
        )

    def test_reactor_stops(self, run_program: Any) -> None:
        run_program(
            "import gevent\n",
            DRIVER,
            """
            import greendefer
            greendefer.install()
            from greendefer.adbapi import GreenConnectionPool
            from twisted.internet import reactor
            pool = GreenConnectionPool("fakedb", cp_max=3)
            d = pool.runQuery("select 1")
            seen = []
            d.addCallback(lambda _: seen.extend(pool.connections.values()))
            d.addCallback(lambda _: reactor.stop())
            reactor.run()
            assert len(seen) == 1 and seen[0].closed
            """,
        )


class TestNames:
    @pytest.mark.parametrize("kind", KINDS)
    def test_while_every_pool_is_full(self, kind: str, run_in_reactor: Any) -> None:
        run_in_reactor(
            """
            from threading import Lock
            from twisted.internet import error
            from twisted.internet.endpoints import HostnameEndpoint

            async def main():
                native_lock = monkey.get_original("_thread", "allocate_lock")()
                native_lock.acquire()
                def hold():
                    with native_lock:
                        pass
                for _ in range(gevent.get_hub().threadpool.maxsize):
                    gevent.get_hub().threadpool.spawn(hold)
                for _ in range(20):
                    deferToThread(hold)
                pool = greendefer.GreenPool(5)
                held = gevent.event.Event()
                for _ in range(120):
                    greendefer.defer_to_greenlet(held.wait)
                    pool.submit(held.wait)
                got = await gatherResults([reactor.resolve("localhost") for _ in range(200)])
                assert set(got) == {"127.0.0.1"}
                try:
                    await reactor.resolve("no-such-host.invalid")
                except error.DNSLookupError:
                    pass
                else:
                    raise AssertionError("found")
                held.set()
                native_lock.release()
                return "done"
            """,
            kind=kind,
        )

    def test_what_endpoints_use(self, run_in_reactor: Any) -> None:
        """IHostnameResolver, with IPv4 and IPv6, and names that are none."""
        run_in_reactor(
            """
            from twisted.internet import error, protocol
            from twisted.internet.address import IPv4Address
            from twisted.internet.endpoints import HostnameEndpoint
            from twisted.internet.interfaces import IHostnameResolver, IResolutionReceiver
            from zope.interface import implementer

            @implementer(IResolutionReceiver)
            class Receiver:
                def __init__(self):
                    self.addresses, self.complete = [], Deferred()
                def resolutionBegan(self, resolution):
                    self.name = resolution.name
                def addressResolved(self, address):
                    self.addresses.append(address)
                def resolutionComplete(self):
                    self.complete.callback(self.addresses)

            async def main():
                assert IHostnameResolver.providedBy(reactor.nameResolver)
                for name, expected in [
                    ("localhost", {"127.0.0.1"}), ("127.0.0.1", {"127.0.0.1"}),
                    ("no-such-host.invalid", set()),
                ]:
                    receiver = Receiver()
                    reactor.nameResolver.resolveHostName(
                        receiver, name, 80, addressTypes=[IPv4Address])
                    assert {a.host for a in await receiver.complete} == expected, name
                    assert receiver.name == name
                try:
                    await HostnameEndpoint(reactor, "no-such-host.invalid", 80).connect(
                        protocol.Factory.forProtocol(protocol.Protocol))
                except error.DNSLookupError:
                    pass
                else:
                    raise AssertionError("connected")
                for bad in ["x" * 64 + ".example", "a..b"]:
                    try:
                        await reactor.resolve(bad)
                    except error.DNSLookupError:
                        pass
                    else:
                        raise AssertionError("found")
                return "done"
            """
        )

    def test_without_a_timeout(self, run_in_reactor: Any) -> None:
        """It is Twisted's own then."""
        run_in_reactor(
            """
            async def main():
                for timeout in (), [], None:
                    assert await reactor.resolve("localhost", timeout=timeout) == "127.0.0.1"
                return "done"
            """
        )

    def test_slow_names_honour_the_timeout(self, run_in_reactor: Any) -> None:
        """Whatever gevent's resolver is. The lookup that hangs here never ends by itself."""
        run_in_reactor(
            """
            from twisted.internet import error

            class Slow:
                def gethostbyname(self, *args):
                    gevent.event.Event().wait()

            async def main():
                gevent.get_hub().resolver = Slow()
                try:
                    await reactor.resolve("example.org", timeout=(0.01, 0.02))
                except error.DNSLookupError as e:
                    assert "no answer within 0.03 s" in str(e), e
                    assert "example.org" in str(e)
                    assert not reactor.getDelayedCalls()
                    return "done"
            """
        )

    def test_a_slow_native_lookup_is_left_behind(self, run_in_reactor: Any) -> None:
        """gevent's default resolver waits in a thread, which nothing can interrupt."""
        run_in_reactor(
            """
            import _socket
            from twisted.internet import error
            lock = monkey.get_original("_thread", "allocate_lock")()

            def slow(name):
                with lock:
                    return "192.0.2.1"

            async def main():
                _socket.gethostbyname = slow
                lock.acquire()
                try:
                    await reactor.resolve("example.org", timeout=(0.01,))
                except error.DNSLookupError:
                    pass
                else:
                    raise AssertionError("found")
                lock.release()
                assert await reactor.resolve("example.org") == "192.0.2.1"
                return "done"
            """
        )


def test_a_green_thread_pool_by_itself(
    gate: Any, logged: list[dict[str, Any]], in_reactor: Callable[..., Any]
) -> None:
    pool = GreenThreadPool(1, 2)
    pool.start()
    results: list[Any] = []

    def got(success: bool, result: Any) -> None:
        results.append((success, result))
        raise ValueError("of the callback")

    pool.adjustPoolsize(minthreads=1)
    assert (pool.min, pool.max) == (1, 2)
    pool.adjustPoolsize(maxthreads=3)
    assert (pool.min, pool.max) == (1, 3)
    pool.callInThreadWithCallback(got, gate)
    assert gate.entered.wait(20)
    assert (pool.workers, len(pool.working), pool.waiters) == (1, 1, [])
    gate.opened.set()
    pool.callInThread(lambda: 1 // 0)
    wait_for_deferred(pool.pool._when_idle(), 20)
    assert results == [(True, "through")]
    errors = [event for event in logged if event["isError"]]
    for error in errors:
        logged.remove(error)
    assert {error["failure"].type for error in errors} == {ValueError, ZeroDivisionError}
    wait_for_deferred(pool.stopped(), 20)
    pool.callInThreadWithCallback(got, len, "")
    assert pool.pool.stats().submitted == 2
