"""Protocol methods that block: each connection waits for itself, and no other does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, overload

import wrapt
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ._admission import Pool
from ._errors import PoolClosed, shown
from ._pool import default_pool
from ._wrapping import is_async

_log = Logger(namespace="greendefer")

F = TypeVar("F", bound=Callable[..., Any])

MANY = 16
"""So many calls may wait in one connection; then its transport is paused until all have run."""


@overload
def in_order(method: F, /) -> F: ...
@overload
def in_order(*, pool: Pool | None = None) -> Callable[[F], F]: ...
def in_order(method: Any = None, /, *, pool: Pool | None = None) -> Any:
    """Decorator for methods of a protocol, which may then block.

    ::

        class Shout(LineReceiver):
            @in_order
            def lineReceived(self, line):
                time.sleep(1)  # patched
                self.sendLine(line.upper())

            @in_order
            def connectionLost(self, reason):
                print("after the last line")

    Calls of decorated methods run in greenlets: those of one object one at a time, in the order in
    which they were made; those of different objects side by side. Writing to the transport from
    there is safe. A client that sends faster than its calls run is not read from meanwhile.

    The decorated method returns ``None`` at once. An exception is logged, and ends the connection,
    as one in ``dataReceived`` does; the calls behind it still run, ``connectionLost`` in particular
    (but none once the reactor has stopped).

    :param method: a method of a ``Protocol``, or of any object that can have attributes; where it
        has a ``transport``, that is paused and, after an exception, aborted.
    :param pool: where the calls run; ``None`` is the default pool.
    :returns: the decorated method.
    :raises TypeError: `method` is not callable, or is an ``async def``, or `pool` is not a pool.

    Calling it raises :class:`GreendeferError` where no reactor is installed, or in another thread
    than the reactor's; and TypeError without an object, or where that can't have attributes.
    """
    if pool is not None and not isinstance(pool, Pool):
        raise TypeError(f"in_order(pool=...) must be a pool or None, not {shown(pool)}")

    def decorate(method: Any) -> Any:
        if not callable(method):
            raise TypeError(f"in_order decorates a method, not {shown(method)}")
        if is_async(method):
            raise TypeError(
                f"in_order is for methods that block; {shown(method)} is async, and runs in the "
                "reactor's greenlet"
            )
        return wrapt.decorator(call)(method)

    def call(
        wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if instance is None:
            raise TypeError(
                f"in_order is for methods; {shown(wrapped)} was called without an object"
            )
        where = pool or default_pool
        where._find_runtime()  # first: what waits in line is the reactor's thread's
        try:
            attributes = vars(instance)
        except TypeError:
            raise TypeError(
                "in_order keeps the calls that wait in an attribute of their object, and "
                f"{shown(instance)} can't have one: it has __slots__, and no __dict__"
            ) from None
        line = attributes.get(_LINE)
        if line is None:
            line = attributes[_LINE] = _Line(instance)
        line.append(where, wrapped, args, kwargs)

    return decorate if method is None else decorate(method)


_LINE = "_greendefer_in_order"


class _Line:
    """The calls of one object that have not ended."""

    def __init__(self, instance: Any) -> None:
        self._instance = instance
        self._waiting: deque[tuple[Pool, Callable[..., Any], Any, Any]] = deque()
        self._running = False
        self._paused: Any = None

    def append(self, pool: Pool, f: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._waiting.append((pool, f, args, kwargs))
        self._run()
        if len(self._waiting) >= MANY and self._paused is None:
            transport: Any = getattr(self._instance, "transport", None)
            if hasattr(transport, "pauseProducing") and _is_open(transport):
                self._paused = transport
                transport.pauseProducing()

    def _run(self) -> None:
        while self._waiting and not self._running:
            pool, f, args, kwargs = self._waiting.popleft()
            d: Deferred[Any] = pool.submit(f, *args, **kwargs)
            self._running = True
            d.addErrback(self._failed, f)
            d.addBoth(self._ended)  # at once, where the pool has rejected it
            if not self._running:
                continue
            d.addBoth(lambda _: self._run())
        if self._paused is not None and not self._running:
            transport, self._paused = self._paused, None
            if _is_open(transport):
                transport.resumeProducing()

    def _ended(self, _: object) -> None:
        self._running = False

    def _failed(self, failure: Failure, f: Callable[..., Any]) -> None:
        if not failure.check(PoolClosed):  # as it is once the reactor has stopped
            _log.failure("{f!r} failed; its connection ends", failure, f=f)
        transport: Any = getattr(self._instance, "transport", None)
        if hasattr(transport, "abortConnection"):
            transport.abortConnection()


def _is_open(transport: Any) -> bool:
    return getattr(transport, "connected", True) and not getattr(transport, "disconnecting", False)
