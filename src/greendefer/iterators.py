"""A blocking source as an async iterator: each iteration on one worker, closed once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from greenlet import GreenletExit
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from .admission import Pool
from .call import Call
from .deadlines import Deadline
from .errors import CallTimeout, PoolClosed, shown
from .policy import Timeouts
from .pool import PoolWorker, WithWorkers
from .reactor.wait import SLICE

T = TypeVar("T")

_log = Logger(namespace="greendefer")

_END: Any = object()


class GreenIterator(Generic[T]):
    """An async iterator over a blocking source, and an async context manager that closes it.

    It is what a callable decorated with :func:`green_iterator` returns. Nothing runs before the
    first item is asked for. Then the source is opened, stepped and closed on one worker of its
    pool, and has one slot there, until its end, or until it is closed::

        async with lines("/var/log/syslog") as log:
            async for line in log:
                if "panic" in line:
                    break

    Its steps see the ``contextvars`` of whoever made it, and keep what they set. It may be used
    in the reactor's thread only, by one consumer at a time.
    """

    __slots__ = ("__weakref__", "_stream")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __repr__(self) -> str:
        return f"<GreenIterator of {self._stream.name}, {self._stream.stage}>"

    if not TYPE_CHECKING:  # where it has none

        def __iter__(self):
            raise TypeError(f"{self!r} is waited for with Deferreds: use `async for`")

    def __aiter__(self) -> GreenIterator[T]:
        return self

    async def __anext__(self) -> T:
        """The next item.

        Cancelling the wait for it closes the iteration, without waiting for that.

        :raises StopAsyncIteration: there are no more, or it was closed.
        :raises CallTimeout: it took longer than the iteration's `timeout`. Closes it.
        :raises CancelledError: it was closed meanwhile.
        :raises PoolFull: the pool has no slot for it.
        :raises PoolClosed: the pool was closed.
        :raises RuntimeError: somebody else waits for its next item.
        :raises GreendeferError: no green reactor is installed, or this is not its thread.
        :raises BaseException: whatever the source raised, when it was opened, stepped or, after
            its last item, closed. The iteration is over then.
        """
        stream = self._stream
        items = stream.items
        if not items or stream.waiting is not None:
            await stream.wait()
            items = stream.items
        else:
            stream.asked += 1
        item = items.popleft()
        if len(items) < stream.refill_below:
            stream.refill()
        transform = stream.transform
        return item if transform is None else transform(item)  # type: ignore[no-any-return]

    def aclose(self) -> Deferred[None]:
        """End a running step, close the source on its worker, and give the worker back.

        Items that were fetched ahead are dropped.

        :returns: a Deferred that fires in the reactor's greenlet when all of that is done, with
            ``None``, or with what closing the source raised. It has fired already where there was
            nothing to close. Cancelling it does not stop the closing.
        """
        return self._stream.aclose()

    async def __aenter__(self) -> GreenIterator[T]:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # After a bare `break`: CPython comes here at once, unless something (a traceback, a
        # cycle) keeps the iterator; and maybe in another thread, or in the hub.
        stream: Stream | None = getattr(self, "_stream", None)
        if stream is not None:
            stream.forgotten()


class Stream:
    """The state of one iteration, shared by its consumer and its worker.

    The consumer asks for items and takes them; a *fill* is a call on the worker that steps the
    source until it is `prefetch` items ahead, or a slice of time is over. The two may be in
    different threads: each attribute is written by one of them, but for the deque of items.

    :param pool: where it takes a worker; or a worker that somebody has entered, which it shares.
    :param open_source: called on the worker; returns the iterable.
    :param name: what the source is called in messages.
    :param prefetch: how many items it may be ahead of the consumer.
    :param transform: called with each item when the consumer gets it, if given.
    :param closes: does the iteration own the iterable that `open_source` returns?
    """

    worker: PoolWorker | None = None
    waiting: Deferred[Any] | None = None
    transform: Callable[[Any], Any] | None = None

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
        self.name = name
        self.items: deque[Any] = deque()
        self.asked: int = 0
        self.refill_below: int = prefetch // 2 + 1 if prefetch else 0
        if transform is not None:
            self.transform = transform
        self._pool = pool
        self._open_source: Callable[[], Iterable[Any]] | None = open_source
        self._timeouts = timeouts
        self._prefetch = prefetch
        self._closes = closes
        self._context = copy_context()
        self._deliver: Callable[[Callable[[Any], object], Any], None]
        self._has_slot = False
        self._fill: Call | None = None
        self._deadline: Deadline | None = None
        self._total_at: float | None = None
        self._closing = False
        self._over = False
        self._posted = False
        self._failure: Failure | None = None  # of a step: for the consumer, after the last item
        self._close_failure: Failure | None = None  # for the consumer, or for aclose()
        self._closed: Deferred[None] = Deferred()
        # The worker's side.
        self._source: Any = None
        self._iterator: Iterator[Any] | None = None
        self._produced = 0
        self._step_began: float | None = None
        self._late_error: BaseException | None = None

    @property
    def stage(self) -> str:
        """How far it is, for people."""
        if self._over:
            return "closed"
        return "not begun" if self.worker is None else "closing" if self._closing else "open"

    # The consumer's side: in the reactor's thread.

    def wait(self) -> Deferred[Any]:
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
        timeouts = self._timeouts
        if timeouts is None and not self._prefetch:
            self.refill()
            if self._fill is not None:
                # The short way: what the consumer waits for is the step itself.
                self.waiting = self._fill
                return self._fill
            return self._wait_on()  # it has ended already, as on a pool that runs calls inline
        waiting = self._wait_on()
        try:
            self.refill()
        except BaseException:
            self.waiting = None
            raise
        if timeouts is not None and timeouts.total is not None:
            assert self.worker is not None
            self._total_at = self.worker.home.now() + timeouts.total
        self._set_deadline()
        return waiting

    def _wait_on(self) -> Deferred[None]:
        """A Deferred for what :meth:`_wake` has to tell."""
        waiting: Deferred[None] = Deferred(self._cancelled)
        self.waiting = waiting
        self._wake()
        return waiting

    def _raise_failure(self) -> None:
        """Raise what has not been heard yet: that of a step rather than that of closing."""
        failure = self._failure or self._close_failure
        self._failure = self._close_failure = None
        if failure is not None:
            failure.raiseException()

    def refill(self) -> None:
        """Let the worker step on, unless it does."""
        if self._fill is not None or self._closing:
            return
        worker = self.worker
        if worker is None:
            worker = self._begin()
            if self._closing:
                return  # the pool has no slot for it
        self._fill = fill = worker._call(self._step_on, (), {}, None, "kill")
        fill.addCallbacks(self._filled, self._failed)

    def _begin(self) -> PoolWorker:
        pool = self._pool
        if isinstance(pool, PoolWorker):
            self.worker = worker = pool
            self._has_slot = True
        else:
            worker = take_worker(pool)
            entered = worker.open(self._timeouts)
            self.worker = worker
            entered.addCallbacks(self._got_slot, self._got_no_slot)
        self._deliver = worker.home.deliver
        worker.at_exit(self._close_source)
        return worker

    def _got_slot(self, _: None) -> None:
        self._has_slot = True
        self._set_deadline()

    def _got_no_slot(self, failure: Failure) -> None:
        if not self._closing:
            self._failure = failure
            self._close(kill=True)

    def _filled(self, exhausted: bool) -> Deferred[None] | None:
        fill, self._fill = self._fill, None
        direct = self.waiting is fill
        if direct:
            self.waiting = None
        if exhausted:
            self._close()
        elif not direct and (
            len(self.items) < self.refill_below or (self.waiting is not None and not self.items)
        ):
            self.refill()
        if direct:
            return self._wait_on() if exhausted else None
        self._wake()
        return None

    def _failed(self, failure: Failure) -> Deferred[None] | Failure | None:
        fill, self._fill = self._fill, None
        direct = self.waiting is fill
        if direct:
            self.waiting = None
            assert fill is not None
            if fill.outcome == "cancelled" and failure.check(CancelledError):
                self._abort(kill=True)  # the consumer, or aclose(), cancelled its wait
                return failure
        if not self._closing:
            self._failure = failure
            self._close()
        if direct:
            return self._wait_on()
        self._wake()
        return None

    def _woken(self, _: None) -> None:
        self._posted = False
        self._wake()

    def _wake(self) -> None:
        """Tell the waiting consumer, if there is something to tell."""
        waiting = self.waiting
        if waiting is None or waiting is self._fill or not (self.items or self._over):
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
        home = self.worker.home
        when = self._total_at
        if timeouts.running is not None and self._has_slot:
            at = (self._step_began or home.now()) + timeouts.running
            when = at if when is None else min(when, at)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if when is not None:
            self._deadline = home.deadlines.at(when, self._expire)

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
            self._deliver(self._close_unheard, None)

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
            if not self._closing:
                self._closing = self._over = True
                self._closed.callback(None)
        else:
            self._close(kill)

    def _close(self, kill: bool = False) -> None:
        if self._closing:
            return
        self._closing = True
        worker = self.worker
        assert worker is not None
        if worker is not self._pool:
            closed = worker.leave(kill=kill)
        else:
            if kill and self._fill is not None:
                self._fill.cancel()
            closed = worker._call(self._close_source, (), {}, None, "abandon")
        closed.addBoth(self._left)

    def _left(self, result: Failure | None) -> None:
        # PoolClosed and CancelledError say how the worker ended, not how closing the source went.
        if isinstance(result, Failure) and not result.check(PoolClosed, CancelledError):
            self._close_failure = result
        self._over = True
        self._wake()
        self._closed.callback(None)

    # The worker's side.

    def _step_on(self) -> bool:
        """Step the source as far as it may be ahead. Is that its end?"""
        try:
            return self._context.run(self._steps)
        except BaseException as e:
            if self._closing and not isinstance(e, GreenletExit):
                self._late_error = e  # of a step that was told to end: aclose() raises it
            raise
        finally:
            self._step_began = None

    def _steps(self) -> bool:
        self._step_began = now = monotonic()
        until = now + SLICE
        iterator = self._iterator
        if iterator is None:
            assert self._open_source is not None
            self._source = self._open_source()
            self._iterator = iterator = self._iterate(self._source)
        items, prefetch = self.items, self._prefetch
        while True:
            item = next(iterator, _END)
            if item is _END:
                return True
            if self._closing:
                return False
            items.append(item)
            self._produced += 1
            self._step_began = now = monotonic()
            if self._produced >= self.asked + prefetch or now >= until:
                return False
            if self.waiting is not None and not self._posted:
                # The next step may take its time. Those that do not are delivered with this one.
                self._posted = True
                self._deliver(self._woken, None)

    def _iterate(self, source: Any) -> Iterator[Any]:
        try:
            return iter(source)
        except TypeError as e:
            if hasattr(type(source), "__iter__"):
                raise
            raise TypeError(
                f"{self.name} returned {shown(source)}, which can't be iterated over. "
                "@green_iterator is for generator functions, and for functions that return an "
                "iterable; use @green_deferred for one that returns a value."
            ) from e

    def _close_source(self) -> None:
        """Close what there is to close, once."""
        assert self.worker is not None
        self.worker.not_at_exit(self._close_source)
        source, iterator = self._source, self._iterator
        self._source = self._iterator = self._open_source = None
        error, self._late_error = self._late_error, None
        try:
            self._context.run(_close_all, source, iterator, self._closes)
            if error is not None:
                raise error
        finally:
            del error  # its traceback has this frame: no cycle, please


def _close_all(source: Any, iterator: Any, closes: bool) -> None:
    try:
        if closes or iterator is not source:
            close_one(iterator)
    finally:
        if closes and iterator is not source:
            close_one(source)


def close_one(closable: Any, *exc_info: object) -> None:
    """Close it, if it can be closed."""
    close = getattr(closable, "close", None)
    if close is not None:
        close()


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
