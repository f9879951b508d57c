"""Twisted's own select reactor, waiting in gevent's hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from twisted.internet import selectreactor
from twisted.internet.main import installReactor

from .._patched import original
from .each import WatchesEach
from .installed import refuse_if_installed
from .wait import READ, WRITE

if selectreactor._select is not selectreactor.win32select:
    # It asks with a timeout of 0, after the wait: gevent's own select would only be slower.
    selectreactor._select = original("select", "select")

if TYPE_CHECKING:
    from twisted.internet.posixbase import PosixReactorBase

    class SelectReactor(PosixReactorBase):  # whose second base depends on the platform
        _reads: set[Any]
        _writes: set[Any]
else:
    SelectReactor = selectreactor.SelectReactor


class GreenSelectReactor(WatchesEach, SelectReactor):
    """select(2) has no descriptor of its own: the hub watches each one."""

    def _descriptors(self) -> Iterator[tuple[int, int]]:
        selectable: Any
        for selectable in self._reads:
            yield selectable.fileno(), READ
        for selectable in self._writes:
            yield selectable.fileno(), WRITE


Reactor = GreenSelectReactor


def install() -> None:
    """Install it, as each of Twisted's reactor modules has it."""
    refuse_if_installed()
    installReactor(GreenSelectReactor())
