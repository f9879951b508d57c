"""The decorators: a blocking function becomes one that returns a Deferred, and the reverse."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from functools import partial
from types import MethodType
from typing import Any, ParamSpec, TypeVar, overload

import wrapt
from twisted.internet.defer import Deferred

from .admission import Pool
from .bridge import call_and_wait
from .policy import OnCancel, Timeouts, as_timeouts, check_on_cancel, check_seconds
from .pool import default_pool

P = ParamSpec("P")
T = TypeVar("T")

PoolChoice = Pool | Callable[[Any], Pool] | None
"""A pool; or what gets the instance that a method is called on (``None`` for a function) and
returns one; or ``None`` for the default pool."""


class _GreenDeferred:
    """What one decorated callable does when it is called, and with which options."""

    def __init__(self, pool: PoolChoice, timeout: float | Timeouts | None, on_cancel: OnCancel):
        if pool is not None and not isinstance(pool, Pool) and not callable(pool):
            raise TypeError(
                "pool=... must be a pool, a callable that returns one, or None for the default "
                f"pool, not {pool!r}"
            )
        check_on_cancel("on_cancel=...", on_cancel)
        self.timeouts = as_timeouts("timeout=...", timeout)
        self.pool = pool
        self.on_cancel: OnCancel = on_cancel
        self._fixed = default_pool if pool is None else pool if isinstance(pool, Pool) else None
        if self._fixed is not None:
            self._fixed.check_timeouts(self.timeouts)

    def wrapper(
        self,
        wrapped: Callable[..., Any],
        instance: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Deferred[Any]:
        pool = self._fixed
        if pool is None:
            pool = self._choose(wrapped, instance)
        return pool._call(wrapped, args, kwargs, self.timeouts, self.on_cancel)

    def _choose(self, wrapped: Callable[..., Any], instance: Any) -> Pool:
        assert callable(self.pool)
        pool = self.pool(instance)
        if not isinstance(pool, Pool):
            raise TypeError(
                f"The pool= of {wrapped!r} was called with {instance!r} and must return a pool, "
                f"not {pool!r}"
            )
        pool.check_timeouts(self.timeouts)
        return pool


class _Blocking:
    """The same for the other direction."""

    def __init__(self, timeout: float | None) -> None:
        check_seconds("timeout=...", timeout)
        self.timeout = timeout

    def wrapper(
        self,
        wrapped: Callable[..., Any],
        instance: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        return call_and_wait(partial(wrapped, *args, **kwargs), self.timeout)


class _Decorated(wrapt.FunctionWrapper):  # type: ignore[type-arg]
    """A decorated callable: wrapt keeps its signature, its name, and how it binds.

    Like a function, it is copied as itself, and pickled by its qualified name.
    """

    def __copy__(self):  # type: ignore[no-untyped-def]
        return self

    def __deepcopy__(self, memo):  # type: ignore[no-untyped-def]
        return self

    def __reduce_ex__(self, protocol):  # type: ignore[no-untyped-def]
        return self.__qualname__


class _SaysItIsSync:
    """An ``async def`` that was made blocking: ``inspect`` must not take it for one still.

    That looks at the flags of ``__code__``, of a method's ``__func__`` too. Without annotations
    here: those of the decorated function would be hidden by them.
    """

    @property
    def __code__(self):  # type: ignore[no-untyped-def]
        wrapped: Any = self.__wrapped__  # type: ignore[attr-defined]
        code = wrapped.__code__
        return code.replace(co_flags=code.co_flags & ~inspect.CO_COROUTINE)

    @property
    def __func__(self):  # type: ignore[no-untyped-def]
        wrapped: Any = self.__wrapped__  # type: ignore[attr-defined]
        return _MadeSync(wrapped.__func__, self._self_wrapper)  # type: ignore[attr-defined]


class _BoundMadeSync(_SaysItIsSync, wrapt.BoundFunctionWrapper):  # type: ignore[type-arg]
    pass


class _MadeSync(_SaysItIsSync, _Decorated):
    __bound_function_wrapper__ = _BoundMadeSync


def _check_callable(what: str, func: Any) -> None:
    if not callable(func) and not isinstance(func, classmethod):
        raise TypeError(f"{what} decorates something to call, not {func!r}")


def _is_async(func: Any) -> bool:
    while isinstance(func, partial):
        func = func.func
    if isinstance(func, (classmethod, staticmethod)):
        func = func.__func__
    return any(
        inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f)
        for f in (func, type(func).__call__)
    )


def _apply(behaviour: _GreenDeferred | _Blocking, func: Any) -> Any:
    return (_MadeSync if _is_async(func) else _Decorated)(func, behaviour.wrapper)


@overload
def green_deferred(func: Callable[P, Deferred[T]], /) -> Callable[P, Deferred[T]]: ...
@overload
def green_deferred(func: Callable[P, T], /) -> Callable[P, Deferred[T]]: ...
@overload
def green_deferred(
    *,
    pool: PoolChoice = None,
    timeout: float | Timeouts | None = None,
    on_cancel: OnCancel = "kill",
) -> Callable[[Callable[P, T]], Callable[P, Deferred[T]]]: ...
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
        (``None`` where there is none) and returns one. ``None`` is the default pool of 100.
    :param timeout: seconds from the call to its result, or a :class:`Timeouts`.
    :param on_cancel: what ``Deferred.cancel()`` does to a call that runs: ``"kill"`` ends it with
        a ``gevent.GreenletExit``, so that its ``finally`` blocks run; ``"abandon"`` lets it
        finish unheard. A queued call never starts.
    :returns: the decorated callable. Its Deferred fires in the reactor's greenlet, with the
        value, or with a Failure with the original exception and traceback (``SystemExit`` and
        ``KeyboardInterrupt`` raised by the function included); with :class:`CallTimeout`,
        :class:`PoolFull`, :class:`PoolClosed` or Twisted's ``CancelledError``. A rejection and
        your own ``cancel()`` fire where they are called.
    :raises TypeError: `func` is not callable, or is an ``async def``; an option has a wrong type.
    :raises ValueError: an option has a value that is not allowed.

    Calling the result raises :class:`GreendeferError` where no reactor is installed, or in another
    thread than the reactor's.
    """
    green = _GreenDeferred(pool, timeout, on_cancel)

    def decorate(func: Any) -> Any:
        _check_callable("green_deferred", func)
        if _is_async(func):
            raise TypeError(
                f"{func!r} is async already: it would return a coroutine that nobody awaits. Use "
                "Deferred.fromCoroutine(f()) to get a Deferred, or @blocking_from_greenlet to "
                "call it from blocking code."
            )
        return _apply(green, func)

    return decorate if func is None else decorate(func)


