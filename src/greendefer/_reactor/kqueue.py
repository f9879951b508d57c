"""Twisted's own kqueue reactor, waiting in gevent's hub.

It waits as the epoll one does. It has not been run yet: no machine with kqueue was there to test
on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.main import installReactor

from .green import GreenReactor
from .installed import refuse_if_installed
from .stock import stock_module

if TYPE_CHECKING:
    from twisted.internet.kqreactor import KQueueReactor
else:
    KQueueReactor = stock_module("twisted.internet.kqreactor", "kqueue", "kevent").KQueueReactor


class GreenKQueueReactor(GreenReactor, KQueueReactor):
    """macOS and the BSDs: one descriptor stands for all, since a kqueue can itself be polled."""

    def __init__(self) -> None:
        super().__init__()
        self.cooperative_wait.watch(self._kq.fileno())

    _kq: Any
    _impl: Any
    _updateRegistration: Any

    def forked(self) -> None:
        # "The queue is not inherited by a child created with fork(2)" (kqueue(2)).
        self._kq = self._impl.kqueue()
        for fd in self._reads:
            self._updateRegistration(fd, self._impl.KQ_FILTER_READ, self._impl.KQ_EV_ADD)
        for fd in self._writes:
            self._updateRegistration(fd, self._impl.KQ_FILTER_WRITE, self._impl.KQ_EV_ADD)
        self.cooperative_wait.watch(self._kq.fileno())
        super().forked()

    # twistd calls these around its forks; stock, they close the queue and make another.

    def beforeDaemonize(self) -> None:
        pass

    def afterDaemonize(self) -> None:
        pass


Reactor = GreenKQueueReactor


def install() -> None:
    """Install it, as each of Twisted's reactor modules has it."""
    refuse_if_installed()
    installReactor(GreenKQueueReactor())
