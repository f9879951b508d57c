"""A call as bytes, for another process.

It is pickled here and not by the executor, which may do so in a thread of its own, where an error
is not the call's. Functions go by name, as always; but the name of a decorated function is that of
what the decorator has made of it. So the way from there to the function itself goes with it.
"""

from __future__ import annotations

import importlib
import io
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from twisted.python.reflect import safe_str

from .._errors import GreendeferError

if TYPE_CHECKING:
    from .._admission import Call


def pickled(call: Call) -> bytes:
    """
    :raises GreendeferError: it can't be.
    """
    data = io.BytesIO()
    try:
        what = (call.f, *call.arguments, call.pool.around)
        _Pickler(data, pickle.HIGHEST_PROTOCOL).dump(what)
    except Exception as e:
        raise GreendeferError(
            f"{call.name} can't be sent to another process: {safe_str(e)}. The function, and what "
            "its pool has `around` calls, must be such that they can be imported there by their "
            "names (no lambda, none defined in a function), and its arguments must be picklable."
        ) from e
    return data.getvalue()


def run_pickled(data: bytes) -> Any:
    """Run a call. In the worker process."""
    f, args, kwargs, around = pickle.loads(data)
    if around is not None:
        f = partial(_run_inside, around, f)
    return copy_context().run(f, *args, **kwargs)  # what it sets stays its own, as everywhere


def _run_inside(
    around: Callable[[], AbstractContextManager[object]],
    f: Callable[..., Any],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    with around():
        return f(*args, **kwargs)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is FunctionType:
            steps = _steps_to(obj)
            if steps:
                return _resolve, (obj.__module__, obj.__qualname__, steps)
        elif type(obj) is MethodType:
            # By default it is getattr(obj.__self__, name): the decorated one.
            return _bind, (obj.__func__, obj.__self__)
        return NotImplemented


def _steps_to(f: FunctionType) -> tuple[str, ...] | None:
    """The attributes that lead from what has the name of `f` to `f`."""
    try:
        named = _resolve(f.__module__, f.__qualname__, ())
    except (AttributeError, ImportError):
        return None
    found: list[tuple[Any, tuple[str, ...]]] = [(named, ())]
    for obj, steps in found:
        if obj is f:
            return steps
        if len(steps) < 4:
            names = [name for name in ("__wrapped__", "__func__") if hasattr(obj, name)]
            found.extend((getattr(obj, name), (*steps, name)) for name in names)
    return None


def _resolve(module: str, qualname: str, steps: tuple[str, ...]) -> Any:
    obj: Any = importlib.import_module(module)
    for name in (*qualname.split("."), *steps):
        obj = getattr(obj, name)
    return obj


def _bind(f: Callable[..., Any], instance: Any) -> Any:
    return MethodType(f, instance)
