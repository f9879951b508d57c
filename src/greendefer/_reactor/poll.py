"""Twisted's own poll reactor, waiting in gevent's hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from twisted.internet.main import installReactor

from .each import WatchesEach
from .installed import refuse_if_installed
from .stock import stock_module
from .wait import READ, WRITE

if TYPE_CHECKING:
    from twisted.internet.pollreactor import PollReactor
else:
    PollReactor = stock_module("twisted.internet.pollreactor", "poll").PollReactor


class GreenPollReactor(WatchesEach, PollReactor):
    """poll(2) has no descriptor of its own: the hub watches each one."""

    def _descriptors(self) -> Iterator[tuple[int, int]]:
        for fd in self._selectables:
            yield fd, READ * (fd in self._reads) | WRITE * (fd in self._writes)


Reactor = GreenPollReactor


def install() -> None:
    """Install it, as each of Twisted's reactor modules has it."""
    refuse_if_installed()
    installReactor(GreenPollReactor())
