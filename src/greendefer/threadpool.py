"""Twisted's ThreadPool with greenlets in it: for WSGI, adbapi, and whatever asks for threads."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

from greenlet import GreenletExit, getcurrent
from twisted.internet.defer import Deferred
from twisted.python import log
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from ._errors import shown
from ._policy import check_count, check_is_callable, check_name
from ._pool import GreenPool


class GreenThreadPool(ThreadPool):
    """What Twisted calls a thread pool, on a :class:`greendefer.GreenPool`.

    It scales to as many "threads" as there is memory for (some 10 KB each), all on the reactor's
    thread: for code that waits, through what gevent has made cooperative. What computes, or waits
    in C, holds the reactor.

    Calls start as soon as the reactor (or any greenlet) waits, also before :meth:`start`. They
    must be made from the reactor's thread.

    :param minthreads: ignored.
    :param maxthreads: how many calls run at once.
    :param name: what it is called in messages.
    :ivar pool: the :class:`greendefer.GreenPool`.
    :raises TypeError: a number is not a whole one, or `name` is not a string.
    :raises ValueError: `minthreads` is below 0, `maxthreads` is below 1, or below `minthreads`.
    """

    def __init__(self, minthreads: int = 0, maxthreads: int = 100, name: str | None = None) -> None:
        _check_sizes("GreenThreadPool", minthreads, maxthreads)
        check_name("GreenThreadPool(name=...)", name)
        self.pool: GreenPool = GreenPool(maxthreads, name=name)
        self._slots: dict[Any, int] = {}
        self._free_slots: list[int] = []
        self._new_slot = count().__next__
        super().__init__(minthreads, maxthreads, name)

    def callInThreadWithCallback(
        self,
        onResult: Callable[..., object] | None,
        func: Callable[..., Any],
        *args: Any,
        **kw: Any,
    ) -> None:
        """Call ``func(*args, **kw)`` in a greenlet, and ``onResult(success, result)`` after it, in
        the same one. A call that never runs, since the pool or the reactor was stopped, has
        :class:`greendefer.PoolClosed` for its result.

        :raises TypeError: `func` is not callable, or `onResult` is neither callable nor ``None``.
        """
        check_is_callable("callInThread(func, ...)", func)
        if onResult is not None and not callable(onResult):
            raise TypeError(
                "callInThreadWithCallback(onResult, func, ...) needs something to call with the "
                f"result, or None, for onResult, not {shown(onResult)}"
            )
        if self.joined:
            return
        if onResult is None:
            onResult = _log_failure
        told: list[bool] = []

        def tell(success: bool, result: Any) -> None:
            # Once: a call that is killed as its pool is closed has failed before it ends.
            if not told:
                told.append(True)
                onResult(success, result)

        self.pool.submit(self._run, tell, func, args, kw).addErrback(
            lambda failure: tell(False, failure)
        )

    def _run(
        self,
        tell: Callable[[bool, Any], None],
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kw: dict[str, Any],
    ) -> None:
        me = getcurrent()
        slot = self._slots[me] = heappop(self._free_slots) if self._free_slots else self._new_slot()
        try:
            result = func(*args, **kw)
            success = True
        except BaseException:
            result = Failure()
            success = False
        finally:
            del self._slots[me]
            heappush(self._free_slots, slot)
        try:
            tell(success, result)
        except Exception:
            log.err(None, "The callback of a call in a thread pool failed")
        if not success and isinstance(result.value, GreenletExit):
            result.raiseException()  # it was killed, and has ended for that

    def slot(self) -> int | None:
        """A number for the call that runs in the current greenlet, below the number of all that
        run; ``None`` outside of one. It takes the place of a thread's number: the next call that
        gets it may find there what this one has left."""
        return self._slots.get(getcurrent())

    def start(self) -> None:
        """Nothing needs to be started."""
        self.joined: bool = False
        self.started: bool = True

    def stop(self) -> None:
        """Take no more calls. Those that wait fail; those that run go on, and nobody waits for
        them: see :meth:`stopped`."""
        self.stopped()

    def stopped(self) -> Deferred[None]:
        """:meth:`stop`, and say when that is done.

        :returns: a Deferred that fires with ``None`` in the reactor's greenlet, when all calls
            have ended.
        """
        self.joined = True
        self.started = False
        return self.pool.close()

    def adjustPoolsize(self, minthreads: int | None = None, maxthreads: int | None = None) -> None:
        """Let `maxthreads` calls run at once.

        :raises TypeError: a number is not a whole one.
        :raises ValueError: `minthreads` is below 0, `maxthreads` is below 1, or below
            `minthreads`; as they are, where one is not given.
        """
        _check_sizes(
            "adjustPoolsize",
            self.min if minthreads is None else minthreads,
            self.max if maxthreads is None else maxthreads,
        )
        if maxthreads is not None:
            self.pool.resize(maxthreads)
            self.max = maxthreads
        if minthreads is not None:
            self.min = minthreads

    def startAWorker(self) -> None:
        """Greenlets start when they are needed."""

    def stopAWorker(self) -> None:
        """Idle ones go by themselves."""

    @property
    def workers(self) -> int:
        """How many calls run."""
        stats = self.pool.stats()
        return stats.running + stats.lingering

    @property
    def working(self) -> list[None]:
        """As many entries as calls run."""
        return [None] * self.workers

    @property
    def waiters(self) -> list[None]:
        """Idle workers: none are counted."""
        return []

    @property
    def _queue(self) -> Any:
        """What has a ``qsize()``: how many calls wait."""
        return _Backlog(self.pool)

    q = _queue


def _check_sizes(what: str, least: int, most: int) -> None:
    check_count(f"{what}(minthreads=...)", least, 0)
    check_count(f"{what}(maxthreads=...)", most, 1)
    if least > most:
        raise ValueError(
            f"{what}(minthreads=...) must be at most maxthreads, {most}, not {shown(least)}"
        )


class _Backlog:
    def __init__(self, pool: GreenPool) -> None:
        self._pool = pool

    def qsize(self) -> int:
        return self._pool.stats().queued


def _log_failure(success: bool, result: Any) -> None:
    if not success:
        log.err(result)
