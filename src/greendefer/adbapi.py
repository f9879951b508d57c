"""``twisted.enterprise.adbapi`` on greenlets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred, succeed

from .threadpool import GreenThreadPool


class GreenConnectionPool(adbapi.ConnectionPool):
    """A drop-in for ``adbapi.ConnectionPool`` whose queries wait in greenlets of the reactor's
    thread, for drivers that gevent makes cooperative.

    ``cp_max`` is both how many interactions run at once and how many connections there are. An
    interaction has one connection for itself; the next one takes it over.

    :raises Exception: whatever importing the driver raises.
    """

    threadpool: GreenThreadPool

    def __init__(self, dbapiName: str, *connargs: Any, **connkw: Any) -> None:
        super().__init__(dbapiName, *connargs, **connkw)  # type: ignore[no-untyped-call]
        self.threadpool.stop()  # which has begun to run where the reactor runs
        self.threadpool = GreenThreadPool(self.min, self.max, f"adbapi {dbapiName}")
        # Where a connection is looked for; threads have their own number.
        self.threadID: Callable[[], int | None] = self.threadpool.slot

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
