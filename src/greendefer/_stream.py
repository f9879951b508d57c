"""The consumer's side of an iteration: on one worker, closed once, whatever ends it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ._admission import Call, Pool
from ._deadlines import Deadline
from ._errors import CallTimeout, GreendeferError, PoolClosed
from ._policy import Timeouts
from ._steps import Steps
from ._worker import PoolWorker, WithWorkers

_log = Logger(namespace="greendefer")


class Stream(Steps):
    """One iteration, as its consumer sees it. In the reactor's thread.

    :param pool: where it takes a worker; or a worker that somebody has entered, which it shares.
    :param transform: called with each item when the consumer gets it, if given.

    The other parameters are those of :class:`~greendefer._steps.Steps`.
    """

    worker: PoolWorker | None = None
    transform: Callable[[Any], Any] | None = None
    # Those of Steps that are set here. To pyright they would be others, whose types it guesses.
    items: deque[Any]
    asked: int
    call: Call
    deliver: Callable[[Callable[[Any], object], Any], None]
    waiting: Deferred[None] | None
    closing: bool
    posted: bool
    carried_by: Any

    def __init__(
        self,
        pool: Pool,
        open_source: Callable[[], Iterable[Any]],
        name: str,
        timeouts: Timeouts | None,
        prefetch: int,
        transform: Callable[[Any], Any] | None = None,
        closes: bool = True,
    ) -> None:
        super().__init__(open_source, name, prefetch, closes)
        self.refill_below: int = prefetch // 2 + 1 if prefetch else 0
        if transform is not None:
            self.transform = transform
        self._pool = pool
        self._timeouts = timeouts
        self._has_slot = False
        self._is_stepping = False
        self._call: Call | None = None  # that runs the steps, where others use the worker, too
        self._deadline: Deadline | None = None
        self._total_at: float | None = None
        self._over = False
        self._failure: Failure | None = None  # of a step: for the consumer, after the last item
        self._close_failure: Failure | None = None  # for the consumer, or for aclose()
        self._closed: Deferred[None] = Deferred()

    @property
    def stage(self) -> str:
        """How far it is, for people."""
        if self._over:
            return "closed"
        return "not begun" if self.worker is None else "closing" if self.closing else "open"

    def wait(self) -> Deferred[None]:
        """A Deferred for the time when there is an item."""
        if self.waiting is not None:
            raise RuntimeError(
                f"Somebody waits for the next item of {self.name} already: an iteration has one "
                "consumer at a time"
            )
        if self._over:
            self._raise_failure()
            raise StopAsyncIteration
        self.asked += 1
        waiting: Deferred[None] = Deferred(self._cancelled)
        self.waiting = waiting
        try:
            self.refill()
        except BaseException:
            self.waiting = None
            raise
        timeouts = self._timeouts
        if timeouts is not None:
            if timeouts.total is not None:
                assert self.worker is not None
                self._total_at = self.worker._runtime.now() + timeouts.total
            self._set_deadline()
        return waiting

    def _raise_failure(self) -> None:
        """Raise what has not been heard yet: that of a step rather than that of closing."""
        failure = self._failure or self._close_failure
        self._failure = self._close_failure = None
        if failure is not None:
            if isinstance(failure.value, StopAsyncIteration):  # it would end the loop, unheard
                raise RuntimeError(f"{self.name} raised StopAsyncIteration") from failure.value
            failure.raiseException()

    def refill(self) -> None:
        """Let the worker step on, unless it does."""
        if self._is_stepping or self.closing:
            return
        worker = self.worker
        if worker is None:
            worker = self._take_worker()
            if self.closing:
                return  # the pool has no slot for it
        if worker is not self._pool:
            self._is_stepping = True  # first: it may have ended when this returns
            try:
                worker._run_job(self)
            except GreendeferError as e:
                self._is_stepping = False
                if not isinstance(e, PoolClosed):
                    raise
                self._lost(Failure())
        else:
            # A call of its own: it has its turn among those of others.
            self._call = worker._call(self.run, (), {}, None, "kill")
            self._is_stepping = True
            self._call.addBoth(self.stepped)

    def _take_worker(self) -> PoolWorker:
        pool = self._pool
        if isinstance(pool, PoolWorker):
            self.worker = worker = pool
            self._has_slot = True
        else:
            worker = take_worker(pool)
            entered = worker._open(self._timeouts, self.name)
            self.worker = worker
            entered.addCallbacks(self._got_slot, self._lost)
            assert worker._host is not None
            self.call = worker._host
            worker._host.addBoth(self._worker_ended)
        self.deliver = worker._runtime.deliver
        self.now: Callable[[], float] = worker._runtime.now
        worker._at_exit(self.close_source)
        return worker

    def _got_slot(self, _: None) -> None:
        self._has_slot = True
        self._set_deadline()

    def _worker_ended(self, _: None) -> None:
        if not self.closing:  # the pool was closed, or the worker killed
            self._lost(Failure(self.closed_error()))

    def _lost(self, failure: Failure) -> None:
        """There will be no more items."""
        if not self.closing:
            self._failure = failure
            self._close()

    def stepped(self, result: bool | Failure) -> None:
        self._is_stepping = False
        if isinstance(result, Failure):
            self._lost(result)
        elif result:
            self._close()
        elif len(self.items) < self.refill_below or (self.waiting is not None and not self.items):
            self.refill()
        self._wake()

    def woken(self, _: None) -> None:
        self.posted = False
        self._wake()

    def _wake(self) -> None:
        """Tell the waiting consumer, if there is something to tell."""
        waiting = self.waiting
        if waiting is None or not (self.items or self._over):
            return
        self._stop_waiting()
        if self.items:
            waiting.callback(None)
            return
        try:
            self._raise_failure()
            waiting.errback(Failure(StopAsyncIteration()))
        except BaseException:
            waiting.errback(Failure())

    def _stop_waiting(self) -> None:
        self.waiting = None
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.cancel()

    # Its time. It runs while the consumer waits: who does not wait misses nothing.

    def _set_deadline(self) -> None:
        timeouts = self._timeouts
        if timeouts is None or self.waiting is None:
            return
        assert self.worker is not None
        when = self._total_at
        if timeouts.running is not None and self._has_slot:
            at = (self.step_began or self.worker._runtime.now()) + timeouts.running
            when = at if when is None else min(when, at)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if when is not None:
            assert self.worker is not None
            self._deadline = self.worker._runtime.deadlines.at(when, self._expire)

    def _expire(self) -> None:
        self._deadline = None
        timeouts, waiting = self._timeouts, self.waiting
        assert timeouts is not None
        assert waiting is not None
        self._stop_waiting()
        self._abort(kill=timeouts.on_expiry != "abandon")
        waiting.errback(CallTimeout(f"An item of {self.name} was not there in time: {timeouts}"))

    # Its end.

    def aclose(self) -> Deferred[None]:
        if self.waiting is not None:
            self.waiting.cancel()
        self._abort(kill=True)
        heard: Deferred[None] = Deferred()

        def closed(_: None) -> None:
            if not heard.called:
                failure, self._close_failure = self._close_failure, None
                heard.callback(failure)  # None, mostly

        self._closed.addCallback(closed)
        return heard

    def forgotten(self) -> None:
        """Nobody can ask for items any more. In any thread."""
        if self.worker is not None and (not self._over or self._close_failure is not None):
            self.deliver(self._close_unheard, None)

    def _close_unheard(self, _: None) -> None:
        def closed(failure: Failure) -> None:
            _log.failure("Closing {name} failed, and nobody waited for it", failure, name=self.name)

        self.aclose().addErrback(closed)

    def _cancelled(self, _: Deferred[None]) -> None:
        self._stop_waiting()
        self._abort(kill=True)

    def _abort(self, kill: bool) -> None:
        """Close it before its end."""
        self.items = deque()  # a step that ends meanwhile keeps the old one
        self._failure = None
        if self.worker is None:
            if not self.closing:
                self.closing = self._over = True
                self._closed.callback(None)
        else:
            self._close(kill)

    def _close(self, kill: bool = False) -> None:
        if self.closing:
            return
        self.closing = True
        worker = self.worker
        assert worker is not None
        kill = kill and self._is_stepping
        if worker is not self._pool:
            closed = worker._leave()
            if kill:
                worker._kill_job(self)
        else:
            if kill and self._call is not None:
                self._call.cancel()
            closed = worker._call(self.close_source, (), {}, None, "abandon")
        closed.addBoth(self._left)

    def close_source(self) -> None:
        assert self.worker is not None
        self.worker._not_at_exit(self.close_source)
        super().close_source()

    def _left(self, result: Failure | None) -> None:
        # PoolClosed and CancelledError say how the worker ended, not how closing the source went.
        if isinstance(result, Failure) and not result.check(PoolClosed, CancelledError):
            self._close_failure = result
        self._over = True
        self.carried_by = None
        self._wake()
        self._closed.callback(None)


def take_worker(pool: Pool) -> PoolWorker:
    """A worker of `pool`, not entered yet.

    :raises TypeError: its calls can't stay on one worker.
    """
    if not isinstance(pool, WithWorkers):
        raise TypeError(
            f"An iteration or a context manager needs a pool whose calls can stay on one worker: "
            f"{pool!r} has no worker(). Use a GreenPool, or a pool of native threads; in a test, "
            "one of greendefer.testing."
        )
    return pool.worker()
