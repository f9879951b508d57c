"""Connections are written to first, and waited for only if they must be."""

from __future__ import annotations

from typing import Any

import pytest

KINDS = ["native", "poll", "select", "asyncio"]

PRELUDE = """
    import gevent.socket, greendefer, socket
    greendefer.install({kind!r})
    from twisted.internet import protocol, reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
    from twisted.python import context, log

    class Server(protocol.Protocol):
        def connectionMade(self):
            self.lost = Deferred()
            self.factory.made.callback(self)
        def connectionLost(self, reason):
            self.lost.callback(reason.type)

    async def connected():
        factory = protocol.Factory.forProtocol(Server)
        factory.made = Deferred()
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        client = socket.create_connection(("127.0.0.1", port.getHost().port))
        server = await factory.made
        await port.stopListening()
        return server, client
"""


@pytest.fixture(params=KINDS)
def run_main(request: pytest.FixtureRequest, run_program: Any) -> Any:

    def run(source: str) -> Any:
        return run_program(PRELUDE.format(kind=request.param), source)

    return run


def test_what_does_not_fit_waits_for_the_reader(run_main: Any) -> None:
    """And comes whole, and in order; the reactor does not ask again and again meanwhile."""
    run_main(
        """
        SIZE = 8_000_000
        DATA = bytes(range(250)) * (SIZE // 250)

        def read_all(client):
            got = b""
            while len(got) < SIZE:
                gevent.socket.wait_read(client.fileno())  # recv() alone would stop the reactor
                got += client.recv(1 << 20)
            return got

        async def main():
            server, client = await connected()
            transport, tries = server.transport, []
            send = transport.writeSomeData
            def counting(data):
                tries.append(send(data))
                return tries[-1]
            transport.writeSomeData = counting
            for at in range(0, SIZE, 1000):
                transport.write(DATA[at:at + 1000])
            assert transport in reactor.getWriters()
            n = -1
            while n != len(tries):  # until it is full, and nobody tries again
                n = len(tries)
                for _ in range(50):
                    await greendefer.defer_to_greenlet(gevent.sleep, 0)
            assert 0 < sum(tries) < SIZE
            assert transport in reactor.getWriters()
            assert await greendefer.defer_to_greenlet(read_all, client) == DATA
            assert transport not in reactor.getWriters()
            transport.write(b"more")
            transport.loseConnection()
            await server.lost
            assert client.recv(10) == b"more"

        go(main)
        """
    )


def test_any_greenlet_may_write_while_the_reactor_sleeps(run_main: Any) -> None:
    run_main(
        """
        async def main():
            server, client = await connected()
            def write():
                for n in range(100):
                    server.transport.write(b"%02d" % n)
                    gevent.socket.wait_read(client.fileno(), timeout=10)
                    assert client.recv(2) == b"%02d" % n
                return "done"
            assert await greendefer.defer_to_greenlet(write) == "done"

        go(main)
        """
    )


def test_producers_go_on_and_starve_nobody(run_main: Any) -> None:
    run_main(
        """
        class Producer:
            sent = 0
            def resumeProducing(self):
                self.sent += 1
                self.transport.write(b"x")
            def stopProducing(self):
                pass

        async def main():
            both = []
            for _ in range(2):
                server, client = await connected()
                producer = Producer()
                producer.transport = server.transport
                both.append((server, client, producer))
            for server, _, producer in both:
                server.transport.registerProducer(producer, False)  # asked for more as it is sent
            ticked = Deferred()
            reactor.callLater(0.01, ticked.callback, None)
            await ticked
            assert await greendefer.defer_to_greenlet(len, "four") == 4
            for server, client, producer in both:
                sent = producer.sent
                while producer.sent < sent + 10:
                    await greendefer.defer_to_greenlet(gevent.socket.wait_read, client.fileno())
                    client.recv(1 << 16)
            for server, _, _ in both:
                server.transport.abortConnection()
                await server.lost

        go(main)
        """
    )


def test_a_producer_alone(run_main: Any) -> None:
    """Nothing else gives the reactor a turn: what it adds as it is asked is sent all the same."""
    run_main(
        """
        class Producer:
            left = 1000
            def resumeProducing(self):
                if self.left:
                    self.left -= 1
                    self.transport.write(b"x")
                else:
                    self.transport.unregisterProducer()
                    self.transport.loseConnection()
            def stopProducing(self):
                pass

        async def main():
            server, client = await connected()
            producer = Producer()
            producer.transport = server.transport
            server.transport.registerProducer(producer, False)
            await server.lost  # it is never read, and nobody waits in the hub
            assert producer.left == 0
            got = b""
            while data := client.recv(2000):
                got += data
            assert len(got) == 1000

        go(main)
        """
    )


