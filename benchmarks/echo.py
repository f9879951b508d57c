"""TCP echo: round trips of 64 bytes over 1, 50 and 500 connections, one always on its way on each.

Once with the clients on the same reactor, which then is all that is measured; and once with the
server alone on it, and the clients in another process: a plain loop over one epoll.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from time import perf_counter
from typing import Any

from harness import Bench, Round, Side, middle, run

MESSAGE = b"x" * 64

PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def stay_on(which: int) -> None:
    """Server and clients have a processor each, where there are two and the system lets one choose:
    with one message on its way both sleep and wake up all the time, and it mattered most where."""
    if PROCESSORS:
        os.sched_setaffinity(0, {PROCESSORS[which]})


def server(connections: int, trips: int) -> Any:
    """An echo server; a round is so many round trips over all connections together."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.protocol import Factory, ProcessProtocol, Protocol

    class Echo(Protocol):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data)

    class Control(Protocol):
        """The clients' own connection: they are told how many round trips to make, and say how
        many seconds those took."""

        def connectionMade(self) -> None:
            self.said = b""
            connected.callback(self)

        def dataReceived(self, data: bytes) -> None:
            self.said += data
            if self.said.endswith(b"\n"):
                said, self.said = self.said, b""
                self.answer.callback(float(said))

        def ask(self) -> Deferred[float]:
            self.answer: Deferred[float] = Deferred()
            self.transport.write(b"%d\n" % trips)
            return self.answer

    connected: Deferred[Control] = Deferred()
    listen = reactor.listenTCP
    host = "127.0.0.1"
    ports = [
        listen(0, Factory.forProtocol(each), backlog=1000, interface=host).getHost().port
        for each in (Echo, Control)
    ]
    # Not by the subprocess module: patched, it would leave a watcher in the hub, which then has
    # something to wait for besides the reactor. They end with this process.
    command = [sys.executable, __file__, "clients", *map(str, ports), str(connections)]
    reactor.spawnProcess(ProcessProtocol(), command[0], command, env=None, childFDs={1: 1, 2: 2})
    stay_on(0)
    control: list[Control] = []

    async def round() -> Round:
        if not control:
            control.append(await connected)
        return {"us": await control[0].ask() / trips * 1e6}

    return round


def clients(port: int, control_port: int, connections: int) -> None:
    """The clients' process: a round is over when so many answers have come, and all are in."""
    stay_on(-1)
    host = "127.0.0.1"
    epoll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    for _ in range(connections):
        s = socket.create_connection((host, port))
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        epoll.register(s.fileno(), select.EPOLLIN)
        sockets[s.fileno()] = s
    control = socket.create_connection((host, control_port))
    asked = control.makefile("rw")
    for line in asked:
        trips = int(line)
        began = perf_counter()
        started = done = 0
        for s in list(sockets.values())[:trips]:
            s.send(MESSAGE)
            started += 1
        while done < trips:
            for fd, _ in epoll.poll():
                s = sockets[fd]
                s.recv(256)
                done += 1
                if started < trips:
                    s.send(MESSAGE)
                    started += 1
        asked.write(f"{perf_counter() - began}\n")
        asked.flush()


def server_beside_greenlets(connections: int, trips: int) -> Any:
    """The same, while greenlets wait, too: the hub has to be asked each time."""
    import gevent

    for _ in range(10):
        gevent.spawn(gevent.sleep, 3600)
    return server(connections, trips)


def both_ends(connections: int, trips: int) -> Any:
    """Clients and server on the same reactor."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred, gatherResults
    from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
    from twisted.internet.protocol import Factory, Protocol

    class Echo(Protocol):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data)

    class Client(Protocol):
        def dataReceived(self, data: bytes) -> None:
            left[0] -= 1
            if left[0] >= connections:
                self.transport.write(data)
            elif left[0] == 0:
                done[0].callback(None)

    port = reactor.listenTCP(0, Factory.forProtocol(Echo), backlog=1000, interface="127.0.0.1")
    left = [0]
    done: list[Deferred[None]] = []
    all_clients: list[Client] = []

    async def round() -> Round:
        if not all_clients:
            endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
            connecting = [connectProtocol(endpoint, Client()) for _ in range(connections)]
            all_clients.extend(await gatherResults(connecting))
        left[0] = trips
        done[:] = [Deferred()]
        began = perf_counter()
        for client in all_clients:
            client.transport.write(MESSAGE)
        await done[0]
        return {"us": (perf_counter() - began) / trips * 1e6}

    return round


def main(bench: Bench) -> None:
    bench.series["echo"] = {}
    for connections, native in ((1, 1.0), (50, 1.25), (500, 1.25)):
        for function, where in (("both_ends", ""), ("server", ", the server alone")):
            options = {
                "connections": connections,
                "trips": bench.size(1500 if connections == 1 else 3000, connections),
            }
            beside = []
            if function == "server":
                busy = f"{function}_beside_greenlets"
                beside = [Side("native, beside greenlets", busy, "green", options=options)]
            samples = bench.measure(
                [
                    *beside,
                    Side("epoll", function, "epoll", options=options),
                    Side("native", function, "green", options=options),
                    Side("native, patched", function, "green", True, options),
                    Side("poll, patched", function, "poll", True, options),
                    Side("stock asyncio", function, "stock-asyncio", options=options),
                    Side("asyncio", function, "green-asyncio", options=options),
                    Side("asyncio, patched", function, "green-asyncio", True, options),
                ],
                rounds=61 if connections == 1 else 21,
            )
            what = f"echo, {connections} connection{'s' * (connections > 1)}{where}"
            for ours, theirs, at_least in (
                ("native", "epoll", native),
                ("native, patched", "epoll", native),
                ("native, patched", "poll, patched", None),
                *((side.name, "epoll", None) for side in beside),
                ("asyncio", "stock asyncio", 1.0),
                ("asyncio, patched", "stock asyncio", 1.0),
            ):
                bench.row(
                    *(f"{what}: {ours}", samples, ours, theirs, "us", "us"), at_least=at_least
                )
            bench.series["echo"][f"{connections}{where}"] = {
                side: middle(samples, side, "us") for side in samples
            }


if __name__ == "__main__":
    if sys.argv[1:2] == ["clients"]:
        clients(*map(int, sys.argv[2:]))
    else:
        run(__file__, main)
