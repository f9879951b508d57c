"""A blocking source as an async iterator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from twisted.internet.defer import Deferred

from ._behaviours import OnAPool, PoolChoice
from ._errors import shown
from ._policy import Timeouts, check_count
from ._stream import Stream

T = TypeVar("T")


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
        :raises GreendeferError: no reactor is installed, or this is not its thread.
        :raises TypeError: its pool has no ``worker()``, as an :class:`ExecutorPool`; or the source
            is no iterable.
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


class Iterates(OnAPool):
    """:func:`green_iterator`."""

    decorator = "green_iterator"

    def __init__(self, pool: PoolChoice, timeout: float | Timeouts | None, prefetch: int) -> None:
        super().__init__(pool, timeout)
        check_count("prefetch=...", prefetch, 0)
        self.prefetch = prefetch

    @property
    def options(self) -> dict[str, Any]:
        return {**super().options, "prefetch": self.prefetch}

    def wrapper(
        self,
        wrapped: Callable[..., Any],
        instance: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> GreenIterator[Any]:
        return GreenIterator(
            Stream(
                self.choose(wrapped, instance),
                partial(wrapped, *args, **kwargs),
                getattr(wrapped, "__qualname__", None) or shown(wrapped),
                self.timeouts,
                self.prefetch,
            )
        )
