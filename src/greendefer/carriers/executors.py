"""Calls on a ``concurrent.futures.Executor``: worker processes, or a cluster."""

from __future__ import annotations

import importlib
import io
import pickle
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from gevent import monkey
from twisted.python.failure import Failure

from ..errors import ExecutorFailed, GreendeferError
from . import Errand
from .threads import execute

if TYPE_CHECKING:
    from ..call import Call
    from ..home import Home
    from . import PinnedCarrier


class ExecutorCarrier:
    """Hands each call to the executor of a pool.

    :param executor: one, or what makes one; that is asked again when one has broken.
    """

    can_kill = False
    can_nest = False

    def __init__(self, home: Home, executor: Executor | Callable[[], Executor]) -> None:
        self._home = home
        self._make: Callable[[], Executor] | None = None
        self._is_ours = False
        if isinstance(executor, Executor):
            self._executor = executor
        else:
            self._make = executor
            self._replace()
        self.kind = type(self._executor).__name__

    def start(self, call: Call) -> None:
        try:
            future = self._submit(call)
        except Exception as e:
            error = e
            if not isinstance(e, GreendeferError):
                error = ExecutorFailed(f"{call.name}: {self._executor!r} did not take it: {e!r}")
                error.__cause__ = e
            self._home.deliver(call.end, Failure(error))
            return
        # What an executor has may wait there. Nobody says when it really starts.
        call.carried_by = future
        call.begin()
        executor = self._executor
        future.add_done_callback(  # in whichever thread
            lambda future: self._home.deliver(lambda _: self._done(call, executor, future), None)
        )

    def _submit(self, call: Call) -> Future[Any]:
        f: Callable[[Any], Any] = run_pickled
        what: Any
        if _has_threads(self._executor):
            f, what = _run_errand, Errand(self._home, call)
        else:
            what = pickled(call)
        try:
            return self._executor.submit(f, what)
        except BrokenExecutor:
            if not self._replace():
                raise
            return self._executor.submit(f, what)  # it has never run

    def _replace(self) -> bool:
        """Have another executor in place of one that is broken, if there is a way."""
        broken = getattr(self, "_executor", None)
        executor = _another(broken) if self._make is None else self._make()
        if executor is None:
            return False
        if not isinstance(executor, Executor):
            raise GreendeferError(
                f"The factory of an ExecutorPool must return one, not {executor!r}"
            )
        if self._is_ours and broken is not None:
            broken.shutdown(wait=False)
        self._executor = executor
        self._is_ours = True
        return True

    def _done(self, call: Call, executor: Executor, future: Future[Any]) -> None:
        if call.carried_by is not future:
            return  # it was withdrawn
        result: Any
        if future.cancelled():
            result = ExecutorFailed(f"{call.name} was dropped: {executor!r} was shut down")
        elif (error := future.exception()) is None:
            call.end(future.result())
            return
        elif isinstance(error, BrokenExecutor):
            again = executor is not self._executor or self._replace()
            result = ExecutorFailed(
                f"{call.name} may have run in part: a worker of {executor!r} has died ({error}). "
                + (
                    "It was replaced; later calls go to the new one."
                    if again
                    else "Give the ExecutorPool a function that makes one, and it is replaced."
                )
            )
            result.__cause__ = error
        else:
            result = error
        call.end(Failure(result))

    def withdraw(self, call: Call) -> bool:
        future: Future[Any] | None = call.carried_by
        return future is not None and future.cancel()

    def kill(self, call: Call) -> None:
        pass

    def pinned(self) -> PinnedCarrier:
        raise GreendeferError(
            f"{self.kind} does not tell its workers apart, so none can be kept for several calls. "
            "Use a NativeThreadPool, or put the calls into one function."
        )

    def stop(self) -> None:
        if self._is_ours:
            self._executor.shutdown(wait=False, cancel_futures=True)


def _has_threads(executor: Executor) -> bool:
    # By name: importing it takes longer than the rest of this module.
    cls = type(executor)
    return cls.__name__ == "ThreadPoolExecutor" and cls.__module__ in (
        "concurrent.futures.thread",
        "gevent.threadpool",
    )


def _another(broken: Any) -> Executor | None:
    """One like `broken`, if that is a process pool of the standard library."""
    module = importlib.import_module("concurrent.futures.process")
    if type(broken) is not module.ProcessPoolExecutor:
        return None
    options: dict[str, Any] = {}
    for name in "max_workers", "mp_context", "initializer", "initargs", "max_tasks_per_child":
        if hasattr(broken, f"_{name}"):
            options[name] = getattr(broken, f"_{name}")
    if (
        monkey.is_object_patched("os", "fork")
        and options["mp_context"].get_start_method() == "fork"
    ):
        # The broken one's threads are greenlets, which are still about to clean up. A fork would
        # have copies of them, that do the same.
        options["mp_context"] = importlib.import_module("multiprocessing").get_context("forkserver")
    another: Executor = module.ProcessPoolExecutor(**options)
    return another


def _run_errand(errand: Errand) -> Any:
    """What the threads of a ThreadPoolExecutor run."""
    result = execute(errand, begins=False)
    if isinstance(result, Failure):
        assert result.value is not None
        raise result.value.with_traceback(result.tb)
    return result


# A call as bytes. It is pickled here and not by the executor, which may do so in a thread of its
# own, where an error is not the call's. Functions go by name, as always; but the name of a
# decorated function is that of what the decorator has made of it. So the way from there to the
# function itself goes with it.


def pickled(call: Call) -> bytes:
    """
    :raises GreendeferError: it can't be.
    """
    data = io.BytesIO()
    try:
        _Pickler(data, pickle.HIGHEST_PROTOCOL).dump((call.f, *call.arguments))
    except Exception as e:
        raise GreendeferError(
            f"{call.name} can't be sent to another process: {e}. The function must be one that "
            "can be imported there by its name (no lambda, none defined in a function), and its "
            "arguments must be picklable."
        ) from e
    return data.getvalue()


def run_pickled(data: bytes) -> Any:
    """Run a call. In the worker process."""
    f, args, kwargs = pickle.loads(data)
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
