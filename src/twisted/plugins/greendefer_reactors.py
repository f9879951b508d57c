"""``--reactor=gevent`` and ``--reactor=gevent-asyncio`` for trial, twist and twistd."""

from twisted.application.reactors import Reactor

gevent = Reactor(
    "gevent", "greendefer.geventreactor", "The native reactor, waiting in gevent's hub"
)
gevent_asyncio = Reactor(
    "gevent-asyncio",
    "greendefer.geventasyncioreactor",
    "Twisted, asyncio and gevent on one thread",
)
