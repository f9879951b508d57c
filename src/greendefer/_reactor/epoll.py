"""Twisted's own epoll reactor, waiting in gevent's hub."""

from __future__ import annotations

from select import EPOLLIN, EPOLLOUT
from typing import TYPE_CHECKING, Any

from twisted.internet.main import installReactor

from .._patched import original
from .dispatch import call_in, contexts_here
from .green import GreenReactor
from .installed import refuse_if_installed
from .stock import stock_module

if TYPE_CHECKING:
    from twisted.internet.epollreactor import EPollReactor
else:
    EPollReactor = stock_module("twisted.internet.epollreactor", "epoll").EPollReactor

epoll: Any = original("select", "epoll")


class GreenEPollReactor(GreenReactor, EPollReactor):
    """Linux: one descriptor stands for all, since an epoll can itself be polled."""

    def __init__(self) -> None:
        super().__init__()
        self.cooperative_wait.watch(self._poller.fileno())

    _poller: Any

    def _poll_by_itself(self, delay: float | None) -> bool:
        patience = self.cooperative_wait.patience(delay)
        return patience > 0 and self._poll(patience)

    def _poll(self, delay: float) -> bool:
        # As EPollReactor.doPoll(), with less around each event.
        ready = self._poller.poll(delay, len(self._selectables))
        if not ready:
            return False
        contexts, log_context = contexts_here()
        selectables = self._selectables
        for fd, event in ready:
            selectable = selectables.get(fd)
            if selectable is not None:  # it may have been closed by the one before
                call_in(
                    contexts, log_context, selectable, self._doReadOrWrite, selectable, fd, event
                )
        return True

    _doReadOrWrite: Any
    _selectables: dict[int, Any]

    def forked(self) -> None:
        self._poller.close()
        self._poller = poller = epoll(1024)
        for fd in self._selectables:
            events = EPOLLIN * (fd in self._reads) | EPOLLOUT * (fd in self._writes)
            poller.register(fd, events)
        self.cooperative_wait.watch(self._poller.fileno())
        super().forked()


Reactor = GreenEPollReactor


def install() -> None:
    """Install it, as each of Twisted's reactor modules has it."""
    refuse_if_installed()
    installReactor(GreenEPollReactor())
