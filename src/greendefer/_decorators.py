"""The decorators: a blocking function becomes one that returns a Deferred, and the reverse."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import MethodType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from twisted.internet.defer import Deferred

from ._behaviours import PoolChoice, ReturnsDeferred
from ._errors import shown
from ._policy import OnCancel, Timeouts, check_is_callable
from ._pool import default_pool
from ._wrapping import apply, behaviour_of, check_callable, is_async, is_generator

if TYPE_CHECKING:
    from ._blocking import BlockingIterator
    from ._iterators import GreenIterator

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")


class _GreenDecorator(Protocol):
    """What ``green_deferred(...)`` with options returns."""

    @overload
    def __call__(
        self, func: classmethod[C, P, Deferred[T]], /
    ) -> classmethod[C, P, Deferred[T]]: ...
    @overload
    def __call__(self, func: classmethod[C, P, T], /) -> classmethod[C, P, Deferred[T]]: ...
    @overload
    def __call__(self, func: staticmethod[P, Deferred[T]], /) -> staticmethod[P, Deferred[T]]: ...
    @overload
    def __call__(self, func: staticmethod[P, T], /) -> staticmethod[P, Deferred[T]]: ...
    @overload
    def __call__(self, func: Callable[P, Deferred[T]], /) -> Callable[P, Deferred[T]]: ...
    @overload
    def __call__(self, func: Callable[P, T], /) -> Callable[P, Deferred[T]]: ...


@overload
def green_deferred(func: classmethod[C, P, Deferred[T]], /) -> classmethod[C, P, Deferred[T]]: ...
@overload
def green_deferred(func: classmethod[C, P, T], /) -> classmethod[C, P, Deferred[T]]: ...
@overload
def green_deferred(func: staticmethod[P, Deferred[T]], /) -> staticmethod[P, Deferred[T]]: ...
@overload
def green_deferred(func: staticmethod[P, T], /) -> staticmethod[P, Deferred[T]]: ...
@overload
def green_deferred(
    func: Callable[P, Deferred[T]],
    /,
    *,
    pool: PoolChoice = None,
    timeout: float | Timeouts | None = None,
    on_cancel: OnCancel = "kill",
) -> Callable[P, Deferred[T]]: ...
@overload
def green_deferred(
    func: Callable[P, T],
    /,
    *,
    pool: PoolChoice = None,
    timeout: float | Timeouts | None = None,
    on_cancel: OnCancel = "kill",
) -> Callable[P, Deferred[T]]: ...
@overload
def green_deferred(
    *,
    pool: PoolChoice = None,
    timeout: float | Timeouts | None = None,
    on_cancel: OnCancel = "kill",
) -> _GreenDecorator: ...
def green_deferred(
    func: Any = None,
    /,
    *,
    pool: PoolChoice = None,
    timeout: float | Timeouts | None = None,
    on_cancel: OnCancel = "kill",
) -> Any:
    """Decorator: the blocking callable runs in a greenlet, and calling it returns a Deferred.

    ::

        @green_deferred(pool=http, timeout=5)
        def fetch(url):
            return requests.get(url).json()

    For functions, methods, ``classmethod`` and ``staticmethod`` (in either order), callable
    objects, ``functools.partial`` and builtins. Name, signature, docstring and annotations stay.

    The call sees the caller's ``contextvars`` and Twisted log context; what it sets stays its own.
    If it returns a Deferred, that is waited for (its slot is free meanwhile).

    :param pool: where it runs: a :class:`GreenPool`, or a callable that gets the instance
        (``None`` where there is none, and under ``@property``, which Python does not bind) and
        returns one. ``None`` is the default pool of 100.
    :param timeout: seconds from the call to its result, or a :class:`Timeouts`.
    :param on_cancel: what ``Deferred.cancel()`` does to a call that runs: ``"kill"`` ends it with
        a ``gevent.GreenletExit``, so that its ``finally`` blocks run; ``"abandon"`` lets it
        finish unheard. So it is with a Deferred that the function has returned: that is cancelled,
        or left to fire unheard. A queued call never starts.
    :returns: the decorated callable. Its Deferred fires in the reactor's greenlet, with the
        value, or with a Failure with the original exception and traceback (``SystemExit`` and
        ``KeyboardInterrupt`` raised by the function included); with :class:`CallTimeout`,
        :class:`PoolFull`, :class:`PoolClosed` or Twisted's ``CancelledError``. A rejection and
        your own ``cancel()`` fire where they are called.
    :raises TypeError: `func` is not callable, is an ``async def``, or is a generator function
        (:func:`green_iterator` is for these); an option has a wrong type.
    :raises ValueError: an option has a value that is not allowed.

    Calling the result raises :class:`GreendeferError` where no reactor is installed, or in another
    thread than the reactor's. Where `pool` is a callable it raises what that raises; TypeError, if
    that returns no pool; ValueError, if it returns one that can't do what `timeout` says.
    """
    green = ReturnsDeferred(pool, timeout, on_cancel)

    def decorate(func: Any) -> Any:
        check_callable("green_deferred", func)
        if is_async(func):
            raise TypeError(
                f"{shown(func)} is async already: it would return a coroutine that nobody "
                "awaits. Use Deferred.fromCoroutine(f()) to get a Deferred, or "
                "@blocking_from_greenlet to call it from blocking code."
            )
        if is_generator(func):
            raise TypeError(
                f"{shown(func)} is a generator function: it would return at once, and its body "
                "run, and block, where somebody iterates over that. Use @green_iterator."
            )
        return apply(green, func)

    return decorate if func is None else decorate(func)


class _IteratorDecorator(Protocol):
    """What ``green_iterator(...)`` with options returns."""

    @overload
    def __call__(
        self, func: classmethod[C, P, Iterable[T]], /
    ) -> classmethod[C, P, GreenIterator[T]]: ...
    @overload
    def __call__(
        self, func: staticmethod[P, Iterable[T]], /
    ) -> staticmethod[P, GreenIterator[T]]: ...
    @overload
    def __call__(self, func: Callable[P, Iterable[T]], /) -> Callable[P, GreenIterator[T]]: ...


@overload
def green_iterator(
    func: classmethod[C, P, Iterable[T]], /
) -> classmethod[C, P, GreenIterator[T]]: ...
@overload
def green_iterator(func: staticmethod[P, Iterable[T]], /) -> staticmethod[P, GreenIterator[T]]: ...
@overload
def green_iterator(
    func: Callable[P, Iterable[T]],
    /,
    *,
    pool: PoolChoice = None,
    timeout: float | Timeouts | None = None,
    prefetch: int = 0,
) -> Callable[P, GreenIterator[T]]: ...
@overload
def green_iterator(
    *,
    pool: PoolChoice = None,
    timeout: float | Timeouts | None = None,
    prefetch: int = 0,
) -> _IteratorDecorator: ...
def green_iterator(
    func: Any = None,
    /,
    *,
    pool: PoolChoice = None,
    timeout: float | Timeouts | None = None,
    prefetch: int = 0,
) -> Any:
    """Decorator: the generator function, or what returns an iterable, becomes one that returns an
    async iterator that is also an async context manager.

    ::

        @green_iterator(pool=files, prefetch=100)
        def lines(path):
            with open(path) as f:
                yield from f

        async with lines("/var/log/syslog") as log:
            async for line in log:
                print(line)

    One iteration has one worker and one slot of its pool, from its first step to its close:
    calling `func`, ``iter()``, each ``next()`` and ``close()`` run there, in one copy of the
    caller's ``contextvars``. In the pool's statistics it is one call.

    Whatever ends it (the last item, an error, ``aclose()``, leaving ``async with``, cancelling the
    wait for an item, a timeout, closing the pool), the source is closed once: ``close()`` is called
    on the iterator, and on what `func` returned if that is something else, where they have one.
    A step that runs is ended first, as a cancelled call is. After a bare ``break`` that happens
    when Python finds the iterator to be garbage: at once in CPython, unless a traceback or a
    cycle keeps it, but nobody can wait for it. Use ``async with`` where that matters.

    :param pool: where it runs: a pool with workers, or a callable that gets the instance
        (``None`` where there is none) and returns one. ``None`` is the default pool of 100.
    :param timeout: seconds from asking for an item to having it, or a :class:`Timeouts`:
        `queued` is the wait for a slot, before the first item; `running` one step of the source,
        while the consumer waits. The time that the consumer takes is not counted. It fails with
        :class:`CallTimeout`, and the iteration is over.
    :param prefetch: how many items the source may be ahead of the consumer. With ``0`` it is
        stepped only when the consumer asks; it is never further ahead than this.
    :returns: the decorated callable. It returns a :class:`GreenIterator`, at once: nothing runs
        before the first item is asked for. What the source raises comes out where that is awaited.
    :raises TypeError: `func` is not callable, or is async already; an option has a wrong type.
    :raises ValueError: an option has a value that is not allowed.
    """
    from ._iterators import Iterates

    iterates = Iterates(pool, timeout, prefetch)

    def decorate(func: Any) -> Any:
        check_callable("green_iterator", func)
        if is_async(func):
            raise TypeError(f"{shown(func)} is async already: iterate over what it returns")
        return apply(iterates, func)

    return decorate if func is None else decorate(func)


_UNCHANGED: Any = object()


@overload
def with_options(
    decorated: Callable[P, GreenIterator[T]],
    /,
    *,
    pool: PoolChoice = ...,
    timeout: float | Timeouts | None = ...,
    prefetch: int = ...,
) -> Callable[P, GreenIterator[T]]: ...
@overload
def with_options(
    decorated: Callable[P, T],
    /,
    *,
    pool: PoolChoice = ...,
    timeout: float | Timeouts | None = ...,
    on_cancel: OnCancel = ...,
) -> Callable[P, T]: ...
def with_options(
    decorated: Any,
    /,
    *,
    pool: PoolChoice = _UNCHANGED,
    timeout: float | Timeouts | None = _UNCHANGED,
    on_cancel: OnCancel = _UNCHANGED,
    **others: Any,
) -> Any:
    """The same decorated callable with other options; those not named stay as they are.

    ::

        with_options(fetch, timeout=1)(url)
        with_options(client.get, timeout=1)("k")

    :param decorated: what :func:`green_deferred` returned, also as a bound method, or a method of
        a :func:`green_proxy`; what :func:`green_iterator` returned, which has `prefetch` and no
        `on_cancel`; or what :func:`blocking_from_greenlet` returned, which has `timeout` alone.
    :returns: another callable; `decorated` itself is not changed.
    :raises TypeError: `decorated` is not decorated, there is no such option, or an option has a
        wrong type.
    :raises ValueError: an option has a value that is not allowed.
    """
    given = {"pool": pool, "timeout": timeout, "on_cancel": on_cancel, **others}
    given = {name: value for name, value in given.items() if value is not _UNCHANGED}
    if type(decorated) is MethodType:
        # A classmethod around a decorated function, since Python 3.13: a plain bound method.
        return MethodType(with_options(decorated.__func__, **given), decorated.__self__)
    behaviour = behaviour_of(decorated)
    if behaviour is None:
        from ._iterators import GreenIterator

        hint = ""
        if isinstance(decorated, (Deferred, GreenIterator)):
            hint = ", which a call has returned. Write with_options(f, timeout=1)(x)"
        raise TypeError(
            "with_options(decorated, ...) needs a callable that greendefer has decorated, with "
            f"@green_deferred for example, not {shown(decorated)}{hint}"
        )
    options = behaviour.options
    for name in given:
        if name not in options:
            raise TypeError(
                f"{shown(decorated)} has no option {shown(name)}; its options are "
                f"{', '.join(options)}"
            )
    return apply(behaviour.with_options({**options, **given}), decorated.__wrapped__)


def defer_to_greenlet(f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    """Run ``f(*args, **kwargs)`` in a greenlet of the default pool.

    :returns: a Deferred of its result, which fires in the reactor's greenlet; or it fails with
        what `f` raised, or with :class:`PoolClosed`. Cancelling it kills the call.
    :raises TypeError: `f` is not callable.
    :raises GreendeferError: no reactor is installed, or this is not its thread.
    """
    check_is_callable("defer_to_greenlet(f, ...)", f)
    return default_pool.submit(f, *args, **kwargs)


class _BlockingDecorator(Protocol):
    """What ``blocking_from_greenlet(timeout=...)`` returns."""

    @overload
    def __call__(
        self, func: classmethod[C, P, Coroutine[Any, Any, T]], /
    ) -> classmethod[C, P, T]: ...
    @overload
    def __call__(self, func: classmethod[C, P, Deferred[T]], /) -> classmethod[C, P, T]: ...
    @overload
    def __call__(self, func: staticmethod[P, Coroutine[Any, Any, T]], /) -> staticmethod[P, T]: ...
    @overload
    def __call__(self, func: staticmethod[P, Deferred[T]], /) -> staticmethod[P, T]: ...
    @overload
    def __call__(self, func: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, T]: ...
    @overload
    def __call__(self, func: Callable[P, Deferred[T]], /) -> Callable[P, T]: ...
    @overload
    def __call__(
        self, func: Callable[P, AsyncIterator[T]], /
    ) -> Callable[P, BlockingIterator[T]]: ...
    @overload
    def __call__(
        self, func: Callable[P, AbstractAsyncContextManager[T, Any]], /
    ) -> Callable[P, AbstractContextManager[T, bool | None]]: ...
    @overload
    def __call__(self, func: Callable[P, T], /) -> Callable[P, T]: ...


@overload
def blocking_from_greenlet(
    func: classmethod[C, P, Coroutine[Any, Any, T]], /
) -> classmethod[C, P, T]: ...
@overload
def blocking_from_greenlet(func: classmethod[C, P, Deferred[T]], /) -> classmethod[C, P, T]: ...
@overload
def blocking_from_greenlet(
    func: staticmethod[P, Coroutine[Any, Any, T]], /
) -> staticmethod[P, T]: ...
@overload
def blocking_from_greenlet(func: staticmethod[P, Deferred[T]], /) -> staticmethod[P, T]: ...
@overload
def blocking_from_greenlet(
    func: Callable[P, Coroutine[Any, Any, T]], /, *, timeout: float | None = None
) -> Callable[P, T]: ...
@overload
def blocking_from_greenlet(
    func: Callable[P, Deferred[T]], /, *, timeout: float | None = None
) -> Callable[P, T]: ...
@overload
def blocking_from_greenlet(
    func: Callable[P, AsyncIterator[T]], /, *, timeout: float | None = None
) -> Callable[P, BlockingIterator[T]]: ...
@overload
def blocking_from_greenlet(
    func: Callable[P, AbstractAsyncContextManager[T, Any]], /, *, timeout: float | None = None
) -> Callable[P, AbstractContextManager[T, bool | None]]: ...
@overload
def blocking_from_greenlet(
    func: Callable[P, T], /, *, timeout: float | None = None
) -> Callable[P, T]: ...
@overload
def blocking_from_greenlet(*, timeout: float | None = None) -> _BlockingDecorator: ...
def blocking_from_greenlet(func: Any = None, /, *, timeout: float | None = None) -> Any:
    """Decorator: calling the result waits for the Deferred that `func` returns.

    ::

        @blocking_from_greenlet
        def lookup(key):
            return twisted_client.get(key)

    It may be called from any greenlet but the reactor's own, and from any thread. `func` itself
    runs in the reactor's thread: at once, in the calling greenlet, where that is its thread; else
    in the reactor's greenlet, while the calling thread waits (if that has a hub of its own, its
    other greenlets go on).

    An async generator function becomes one that returns a plain iterator, each step of which
    waits; what returns an async context manager, one that returns a plain one::

        @blocking_from_greenlet
        async def events(url):
            async with connect(url) as connection:
                async for event in connection:
                    yield event

        for event in events(url): ...

    :param func: returns a Deferred, a coroutine (an ``async def`` may be decorated), an asyncio
        future (on an asyncio reactor), an async iterator, an async context manager or a plain
        value.
    :param timeout: seconds after which what is waited for is cancelled; ``None`` is no limit. It
        counts for each step of an iterator, and for each end of a ``with`` block.
    :returns: the decorated callable. It returns the value, or raises the original exception, with
        the traceback from where it was raised to where it was waited for. In place of an async
        iterator it returns a :class:`BlockingIterator`, which can be closed.
    :raises TypeError: `func` is not callable, or `timeout` not a number.
    :raises ValueError: `timeout` is negative or NaN.

    Calling the result raises :class:`CallTimeout`; :class:`WouldDeadlock` in the reactor's own
    greenlet (in its thread, if it is not green); and :class:`GreendeferError` where no reactor is
    installed, or it has stopped.
    """
    from ._blocking import Blocking

    blocking = Blocking(timeout)

    def decorate(func: Any) -> Any:
        check_callable("blocking_from_greenlet", func)
        return apply(blocking, func)

    return decorate if func is None else decorate(func)
