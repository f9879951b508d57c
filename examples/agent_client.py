"""The client of the historical geventreactor's README: Twisted's Agent, on the green reactor.

    pip install greendefer
    python examples/agent_client.py [URL]

Without a URL it asks a small server that it starts itself. What it adds to the original is the
last part: the same request from blocking code, in a greenlet.
"""

import sys

from greendefer import geventreactor

geventreactor.install()  # before anything imports twisted.internet.reactor

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.web.client import Agent
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import Site

agent = Agent(reactor)


def request(url):
    return agent.request(b"GET", url, Headers({b"User-Agent": [b"Twisted Web Client Example"]}))


class Hello(Resource):
    isLeaf = True

    def render_GET(self, request):
        return b"hello\n"


def start_server():
    port = reactor.listenTCP(0, Site(Hello()), interface="127.0.0.1")
    return b"http://127.0.0.1:%d/" % port.getHost().port


async def main(url):
    response = await request(url)
    print("Response received:", response.code)
    print("The same in a greenlet:", await geventreactor.deferToGreenlet(blocking, url))


def blocking(url):
    """An ordinary function, as far as its greenlet can tell."""
    return geventreactor.waitForDeferred(request(url)).code


def run(url):
    failed = []
    d = ensureDeferred(main(url))
    d.addErrback(failed.append)
    d.addBoth(lambda _: reactor.callWhenRunning(reactor.stop))
    reactor.run()
    if failed:
        sys.exit(failed[0].getTraceback())


if __name__ == "__main__":
    run(sys.argv[1].encode() if len(sys.argv) > 1 else start_server())
