"""A service that finishes what it has begun when it is told to end, as under Kubernetes.

pip install greendefer
python examples/graceful.py [PORT]
kill -TERM ...              (in another terminal)
"""

from gevent import monkey

monkey.patch_all()  # first of all

import greendefer

greendefer.install()  # before anything imports twisted.internet.reactor

import sys
import time

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.protocols.policies import WrappingFactory
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

GRACE = 20.0  # less than terminationGracePeriodSeconds

pool = greendefer.GreenPool(50, name="work")


@greendefer.green_deferred(pool=pool)
def work(seconds):
    time.sleep(seconds)
    return b"done\n"


class Work(Resource):
    """GET /work?2 takes two seconds."""

    isLeaf = True

    def render_GET(self, request):
        d = work(float(request.uri.partition(b"?")[2] or 1))
        d.addCallback(request.write)
        d.addErrback(lambda failure: request.setResponseCode(503))
        d.addCallback(lambda _: request.finish())
        return NOT_DONE_YET


class Stats(Resource):
    """How the pool stands."""

    isLeaf = True

    def render_GET(self, request):
        return f"{pool.stats()}\n".encode()


class Ready(Resource):
    """What the readiness probe asks."""

    isLeaf = True
    ends = False

    def render_GET(self, request):
        request.setResponseCode(503 if self.ends else 200)
        return b""


class Connections(WrappingFactory):
    """Knows which connections are open, and closes them when what was written has been sent."""

    closed = None

    def close(self):
        self.closed = Deferred()
        for connection in list(self.protocols):
            connection.loseConnection()
        self.tell_if_closed()
        return self.closed

    def unregisterProtocol(self, connection):
        super().unregisterProtocol(connection)
        self.tell_if_closed()

    def tell_if_closed(self):
        if self.closed and not self.closed.called and not self.protocols:
            self.closed.callback(None)


def main():
    root = Resource()
    root.putChild(b"work", Work())
    root.putChild(b"stats", Stats())
    ready = Ready()
    root.putChild(b"ready", ready)
    connections = Connections(Site(root))
    port = reactor.listenTCP(int((sys.argv[1:] or ["8000"])[0]), connections, interface="127.0.0.1")

    async def end():
        print(f"ending; {pool.stats().running} at work", flush=True)
        ready.ends = True
        await port.stopListening()
        await pool.close(grace=GRACE)
        await connections.close()  # or the last answers are written, and never sent
        print("all done", flush=True)

    reactor.addSystemEventTrigger("before", "shutdown", lambda: ensureDeferred(end()))
    url = f"http://127.0.0.1:{port.getHost().port}/work"
    reactor.callWhenRunning(print, url, flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
