"""Twisted for blocking code: what is waited for, an async iterator as a plain one, and an async
context manager as a ``with`` block."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ._admission import is_deferred
from ._behaviours import Behaviour
from ._crossing import call_and_wait
from ._policy import check_seconds
from ._reactor.installed import installed_reactor

T = TypeVar("T")

Say = Callable[[Any], Awaitable[Any]]

_log = Logger(namespace="greendefer")

_END: Any = object()


class Talk:
    """Steps through a coroutine as one steps through a generator: blocking code sends a value,
    and waits until the coroutine yields the next.

    All of an iteration is one coroutine, and so is a ``with`` block: so it has one context, and
    what it sets in a ``contextvars.ContextVar`` it can reset.

    :param talk: called with ``say`` to get the coroutine. ``await say(value)`` answers the one
        who asked, and waits for the next word. What it returns or raises is its last answer.
    """

    def __init__(self, talk: Callable[[Say], Coroutine[Any, Any, Any]]) -> None:
        self._talk = talk
        self._run: Deferred[Any] | None = None
        self._answer: Deferred[Any] | None = None
        self._enders: list[Deferred[Any]] = []
        self._word: Deferred[Any] | None = None
        self._over = self._cancelled = False

    @property
    def is_open(self) -> bool:
        """Has it begun, and not ended?"""
        return self._run is not None and not self._over

    def ask(self, word: Any = None) -> Deferred[Any]:
        """In the reactor's thread: a Deferred for what the coroutine says next."""
        answer: Deferred[Any] = Deferred(self._unasked)
        self._answer = answer
        if self._run is None:
            self._run = Deferred.fromCoroutine(self._talk(self._say))
            self._run.addBoth(self._ended)
        else:
            waiting, self._word = self._word, None
            assert waiting is not None
            waiting.callback(word)
        return answer

    async def _say(self, value: Any) -> Any:
        answer, self._answer = self._answer, None
        if answer is None:
            raise CancelledError("Nobody waits for this any more")
        word: Deferred[Any] = Deferred()
        self._word = word
        answer.callback(value)
        return await word

    def _ended(self, result: Any) -> None:
        self._over = True
        answer, self._answer = self._answer, None
        enders, self._enders = self._enders, []
        if answer is not None:
            answer.callback(result)
        for ended in enders:
            ended.callback(result)
        if answer is not None or enders:
            return
        if isinstance(result, Failure) and not result.check(CancelledError):
            _log.failure("It failed when nobody waited for it any more", result)

    def _unasked(self, _: Deferred[Any]) -> None:
        self._answer = None
        self._cancel()

    def _cancel(self) -> None:
        if not self._cancelled:  # once: a second time would cut off what it does about the first
            self._cancelled = True
            assert self._run is not None
            self._run.cancel()

    def end(self) -> Deferred[Any]:
        """In the reactor's thread: cancel the coroutine, wherever it is.

        :returns: a Deferred that fires with ``None`` when it has ended, or with what it raised.
        """
        ended: Deferred[Any] = Deferred()
        if not self.is_open:
            ended.callback(None)
            return ended
        self._enders.append(ended)
        if self._answer is not None:
            self._answer.cancel()
        self._cancel()
        return ended.addErrback(lambda failure: failure.trap(CancelledError) and None)


