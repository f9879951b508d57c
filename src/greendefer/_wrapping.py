"""How a decorated callable is made, and what of the original wrapt keeps."""

from __future__ import annotations

import inspect
from copy import deepcopy
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import wrapt

from ._admission import Pool
from ._behaviours import Behaviour
from ._errors import shown
from ._policy import Timeouts

if TYPE_CHECKING:
    _FunctionWrapper = wrapt.FunctionWrapper[..., Any]
else:
    _FunctionWrapper = wrapt.FunctionWrapper


class _Bound(wrapt.BoundFunctionWrapper):  # type: ignore[type-arg]
    """A decorated callable, bound: it is copied and pickled as a method is."""

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        instance = self._self_instance
        return self if instance is None else getattr(deepcopy(instance, memo), self.__name__)

    def __reduce_ex__(self, protocol: Any) -> Any:
        instance = self._self_instance
        return self.__qualname__ if instance is None else (getattr, (instance, self.__name__))


class Decorated(_FunctionWrapper):
    """A decorated callable: wrapt keeps its signature, its name, and how it binds.

    Like a function, it is copied as itself, and pickled by its qualified name.
    """

    __bound_function_wrapper__ = _Bound

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


class _DecoratedFunction(Decorated):
    """The same for a plain function, which is what most decorate.

    wrapt asks whatever it calls for its ``__self__``, and a function has none: the AttributeError
    for that takes it as long as all else that it does (``WraptFunctionWrapperBase_call`` in its
    ``_wrappers.c``).
    """

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        wrapper: Any = self._self_wrapper
        return wrapper(self.__wrapped__, None, args, kwargs)


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


class _BoundMadeSync(_SaysItIsSync, _Bound):
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
    if is_async(func):
        return _MadeSync(func, behaviour.wrapper)
    kind = _DecoratedFunction if type(func) is FunctionType else Decorated
    return kind(func, behaviour.wrapper)


def behaviour_of(decorated: Any) -> Behaviour | None:
    """The behaviour of what :func:`apply` returned, also when it is bound; else ``None``."""
    behaviour = getattr(getattr(decorated, "_self_wrapper", None), "__self__", None)
    return behaviour if isinstance(behaviour, Behaviour) else None
