"""A blocking Flask application under twisted.web: 300 slow requests at once, on one thread.

    pip install greendefer flask requests
    python examples/flask_wsgi.py

Its requests come from the same program, and end it.
"""

from gevent import monkey

monkey.patch_all()  # first of all

import greendefer

greendefer.install(threads="green")  # the reactor's thread pool is made of greenlets

import time

import flask
import requests
from twisted.internet.defer import gatherResults
from twisted.internet.task import LoopingCall, react
from twisted.web.server import Site
from twisted.web.wsgi import WSGIResource

AT_ONCE = 300

app = flask.Flask(__name__)
now = {"running": 0, "most": 0}


@app.get("/<int:n>")
def slow(n):
    now["running"] += 1
    now["most"] = max(now["most"], now["running"])
    time.sleep(0.5)  # a database, say
    now["running"] -= 1
    return f"answer {n}"


@greendefer.green_deferred(pool=greendefer.GreenPool(AT_ONCE), timeout=60)
def get(url):
    return requests.get(url, proxies={"no_proxy": "127.0.0.1"}).text


async def main(reactor):
    reactor.suggestThreadPoolSize(AT_ONCE)
    site = Site(WSGIResource(reactor, reactor.getThreadPool(), app))
    port = reactor.listenTCP(0, site, backlog=AT_ONCE, interface="127.0.0.1")
    url = f"http://127.0.0.1:{port.getHost().port}"
    ticks = []
    ticker = LoopingCall(lambda: ticks.append(1))
    ticker.start(0.01)

    answers = await gatherResults([get(f"{url}/{n}") for n in range(AT_ONCE)])

    ticker.stop()
    await port.stopListening()
    assert answers == [f"answer {n}" for n in range(AT_ONCE)]
    print(f"{AT_ONCE} requests of 0.5 s each, {now['most']} of them at once, on one thread")
    print(f"the reactor's 10 ms ticker ticked {len(ticks)} times meanwhile")


if __name__ == "__main__":
    react(main)
