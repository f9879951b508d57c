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
from concurrent.futures import Future
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from twisted.python.reflect import safe_str

from .._errors import ExecutorFailed, GreendeferError, shown

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
    """Run a call. In the worker process.

    What comes of it is pickled here, too. A reply that a process pool can't unpickle breaks it
    (concurrent/futures/process.py, wait_result_broken_or_wakeup), and all other calls in it are
    lost.

    :returns: a :class:`Reply`; or the result, which the executor's own pickler may be able to send.
    :raises Raised: what it has raised.
    """
    try:
        f, args, kwargs, around = pickle.loads(data)
        if around is not None:
            f = partial(_run_inside, around, f)
        result = copy_context().run(f, *args, **kwargs)  # what it sets stays its own, as everywhere
    except BaseException as e:
        error = _pickled_or_none(e)
        raised = Raised(error, _said(e, is_lost=not _can_be_unpickled(error)))
        raised.__traceback__ = e.__traceback__
    else:
        pickled_result = _pickled_or_none(result)
        return result if pickled_result is None else Reply(pickled_result)
    raise raised  # without a context: the executor would ask that for its class, and more


class Reply:
    """What a call has returned, pickled."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class Raised(Exception):
    """What a call has raised, pickled, if it could be; and what there is to say of it."""

    def __init__(self, data: bytes | None, said: str) -> None:
        super().__init__(data, said)
        self.data = data
        self.said = said

    def __str__(self) -> str:
        return self.said


def _said(e: BaseException, *, is_lost: bool) -> str:
    """Its name; and its text only if it `is_lost`: that runs code of its own, which may wait."""
    name = type(e).__name__
    try:
        return f"{name}: {safe_str(e)}" if is_lost else name
    except BaseException:  # that asks for its class
        return name


def _can_be_unpickled(data: bytes | None) -> bool:
    """Many errors can't be: those whose class wants more than their `args`."""
    if data is None:
        return False
    try:
        pickle.loads(data)
    except BaseException:  # it runs code of the error's own
        return False
    return True


def _pickled_or_none(value: Any) -> bytes | None:
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except BaseException:  # it runs code of the value's own
        return None


def result_of(name: str, future: Future[Any]) -> tuple[Any, BaseException | None]:
    """What the call `name` has come to: a value, or an error. In whichever thread: unpickling takes
    its time.

    :raises concurrent.futures.CancelledError: it was never run.
    """
    error: Any = future.exception()
    try:
        if error is None:
            value = future.result()
            return (pickle.loads(value.data) if type(value) is Reply else value), None
        if type(error) is not Raised:
            return None, error
        if error.data is None:
            failed = ExecutorFailed(f"{name} failed, and its error can't be pickled: {error.said}")
            failed.__cause__ = error.__cause__  # the traceback there, as text
            return None, failed
        raised = pickle.loads(error.data)
        if not issubclass(type(raised), BaseException):
            raise TypeError(f"it unpickles as {shown(raised)}")
        raised.__traceback__ = error.__traceback__
        raised.__cause__ = error.__cause__
        return None, raised
    except BaseException as e:
        what = "what it returned" if error is None else f"its error, {error.said},"
        failed = ExecutorFailed(f"{name} has ended, but {what} can't be unpickled: {shown(e)}")
        failed.__cause__ = e
        return None, failed


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