def test_what_is_due_comes_before_the_answer(run_main: Any) -> None:
    """As on a stock reactor: callLater(0) beside a write is called before the peer's answer."""
    run_main(
        """
        order = []
        answered = Deferred()

        class Asks(protocol.Protocol):
            def dataReceived(self, data):
                reactor.callLater(0, order.append, "due")
                self.transport.write(b"?")

        class Peer(protocol.Protocol):
            def dataReceived(self, data):
                order.append("asked")
                answered.callback(None)

        async def main():
            port = reactor.listenTCP(0, protocol.Factory.forProtocol(Asks), interface="127.0.0.1")
            end = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
            peer = await end.connect(protocol.Factory.forProtocol(Peer))
            peer.transport.write(b"go")
            await answered
            assert order == ["due", "asked"], order

        go(main)
        """
    )


def test_a_connection_that_is_gone(run_main: Any) -> None:
    """A write to it is lost, as everywhere, and the connection with it; once."""
    run_main(
        """
        import struct
        async def main():
            server, client = await connected()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            server.transport.stopReading()  # so that only a write can tell
            client.close()  # with a reset
            server.transport.write(b"x")
            await server.lost
            assert server.transport not in reactor.getWriters()
            server.transport.write(b"y")
            assert server.transport not in reactor.getWriters()

        go(main)
        """
    )


def test_remove_all(run_main: Any) -> None:
    run_main(
        """
        async def main():
            server, client = await connected()
            server.transport.write(b"x")
            removed = reactor.removeAll()
            assert removed.count(server.transport) == 1, removed
            assert reactor.getWriters() == [] == [r for r in reactor.getReaders() if r in removed]
            reactor.addReader(server.transport)
            reactor.addWriter(server.transport)
            client.close()
            await server.lost

        go(main)
        """
    )


def test_the_log_context_and_the_log(run_main: Any) -> None:
    """What reads and writes raise is logged under the prefix of whoever did, and ends it."""
    run_main(
        """
        events = []
        log.addObserver(events.append)

        async def main():
            server, client = await connected()
            seen = []
            def received(data):
                seen.append((data, context.get(log.ILogContext)["system"]))
                def inner():
                    seen.append(context.get(log.ILogContext)["system"])
                log.callWithContext({"system": "inner"}, inner)
                raise ZeroDivisionError
            server.dataReceived = received
            server.transport.logPrefix = lambda: "The server"
            client.send(b"x")
            await server.lost
            assert seen == [(b"x", "The server"), "inner"], seen
            errors = [e for e in events if e["isError"]]
            assert [e["failure"].type for e in errors] == [ZeroDivisionError]

            server, client = await connected()
            def do_write():
                seen.append(context.get(log.ILogContext)["system"])
                raise LookupError
            def broken():
                raise ValueError
            server.transport.doWrite = do_write
            server.transport.logPrefix = broken
            server.transport.write(b"x")
            await server.lost
            assert seen[-1] == "(buggy logPrefix method)"
            kinds = {e["failure"].type for e in events if e["isError"]}
            assert kinds == {ZeroDivisionError, LookupError, ValueError}
            later = Deferred()
            reactor.callLater(0, later.callback, None)
            await later
            assert len(context.theContextTracker.currentContext().contexts) == 1

        go(main)
        """
    )


@pytest.mark.parametrize("where", ["greenlet", "callback"])
def test_after_one_that_was_dropped(run_main: Any, where: str) -> None:
    """A connection that is aborted loses what it had to write; the next one to write is asked for
    all the same, while the reactor sleeps and nothing else wakes it."""
    run_main(
        """
        async def main():
            first, one = await connected()
            second, other = await connected()
            first.transport.write(b"dropped")
            first.transport.abortConnection()
            await WRITE
            one.close()
            other.close()

        async def in_callback(server, client):
            await greendefer.defer_to_greenlet(gevent.sleep, 0.01)
            server.transport.write(b"four")
            await greendefer.defer_to_greenlet(gevent.socket.wait_read, client.fileno())

        def in_greenlet(server, client):
            def write():
                gevent.sleep(0.01)
                server.transport.write(b"four")
                gevent.socket.wait_read(client.fileno())
            return greendefer.defer_to_greenlet(write)

        go(main)
        """.replace("WRITE", f"in_{where}(second, other)")
    )
