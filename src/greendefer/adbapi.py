"""``twisted.enterprise.adbapi`` on greenlets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred, succeed

from ._errors import shown
from ._policy import check_count
from .threadpool import GreenThreadPool


class GreenConnectionPool(adbapi.ConnectionPool):
    """A drop-in for ``adbapi.ConnectionPool`` whose queries wait in greenlets of the reactor's
    thread, for drivers that gevent makes cooperative.

    ``cp_max`` is both how many interactions run at once and how many connections there are. An
    interaction has one connection for itself; the next one takes it over.

    :raises TypeError: `dbapiName` is not a string, or `cp_min` or `cp_max` is not a whole number.
    :raises ValueError: `cp_min` is below 0, or `cp_max` is below 1.
    :raises Exception: whatever importing the driver raises.
    """

    threadpool: GreenThreadPool

    def __init__(self, dbapiName: str, *connargs: Any, **connkw: Any) -> None:
        # Before anything is made: what Twisted's own leaves behind would be told of the shutdown.
        if not isinstance(dbapiName, str):
            raise TypeError(
                "GreenConnectionPool(dbapiName) must be a string, the name of the driver's module, "
                f"not {shown(dbapiName)}"
            )
        least, most = connkw.get("cp_min", self.min), connkw.get("cp_max", self.max)
        check_count("GreenConnectionPool(cp_min=...)", least, 0)
        check_count("GreenConnectionPool(cp_max=...)", most, 1)
        self._green = GreenThreadPool(min(least, most), most, f"adbapi {dbapiName}")
        super().__init__(dbapiName, *connargs, **connkw)  # type: ignore[no-untyped-call]
        self._use_greenlets()

    def _use_greenlets(self) -> None:
        self.threadpool = self._green
        # Where a connection is looked for; threads have their own number.
        self.threadID: Callable[[], int | None] = self._green.slot

    def start(self) -> None:
        """Nobody needs to call it: the reactor does, when it runs."""
        self._use_greenlets()  # of the threads that Twisted has in mind none is started
        super().start()  # type: ignore[no-untyped-call]

    def finalClose(self) -> Deferred[None]:
        """Close all connections, once the interactions that run have ended.

        :returns: a Deferred that fires with ``None`` then, in the reactor's greenlet.
        """
        self.shutdownID = None
        self.running = False
        ended = self.threadpool.stopped() if self.threadpool.workers else succeed(None)
        return ended.addCallback(self._close_connections)

    def _close_connections(self, _: object) -> None:
        super().finalClose()  # type: ignore[no-untyped-call]

    def close(self) -> Deferred[None]:
        """Take no more queries, and close all connections.

        :returns: a Deferred that fires with ``None`` when that is done, in the reactor's greenlet.
        """
        for trigger in self.shutdownID, self.startID:
            if trigger:
                self._reactor.removeSystemEventTrigger(trigger)
        self.shutdownID: Any = None
        self.startID: Any = None
        return self.finalClose()
