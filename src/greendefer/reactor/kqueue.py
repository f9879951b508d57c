"""Twisted's own kqueue reactor, waiting in gevent's hub.

The same code path as epoll. It has not been run yet: no machine with kqueue was there to test on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.main import installReactor

from ._installed import refuse_if_installed
from ._stock import stock_module
from .green import GreenReactor

if TYPE_CHECKING:
    from twisted.internet.kqreactor import KQueueReactor
else:
    KQueueReactor = stock_module("twisted.internet.kqreactor", "kqueue", "kevent").KQueueReactor


class GreenKQueueReactor(GreenReactor, KQueueReactor):
    """macOS and the BSDs: one descriptor stands for all, since a kqueue can itself be polled."""

    def __init__(self) -> None:
        super().__init__()
        self.cooperative_wait.watch(self._kq.fileno())


Reactor = GreenKQueueReactor


def install() -> None:
    """Install it, as each of Twisted's reactor modules has it."""
    refuse_if_installed()
    installReactor(GreenKQueueReactor())
