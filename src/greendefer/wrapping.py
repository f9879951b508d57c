"""How a decorated callable is made: what wrapt keeps of it, and which options it has."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import wrapt
from twisted.internet.defer import Deferred

from .admission import Pool
from .call import Call
from .errors import shown
from .policy import OnCancel, Timeouts, as_timeouts, check_on_cancel
from .pool import default_pool

PoolChoice = Pool | Callable[[Any], Pool] | None
"""A pool; or what gets the instance that a method is called on (``None`` for a function) and
returns one; or ``None`` for the default pool."""


class Behaviour:
    """What one decorated callable does when it is called.

    :cvar decorator: the name of what decorates so.
    """

    decorator: str

    @property
    def options(self) -> dict[str, Any]:
        """Its options by name, as :meth:`with_options` takes them."""
        raise NotImplementedError

    def with_options(self, options: dict[str, Any]) -> Behaviour:
        """The same with other options: all of them are given."""
        return type(self)(**options)

    def wrapper(
        self,
        wrapped: Callable[..., Any],
        instance: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """What wrapt calls instead of the callable."""
        raise NotImplementedError


class OnAPool(Behaviour):
    """One whose calls run on a pool.

    :raises TypeError: an option has a wrong type.
    :raises ValueError: an option has a value that is not allowed.
    """

    def __init__(self, pool: PoolChoice, timeout: float | Timeouts | None) -> None:
        _check_pool(pool)
        self.timeouts: Timeouts | None = as_timeouts("timeout=...", timeout)
        self.pool = pool
        fixed = default_pool if pool is None else pool if isinstance(pool, Pool) else None
        self.fixed_pool: Pool | None = fixed
        if fixed is not None:
            fixed.check_timeouts(self.timeouts)

    @property
    def options(self) -> dict[str, Any]:
        return {"pool": self.pool, "timeout": self.timeouts}

    def choose(self, wrapped: Callable[..., Any], instance: Any) -> Pool:
        """The pool for a call of `wrapped` on `instance`.

        :raises TypeError: the callable that should return one has not.
        """
        if self.fixed_pool is not None:
            return self.fixed_pool
        assert callable(self.pool)
        pool = self.pool(instance)
        if not isinstance(pool, Pool):
            raise TypeError(
                f"The pool= of {shown(wrapped)} was called with {shown(instance)} and must "
                "return a pool, "
                f"not {shown(pool)}"
            )
        pool.check_timeouts(self.timeouts)
        return pool


def _check_pool(pool: Any) -> None:
    """Refuse as ``pool=`` what no call could get a pool from.

    :raises TypeError: `pool` is neither a pool, nor something to call with an instance, nor None.
    """
    if pool is None or isinstance(pool, Pool):
        return
    is_class = isinstance(pool, type) and issubclass(pool, Pool)
    if is_class or not callable(pool):
        hint = ""
        if is_class:
            hint = ", which is the class: make a pool of it"
        elif isinstance(pool, Executor):
            hint = ": make a pool of it, greendefer.ExecutorPool(executor, size)"
        raise TypeError(
            "pool=... must be a pool, a callable that returns one, or None for the default "
            f"pool, not {shown(pool)}{hint}"
        )
    if type(pool) is FunctionType:
        code = pool.__code__
        if code.co_argcount == 1 and not code.co_kwonlyargcount:
            return  # as nearly all: with_options(), which comes here each time, needs no more
    try:
        signature = inspect.signature(pool)
    except (TypeError, ValueError):  # C code need not have one
        return
    try:
        signature.bind(None)
    except TypeError as e:
        raise TypeError(
            f"pool={shown(pool)} is called with one argument, the instance (None where there is "
            f"none), which it can't take: {e}"
        ) from None


class ReturnsDeferred(OnAPool):
    """:func:`green_deferred`."""

    decorator = "green_deferred"

    def __init__(self, pool: PoolChoice, timeout: float | Timeouts | None, on_cancel: OnCancel):
        super().__init__(pool, timeout)
        check_on_cancel("on_cancel=...", on_cancel)
        self.on_cancel: OnCancel = on_cancel

    @property
    def options(self) -> dict[str, Any]:
        return {**super().options, "on_cancel": self.on_cancel}

    def wrapper(
        self,
        wrapped: Callable[..., Any],
        instance: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Deferred[Any]:
        pool = self.fixed_pool
        if pool is None:
            pool = self.choose(wrapped, instance)
        return pool._admit(Call(pool, wrapped, args, kwargs, self.timeouts, self.on_cancel))


if TYPE_CHECKING:
    _FunctionWrapper = wrapt.FunctionWrapper[..., Any]
else:
    _FunctionWrapper = wrapt.FunctionWrapper


class Decorated(_FunctionWrapper):
    """A decorated callable: wrapt keeps its signature, its name, and how it binds.

    Like a function, it is copied as itself, and pickled by its qualified name.
    """

    def __repr__(self) -> str:
        behaviour = behaviour_of(self)
        decorator = behaviour.decorator if behaviour is not None else type(self).__name__
        return f"<{decorator} of {self.__wrapped__!r}>"

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
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
        return code.replace(
            co_flags=code.co_flags & ~(inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR)
        )

    @property
    def __func__(self):  # type: ignore[no-untyped-def]
        wrapped: Any = self.__wrapped__  # type: ignore[attr-defined]
        return _MadeSync(wrapped.__func__, self._self_wrapper)  # type: ignore[attr-defined]


class _BoundMadeSync(_SaysItIsSync, wrapt.BoundFunctionWrapper):  # type: ignore[type-arg]
    pass


class _MadeSync(_SaysItIsSync, Decorated):
    __bound_function_wrapper__ = _BoundMadeSync


def check_callable(what: str, func: Any) -> None:
    """Refuse what nobody can call.

    :raises TypeError: `func` is not callable.
    """
    if callable(func) or isinstance(func, classmethod):
        return
    hint = ""
    if isinstance(func, Pool):
        hint = f". Options have names: @{what}(pool=...)"
    elif isinstance(func, (int, float, Timeouts)):
        hint = f". Options have names: @{what}(timeout=...)"
    elif isinstance(func, property):
        hint = f". Write @property above @{what}"
    raise TypeError(f"{what} decorates something to call, not {shown(func)}{hint}")


def is_async(func: Any) -> bool:
    """Is `func`, or what it stands for, an ``async def``?"""
    return any(
        inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in _functions(func)
    )


def is_generator(func: Any) -> bool:
    """Is `func`, or what it stands for, a plain generator function?"""
    return any(inspect.isgeneratorfunction(f) for f in _functions(func))


def _functions(func: Any) -> tuple[Any, Any]:
    """The function that `func` stands for, or else the one that calling it calls."""
    while isinstance(func, partial):
        func = func.func
    if isinstance(func, (classmethod, staticmethod)):
        func = func.__func__
    return func, type(func).__call__


def apply(behaviour: Behaviour, func: Any) -> Any:
    """`func`, decorated."""
    return (_MadeSync if is_async(func) else Decorated)(func, behaviour.wrapper)


def behaviour_of(decorated: Any) -> Behaviour | None:
    """The behaviour of what :func:`apply` returned, also when it is bound; else ``None``."""
    behaviour = getattr(getattr(decorated, "_self_wrapper", None), "__self__", None)
    return behaviour if isinstance(behaviour, Behaviour) else None
