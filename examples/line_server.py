"""The server of the historical geventreactor's README, for Python 3: lines, greenlets, and waiting.

    pip install greendefer
    python examples/line_server.py [--demo]
    nc localhost 8007          (in another terminal)

``--demo`` takes any free port, plays three clients at once, and ends by itself.

There, each connection had a greenlet of its own, and lineReceived() could simply block. Here the
reactor is Twisted's, and a method that blocks would stop all connections; @in_order hands it to
greenlets, in order, connection by connection.
"""

import sys

import gevent

from greendefer import geventreactor, in_order

geventreactor.install()  # before anything imports twisted.internet.reactor

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver

SECOND = 0.05 if "--demo" in sys.argv else 1.0
QUOTE = b"""Welcome to the geventreactor demo!
count:\tstart a counter
delay:\tblock your session for 10 seconds
quit:\tterminate your session after 2 seconds
die:\tstop the reactor
otherwise, simply echo"""


class Lines(LineReceiver):
    delimiter = b"\n"
    counter = None

    def connectionMade(self):
        print("+connection:", id(self))
        self.transport.write(QUOTE + b"\r\n")
        gevent.spawn(self.ninja)  # greenlets may write to the transport
        reactor.callLater(2 * SECOND, self.later, 1)

    def ninja(self):
        gevent.sleep(1 * SECOND)
        self.transport.write(b"0 from ninja()\r\n")
        gevent.sleep(2 * SECOND)
        self.transport.write(b"2 from ninja()\r\n")
        reactor.callLater(1 * SECOND, self.later, 3)

    def later(self, i):
        self.transport.write(b"%d from later()\r\n" % i)

    @in_order
    def connectionLost(self, reason):  # after the last line
        self.stop_counter()
        print("-connection:", id(self), reason.getErrorMessage())

    @in_order
    def lineReceived(self, line):
        self.stop_counter()
        line = line.strip()
        command = line.lower()
        if command == b"die":
            self.sendLine(b"stopping reactor")
            reactor.stop()
        elif command == b"quit":
            self.sendLine(b"quitting in 2 seconds")
            gevent.sleep(2 * SECOND)
            self.transport.loseConnection()
        elif command == b"delay":
            self.sendLine(b"waiting 10 seconds")
            gevent.sleep(10 * SECOND)
            self.sendLine(b"hi again")
        elif command == b"count":
            self.counter = gevent.spawn(self.count)
        else:
            self.sendLine(line)

    def count(self):
        i = 0
        while True:
            gevent.sleep(1 * SECOND)
            self.sendLine(b"%d from count()" % i)
            i += 1

    def stop_counter(self):
        if self.counter is not None:
            self.counter.kill(block=False)
            self.counter = None


def demo(port):
    """Three clients in greenlets: one that echoes, one that waits, one that counts."""
    from gevent import socket

    def client(*lines, until):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(b"".join(line + b"\n" for line in lines))
        received = b""
        while until not in received:
            received += connection.recv(1000)
        connection.close()
        return received.split(QUOTE)[1].decode().split()

    clients = [
        gevent.spawn(client, b"delay", b"after the delay", until=b"after the delay\n"),
        gevent.spawn(client, b"one", b"two", b"count", until=b"1 from count()"),
        gevent.spawn(client, b"x", b"quit", until=b"quitting in 2 seconds\n"),
    ]
    for each in clients:
        print(each.get())
    client(b"die", until=b"stopping reactor\n")


def run():
    factory = Factory.forProtocol(Lines)
    if "--demo" not in sys.argv:
        reactor.listenTCP(8007, factory)
        reactor.run()
        return
    port = reactor.listenTCP(0, factory, interface="127.0.0.1").getHost().port
    playing = gevent.spawn(demo, port)
    reactor.run()
    playing.get()


if __name__ == "__main__":
    run()
