"""Twisted's own epoll reactor, waiting in gevent's hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.main import installReactor

from ._stock import stock_module
from .green import GreenReactor

if TYPE_CHECKING:
    from twisted.internet.epollreactor import EPollReactor
else:
    EPollReactor = stock_module("twisted.internet.epollreactor", "epoll").EPollReactor


class GreenEPollReactor(GreenReactor, EPollReactor):
    """Linux: one descriptor stands for all, since an epoll can itself be polled."""

    def __init__(self) -> None:
        super().__init__()
        self.cooperative_wait.watch(self._poller.fileno())


Reactor = GreenEPollReactor


def install() -> None:
    """Install it, as each of Twisted's reactor modules has it."""
    installReactor(GreenEPollReactor())
