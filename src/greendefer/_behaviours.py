"""What a decorated callable does when it is called. Others than :func:`green_deferred` have theirs
beside what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import Executor
from types import FunctionType
from typing import Any

from twisted.internet.defer import Deferred

from ._admission import Call, Pool
from ._errors import shown
from ._policy import OnCancel, Timeouts, as_timeouts, check_on_cancel
from ._pool import default_pool

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
            fixed._check_timeouts(self.timeouts)

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
        pool._check_timeouts(self.timeouts)
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
