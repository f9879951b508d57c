"""Connections that have something to write: tried first, and waited for only if they must be.

Stock Twisted asks the poller whether a connection can be written to, is told that it can, writes,
and asks no more: two system calls for each write, and one turn of the reactor. But nearly always
it can: only what is left over is for the poller.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from twisted.internet.tcp import Connection
from twisted.python import log

from .dispatch import call_in, contexts_here

if TYPE_CHECKING:
    from twisted.internet.base import ReactorBase

    class _Base(ReactorBase):  # as IReactorFDSet and PosixReactorBase have it
        _disconnectSelectable: Any

        def addWriter(self, writer: Any) -> None: ...
        def removeWriter(self, writer: Any) -> None: ...
        def getWriters(self) -> list[Any]: ...
        def removeAll(self) -> list[Any]: ...
else:
    _Base = object


class WritesFirst(_Base):
    """A mixin of reactors with an ``addWriter()``."""

    def __init__(self, *args: Any) -> None:
        # Those to be written to in this turn: False for one that was tried, and has some left.
        self._eager: dict[Any, bool] = {}
        self._patient: set[Any] = set()
        super().__init__(*args)

    def _write_soon(self) -> None:
        """Have :meth:`_write_eagerly` called in the reactor's greenlet, before it waits again. It
        is asked for each write: what there was to write may be gone by then (``removeWriter()``),
        and nobody called."""
        raise NotImplementedError

    def _write_eagerly(self) -> None:
        contexts, log_context = contexts_here()
        eager = self._eager
        for writer in list(eager):
            if writer in eager:  # still
                call_in(contexts, log_context, writer, self._write, writer)

    def _write(self, writer: Any) -> None:
        eager = self._eager
        eager[writer] = False
        why = None
        try:
            why = writer.doWrite()
        except BaseException:
            log.err()
            why = sys.exc_info()[1]
        if why:
            self._disconnectSelectable(writer, why, False)
        elif eager.get(writer) is False:
            del eager[writer]
            self._patient.add(writer)
            super().addWriter(writer)

    def addWriter(self, writer: Any) -> None:
        # A socket whose connect() is under way becomes writable when it is connected, and must be
        # waited for; of what else there is (pipes, other people's descriptors), nobody knows
        # whether its doWrite() may be called just so.
        if isinstance(writer, Connection) and writer.connected and writer not in self._patient:
            self._eager[writer] = True
            self._write_soon()
        else:
            super().addWriter(writer)

    def removeWriter(self, writer: Any) -> None:
        if self._eager.pop(writer, None) is None:
            self._patient.discard(writer)
            super().removeWriter(writer)

    def getWriters(self) -> list[Any]:
        return [*super().getWriters(), *self._eager]

    def removeAll(self) -> list[Any]:
        eager = list(self._eager)
        self._eager.clear()
        self._patient.clear()
        others = super().removeAll()
        return others + [writer for writer in eager if writer not in others]
