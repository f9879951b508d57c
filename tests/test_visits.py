"""Results are delivered where the reactor waits, and it takes a turn only if they give it work."""

from __future__ import annotations

from typing import Any

import pytest

PRELUDE = """
    import gevent, gevent.socket, greendefer, socket
    greendefer.install({kind!r})
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred, gatherResults
    from twisted.internet.task import deferLater

    pool = greendefer.GreenPool(10)
    call = greendefer.green_deferred(pool=pool)(lambda result=None: result)
"""


@pytest.fixture(params=["native", "poll", "select", "asyncio"])
def run_main(request: pytest.FixtureRequest, run_program: Any) -> Any:

    def run(source: str) -> Any:
        return run_program(PRELUDE.format(kind=request.param), source)

    return run


def test_results_take_no_turns(run_program: Any) -> None:
    run_program(
        PRELUDE.format(kind="native"),
        """
        async def main():
            await call()
            turns = reactor.cooperative_wait.turns
            for _ in range(1000):
                await call()
            assert reactor.cooperative_wait.turns - turns < 500  # one in each SLICE

        go(main)
        """,
    )


def test_what_a_callback_asks_of_the_reactor_happens(run_main: Any) -> None:
    """Each is asked where a result was just delivered, and nothing else would wake the reactor."""
    run_main(
        """
        async def main():
            await call()
            happened = Deferred()
            reactor.callLater(0, happened.callback, None)
            await happened

            await call()
            happened = Deferred()
            reactor.callFromThread(happened.callback, None)
            await happened

            await call()
            never = reactor.callLater(3600, lambda: None)
            happened = Deferred()
            sooner = reactor.callLater(1800, happened.callback, None)
            await call()
            sooner.reset(0)
            await happened
            never.cancel()

            await call()
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            class Reader:
                def fileno(self):
                    return ours.fileno()
                def logPrefix(self):
                    return "reader"
                def connectionLost(self, reason):
                    pass
                def doRead(self):
                    happened.callback(ours.recv(10))
            happened = Deferred()
            reactor.addReader(reader := Reader())
            theirs.send(b"x")
            assert await happened == b"x"
            reactor.removeReader(reader)

            await call()

        go(main)
        """
    )


def test_one_that_calls_all_the_time_starves_no_timer(run_main: Any) -> None:
    run_main(
        """
        async def main():
            timer = deferLater(reactor, 0.01)
            while not timer.called:
                await call()

        go(main)
        """
    )


def test_a_callback_that_waits_loses_nothing(run_main: Any) -> None:
    """It should not; and while it does, results have to wait, and nobody else."""
    run_main(
        """
        async def main():
            await call()
            order = []
            call("later").addCallback(order.append)
            other = gevent.spawn(gevent.sleep, 0.01)
            other.join()  # in the reactor's greenlet
            order.append("waited")
            await call()
            assert order == ["waited", "later"], order

        go(main)
        """
    )


@pytest.mark.parametrize("run_main", ["native", "poll", "select"], indirect=True)  # asyncio refuses
def test_a_callback_that_runs_the_reactor(run_main: Any) -> None:
    """Twisted's own tests do so: iterate() in a callback. What was asked for in between counts."""
    run_main(
        """
        async def main():
            await call()
            happened = Deferred()
            reactor.callLater(0.01, happened.callback, None)
            results = []
            call(1).addCallback(results.append)
            while not results:
                reactor.iterate(0.001)
            await happened

        go(main)
        """
    )


def test_results_that_come_while_the_reactor_takes_a_turn(run_main: Any) -> None:
    """The order is kept, whichever way each one goes."""
    run_main(
        """
        async def main():
            thread = greendefer.NativeThreadPool(1)
            order, all_of_them = [], []
            for n in range(200):
                d = (thread.submit if n % 10 == 3 else call)(*((int, n) if n % 10 == 3 else (n,)))
                all_of_them.append(d.addCallback(order.append))
                if n % 3 == 0:
                    await deferLater(reactor, 0)
                if n % 5 == 0:
                    await d
            await gatherResults(all_of_them)
            assert sorted(order) == list(range(200)), order
            in_greenlets = [n for n in order if n % 10 != 3]
            assert in_greenlets == sorted(in_greenlets)

        go(main)
        """
    )


@pytest.mark.parametrize("asks", ["pass", "reactor.callLater(0, lambda: None)"])
def test_a_callback_that_waits_leaves_the_hub_asleep(run_main: Any, asks: str) -> None:
    """Also when there is something to read, which only the reactor will, and when it has asked
    the reactor for a turn before."""
    run_main(
        """
        from twisted.internet import protocol
        from twisted.internet.endpoints import TCP4ServerEndpoint

        async def main():
            class Reads(protocol.Protocol):
                def dataReceived(self, data):
                    got.callback(data)
            got = Deferred()
            server = protocol.Factory.forProtocol(Reads)
            endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
            port = await endpoint.listen(server)
            address = ("127.0.0.1", port.getHost().port)
            client = await greendefer.defer_to_greenlet(gevent.socket.create_connection, address)
            await deferLater(reactor, 0.01)
            await call()
            ASKS
            client.send(b"x")
            rounds = []
            counter = gevent.get_hub().loop.check(ref=False)
            counter.start(lambda: rounds.append(None))
            gevent.sleep(0.1)  # in the reactor's greenlet
            counter.stop()
            counter.close()
            assert len(rounds) < 50, len(rounds)
            assert await got == b"x"
            client.close()
            await port.stopListening()

        go(main)
        """.replace("ASKS", asks)
    )