_UNCHANGED: Any = object()


def with_options(
    decorated: Callable[P, T],
    /,
    *,
    pool: PoolChoice = _UNCHANGED,
    timeout: float | Timeouts | None = _UNCHANGED,
    on_cancel: OnCancel = _UNCHANGED,
    **unknown: Any,
) -> Callable[P, T]:
    """The same decorated callable with other options; those not named stay as they are.

    ::

        with_options(fetch, timeout=1)(url)
        with_options(client.get, timeout=1)("k")

    :param decorated: what :func:`green_deferred` returned, also as a bound method; or what
        :func:`blocking_from_greenlet` returned, which has the option `timeout` alone.
    :returns: another callable; `decorated` itself is not changed.
    :raises TypeError: `decorated` is not decorated, there is no such option, or an option has a
        wrong type.
    :raises ValueError: an option has a value that is not allowed.
    """
    if type(decorated) is MethodType:
        # A classmethod around a decorated function, since Python 3.13: a plain bound method.
        given = {"pool": pool, "timeout": timeout, "on_cancel": on_cancel, **unknown}
        changed = with_options(decorated.__func__, **given)
        return MethodType(changed, decorated.__self__)
    behaviour = getattr(getattr(decorated, "_self_wrapper", None), "__self__", None)
    if isinstance(behaviour, _GreenDeferred):
        new: Any = _GreenDeferred
        allowed: dict[str, Any] = {
            "pool": behaviour.pool,
            "timeout": behaviour.timeouts,
            "on_cancel": behaviour.on_cancel,
        }
    elif isinstance(behaviour, _Blocking):
        allowed = {"timeout": behaviour.timeout}
        new = _Blocking
    else:
        raise TypeError(
            "with_options(decorated, ...) needs a callable that was decorated with "
            f"@green_deferred, not {decorated!r}"
        )
    given = {"pool": pool, "timeout": timeout, "on_cancel": on_cancel, **unknown}
    given = {name: value for name, value in given.items() if value is not _UNCHANGED}
    for name in given:
        if name not in allowed:
            raise TypeError(
                f"{decorated!r} has no option {name!r}; its options are {', '.join(allowed)}"
            )
    wrapped: Any = decorated.__wrapped__  # type: ignore[attr-defined]
    result: Callable[P, T] = _apply(new(**{**allowed, **given}), wrapped)
    return result


def defer_to_greenlet(f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    """Run ``f(*args, **kwargs)`` in a greenlet of the default pool.

    :returns: a Deferred of its result, which fires in the reactor's greenlet.
    :raises TypeError: `f` is not callable.
    :raises GreendeferError: no reactor is installed, or this is not its thread.
    """
    return default_pool.submit(f, *args, **kwargs)


@overload
def blocking_from_greenlet(func: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, T]: ...
@overload
def blocking_from_greenlet(func: Callable[P, Deferred[T]], /) -> Callable[P, T]: ...
@overload
def blocking_from_greenlet(func: Callable[P, T], /) -> Callable[P, T]: ...
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

    :param func: returns a Deferred, a coroutine (an ``async def`` may be decorated), an asyncio
        future (on an asyncio reactor) or a plain value.
    :param timeout: seconds after which what is waited for is cancelled; ``None`` is no limit.
    :returns: the decorated callable. It returns the value, or raises the original exception, with
        the traceback from where it was raised to where it was waited for.
    :raises TypeError: `func` is not callable, or `timeout` not a number.
    :raises ValueError: `timeout` is negative or NaN.

    Calling the result raises :class:`CallTimeout`; :class:`WouldDeadlock` in the reactor's own
    greenlet (in its thread, if it is not green); and :class:`GreendeferError` where no reactor is
    installed, or it has stopped.
    """
    blocking = _Blocking(timeout)

    def decorate(func: Any) -> Any:
        _check_callable("blocking_from_greenlet", func)
        return _apply(blocking, func)

    return decorate if func is None else decorate(func)


class _BlockingDecorator:
    """The type of ``blocking_from_greenlet(timeout=...)``; nothing is ever an instance of it."""

    @overload
    def __call__(self, func: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, T]: ...
    @overload
    def __call__(self, func: Callable[P, Deferred[T]], /) -> Callable[P, T]: ...
    @overload
    def __call__(self, func: Callable[P, T], /) -> Callable[P, T]: ...
    def __call__(self, func: Any, /) -> Any:
        raise NotImplementedError
