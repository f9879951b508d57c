"""500 blocking HTTP requests on one thread, while Twisted's reactor keeps ticking.

    pip install 'greendefer[quickstart]'
    python examples/quickstart.py

It starts its own slow HTTP server in a child process: each answer takes 200 ms.
"""

from gevent import monkey

monkey.patch_all()  # first of all: it makes requests, and what that uses, cooperative

import gevent

gevent.config.resolver = ["ares", "thread"]  # look names up without threads, where that is built

import greendefer

greendefer.install()  # before anything imports twisted.internet.reactor

import gc
import subprocess
import sys
import time

import requests
from tqdm import tqdm
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import LoopingCall

CALLS = 500
AT_ONCE = 250
SECONDS_EACH = 0.2
TICK = 0.01
DIRECT = {"no_proxy": "127.0.0.1"}  # whatever proxy the environment names

http = greendefer.GreenPool(AT_ONCE, name="http")


@greendefer.green_deferred(pool=http, timeout=30)
def fetch(url):
    """A blocking function like any other. Decorated, it returns a Deferred."""
    response = requests.get(url, proxies=DIRECT)
    response.raise_for_status()
    return response.text


async def main(url):
    lateness = []
    due = time.monotonic()

    def tick():
        nonlocal due
        now = time.monotonic()
        lateness.append(max(0.0, now - due))
        due = now + TICK

    ticker = LoopingCall(tick)
    ticker.start(TICK, now=False)
    due = time.monotonic() + TICK

    started = time.monotonic()
    with tqdm(total=CALLS, unit=" pages", disable=None) as progress:

        def show(page):
            progress.update()
            return page

        pages = await gatherResults([fetch(url).addCallback(show) for _ in range(CALLS)])
    took = time.monotonic() - started
    ticker.stop()

    assert pages == ["slow, but worth it\n"] * CALLS
    print(f"{CALLS} calls of {SECONDS_EACH * 1000:.0f} ms each, {AT_ONCE} at once, on one thread")
    print(f"  wall time                    {took:6.2f} s")
    print(f"  one after the other          {CALLS * SECONDS_EACH:6.2f} s")
    print(f"  the reactor's {TICK * 1000:.0f} ms ticker    {len(lateness):6d} ticks")
    print(f"  ... was never later than     {max(lateness) * 1000:6.1f} ms")
    print(f"  {http.stats()}")


SERVER = f"""
import asyncio

HEADERS = b"HTTP/1.1 200 OK\\r\\nContent-Length: 19\\r\\nConnection: close\\r\\n\\r\\n"

async def handle(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    await asyncio.sleep({SECONDS_EACH})
    writer.write(HEADERS + b"slow, but worth it\\n")
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog={CALLS})
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def run():
    gc.freeze()  # what was imported stays: the collector need not stop everybody to look at it
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    failed = []
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/"
        d = ensureDeferred(main(url))
        d.addErrback(lambda failure: failed.append(failure))
        d.addBoth(lambda _: reactor.callWhenRunning(reactor.stop))
        reactor.run()
    finally:
        server.kill()
        server.wait()
    if failed:
        failed[0].raiseException()


if __name__ == "__main__":
    run()