class BlockingIterator(Generic[T]):
    """An iterator over an async one: what a callable decorated with :func:`blocking_from_greenlet`
    returns in place of an async generator.

    Each step waits in the calling greenlet or thread. It can be closed, and is a context manager
    that closes it::

        with events(url) as stream:
            for event in stream:
                ...

    All steps, and the end, run in one context: that of the first step.
    """

    __slots__ = ("__weakref__", "_busy", "_closed", "_talk", "_timeout")

    def __init__(self, source: AsyncIterator[T], timeout: float | None) -> None:
        self._talk = Talk(lambda say: _iterate(say, source))
        self._timeout = timeout
        self._busy = self._closed = False

    def __iter__(self) -> BlockingIterator[T]:
        return self

    def __next__(self) -> T:
        """The next item.

        :raises StopIteration: there are no more, or it was closed, or a step has failed.
        :raises CallTimeout: the step took longer than `timeout`: it was cancelled.
        :raises WouldDeadlock: this is the reactor's own greenlet.
        :raises ValueError: somebody else waits for its next item.
        :raises BaseException: whatever the source raised.
        """
        if self._busy:
            raise ValueError("This iterator is waiting for its next item already")
        if self._closed:
            raise StopIteration
        self._busy = True
        item = _END
        try:
            item = call_and_wait(self._talk.ask, self._timeout)
        finally:
            self._busy = False
            self._closed = item is _END
        if item is _END:
            raise StopIteration
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the source, a step that runs included, and wait for that.

        :raises CallTimeout: it took longer than `timeout`.
        :raises WouldDeadlock: this is the reactor's own greenlet.
        :raises BaseException: whatever the source raised.
        """
        self._closed = True
        if self._talk.is_open:
            call_and_wait(self._talk.end, self._timeout)

    def __enter__(self) -> BlockingIterator[T]:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Nobody may wait here, wherever that is: the source is closed in the reactor's greenlet.
        talk: Talk | None = getattr(self, "_talk", None)
        if talk is not None and talk.is_open:
            installed_reactor().callFromThread(_end_unheard, talk)


def _end_unheard(talk: Talk) -> None:
    talk.end().addErrback(
        lambda failure: _log.failure("Closing failed, and nobody waited for it", failure)
    )


async def _iterate(say: Say, source: AsyncIterator[Any]) -> Any:
    try:
        while True:
            await say(await source.__anext__())
    except StopAsyncIteration:
        return _END
    finally:
        aclose = getattr(source, "aclose", None)
        if aclose is not None:
            await aclose()


class BlockingContext(AbstractContextManager[T, "bool | None"]):
    """A ``with`` block over an async context manager; both ends run in one context."""

    def __init__(self, manager: AbstractAsyncContextManager[T, Any], timeout: float | None) -> None:
        self._talk = Talk(lambda say: _manage(say, manager))
        self._timeout = timeout

    def __enter__(self) -> T:
        return call_and_wait(self._talk.ask, self._timeout)  # type: ignore[no-any-return]

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        how = exc_type, exc, tb
        return call_and_wait(lambda: self._talk.ask(how), self._timeout)  # type: ignore[no-any-return]


async def _manage(say: Say, manager: AbstractAsyncContextManager[Any, Any]) -> Any:
    leave = type(manager).__aexit__
    value = await type(manager).__aenter__(manager)
    try:
        how = await say(value)
    except BaseException:  # whoever wanted to enter is gone
        await leave(manager, *sys.exc_info())
        raise
    return await leave(manager, *how)


def as_blocking(result: Any, timeout: float | None) -> Any:
    """`result`, for blocking code: an async iterator, or else an async context manager, becomes
    a plain one; anything else stays."""
    kind = type(result)
    if hasattr(kind, "__anext__"):
        return BlockingIterator(result, timeout)
    if hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__"):
        return BlockingContext(result, timeout)
    return result


class Blocking(Behaviour):
    """:func:`blocking_from_greenlet`."""

    decorator = "blocking_from_greenlet"

    def __init__(self, timeout: float | None) -> None:
        check_seconds("timeout=...", timeout)
        self.timeout = timeout

    @property
    def options(self) -> dict[str, Any]:
        return {"timeout": self.timeout}

    def wrapper(
        self,
        wrapped: Callable[..., Any],
        instance: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        def call() -> Any:
            result = wrapped(*args, **kwargs)
            # A proxied method's call is both; what is returned from here is waited for.
            return result if is_deferred(result) else as_blocking(result, self.timeout)

        return call_and_wait(call, self.timeout)
