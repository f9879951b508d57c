"""gevent's own WSGI server, whose requests use Twisted's HTTP client.

    pip install greendefer treq
    python examples/gevent_first.py

It makes 100 requests of itself, and ends.
"""

from gevent import monkey

monkey.patch_all()  # first of all

import urllib.request

from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

import greendefer

reactor = greendefer.start_reactor()  # in a greenlet beside the others; installs it if need be

import treq
from twisted.web.server import Site
from twisted.web.static import Data


@greendefer.blocking_from_greenlet(timeout=10)
async def fetch(url):
    response = await treq.get(url)
    return await response.content()


def app(environ, start_response):
    """A blocking WSGI application, each request of which has a greenlet."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [fetch(upstream)]


def get(_):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return direct.open(f"http://127.0.0.1:{server.server_port}/").read().decode()


if __name__ == "__main__":
    root = Data(b"", "text/plain")
    root.putChild(b"", Data(b"hello from upstream", "text/plain"))
    site = Site(root)
    port = reactor.listenTCP(0, site, interface="127.0.0.1")
    upstream = f"http://127.0.0.1:{port.getHost().port}/"
    server = WSGIServer(("127.0.0.1", 0), app, log=None)
    server.start()
    (answer,) = set(Pool(100).map(get, range(100)))
    print("100 requests, each of which asked Twisted's client:", answer)
    server.stop()
