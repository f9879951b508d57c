"""The reactor over the platform's own poller: epoll on Linux."""

from __future__ import annotations

import select
from typing import Any

from gevent import monkey

from .green import GreenReactor
from .wait import GreenPoller

if not hasattr(select, "epoll"):
    # gevent.monkey.patch_select() takes it away, because code that polls by itself would block.
    # This code does not, and Twisted's module can't be imported without it.
    vars(select)["epoll"] = monkey.get_original("select", "epoll")
    try:
        from twisted.internet.epollreactor import EPollReactor
    finally:
        del vars(select)["epoll"]
else:
    from twisted.internet.epollreactor import EPollReactor


class GreenEPollReactor(GreenReactor, EPollReactor):
    """Twisted's own epoll reactor, waiting in gevent's hub."""

    _poller: Any

    def __init__(self) -> None:
        super().__init__()
        self._poller = GreenPoller(self._poller, self.cooperative_wait)


def install() -> None:
    """Install it. Each of Twisted's reactor modules has this function, and its own tests call it
    in child processes."""
    from twisted.internet.main import installReactor

    installReactor(GreenEPollReactor())
