"""The worker's side of an iteration: its source is opened, stepped and closed there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from greenlet import GreenletExit

from ._errors import PoolClosed, shown
from ._reactor.wait import SLICE

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from ._admission import Call

_END: Any = object()


class Steps:
    """The source of one iteration, and what its worker and its consumer have in common.

    It is a :class:`~greendefer._carriers.Job`: to step the source until it is `prefetch` items
    ahead, or a slice of time is over. An iteration's own worker runs it again and again, whenever
    the consumer wants more.

    The two sides may be in different threads: each attribute is written by one of them, but for
    the deque of items.

    :param open_source: called on the worker; returns the iterable.
    :param name: what the source is called in messages.
    :param prefetch: how many items it may be ahead of the consumer.
    :param closes: does the iteration own the iterable that `open_source` returns?
    :ivar items: those that were produced, and not consumed.
    :ivar asked: how many items the consumer has asked for so far.
    :ivar waiting: a Deferred that the consumer waits for, if it does.
    :ivar closing: no more are wanted.
    :ivar call: the call that keeps the worker.
    :ivar deliver: how the worker tells the consumer something: :meth:`.Runtime.deliver`.
    :ivar now: the clock of the consumer's timeouts: :attr:`.Runtime.now`.
    :ivar posted: the consumer will be told that there are items.
    :ivar step_began: when the source was last asked for an item, if it is at work.
    """

    call: Call
    deliver: Callable[[Callable[[Any], object], Any], None]
    now: Callable[[], float]
    waiting: Deferred[None] | None = None
    closing: bool = False
    posted: bool = False
    step_began: float | None = None
    carried_by: Any = None
    is_leaving: bool = False
    was_killed: bool = False

    def __init__(
        self, open_source: Callable[[], Iterable[Any]], name: str, prefetch: int, closes: bool
    ) -> None:
        self.name: str = name
        self.items: deque[Any] = deque()
        self.asked: int = 0
        self._open_source: Callable[[], Iterable[Any]] | None = open_source
        self._prefetch = prefetch
        self._closes = closes
        self._context = copy_context()
        self._source: Any = None
        self._iterator: Iterator[Any] | None = None
        self._produced = 0
        self._late_error: BaseException | None = None

    # In the consumer's thread.

    def stepped(self, result: bool | Failure) -> None:
        """The job has ended: with whether that is the end of the source, or a Failure."""
        raise NotImplementedError

    def woken(self, _: None) -> None:
        """There are items, and the job goes on."""
        raise NotImplementedError

    # On the worker.

    def begin(self) -> bool:
        return True

    def run(self) -> bool:
        """Step the source as far as it may be ahead. Is that its end?"""
        if self.closing:
            return False
        try:
            return self._context.run(self._step_on)
        except BaseException as e:
            if self.closing and not isinstance(e, GreenletExit):
                self._late_error = e  # of a step that was told to end: aclose() raises it
            raise
        finally:
            self.step_began = None

    def end(self, result: Any) -> None:
        self.deliver(self.stepped, result)

    def closed_error(self) -> PoolClosed:
        pool = self.call.pool
        return PoolClosed(f"{self.name}: {pool!r} is closed, or its reactor has stopped")

    def _step_on(self) -> bool:
        self.step_began = now = self.now()
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
            if self.closing:
                return False
            items.append(item)
            self._produced += 1
            if self._produced >= self.asked + prefetch:
                return False
            self.step_began = now = self.now()
            if now >= until:
                return False
            if self.waiting is not None and not self.posted:
                # The next step may take its time. Those that do not are delivered with this one.
                self.posted = True
                self.deliver(self.woken, None)

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

    def close_source(self) -> None:
        """Close what there is to close, once."""
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
