"""Calls on a ``concurrent.futures.Executor``: worker processes, or a cluster."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial
from time import monotonic
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from gevent import monkey
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str

from ..errors import ExecutorFailed, GreendeferError, shown
from . import Errand
from .native import ENDING_SECONDS, native_sleep
from .threads import execute

if TYPE_CHECKING:
    from ..call import Call
    from ..home import Home
    from . import PinnedCarrier


native_waitpid: Callable[[int, int], tuple[int, int]] = monkey.get_original("os", "waitpid")


class ExecutorCarrier:
    """Hands each call to the executor of a pool.

    :param executor: one, or what makes one; that is asked again when one has broken.
    """

    can_kill = False
    can_nest = False
    outlives_fork = False

    def __init__(self, home: Home, executor: Executor | Callable[[], Executor]) -> None:
        self._home = home
        self._executor: Executor | None = None
        self._make: Callable[[], Executor] | None = None
        if isinstance(executor, Executor):
            self._executor = executor
        else:
            self._make = executor
        self.kind: str = "executor" if self._executor is None else type(executor).__name__
        self._is_ours = False
        self._is_broken = False
        self._submitted = 0
        self._to_submit: deque[Errand] = deque()
        self._submits = False

    def start(self, call: Call) -> None:
        self._to_submit.append(Errand(self._home, call))
        if not self._submits:
            self._submits = True
            self._home.call_where_it_may_wait(self._submit_all)

    def withdraw(self, call: Call) -> bool:
        errand: Errand = call.carried_by
        future: Future[Any] | None = errand.carried_by
        return errand.claim() or (future is not None and future.cancel())

    # Where it may wait: submit() starts threads and processes, and takes locks.

    def _submit_all(self) -> None:
        while self._to_submit:
            errand = self._to_submit.popleft()
            if errand.claim():
                try:
                    self._submit(errand)
                except BaseException as e:  # pickling runs code of the arguments' own
                    error = e
                    if not isinstance(e, GreendeferError):
                        what = self._executor or "what should make the executor"
                        error = ExecutorFailed(
                            f"{errand.name}: {shown(what)} refused it: {shown(e)}"
                        )
                        error.__cause__ = e
                    errand.end(Failure(error))
        self._submits = False

    def _submit(self, errand: Errand) -> None:
        executor = self._executor
        if executor is None or self._is_broken:
            executor = self._replace(executor)
        f: Callable[[Any], Any] = run_pickled
        what: Any = errand
        if _has_threads(executor):
            f = _run_errand
        else:
            what = pickled(errand.call)
        try:
            future = executor.submit(f, what)
        except BrokenExecutor:
            if not self._can_replace:
                raise
            executor = self._replace(executor)
            future = executor.submit(f, what)  # it has never run
        errand.carried_by = future
        self._submitted += 1
        if what is not errand:
            # Nobody tells us when a process really starts it. A thread does by itself.
            errand.begun()
        future.add_done_callback(  # in whichever thread
            lambda future: self._home.deliver(lambda _: self._done(errand, executor, future), None)
        )

    @property
    def _can_replace(self) -> bool:
        return self._make is not None or _is_process_pool(self._executor)

    def _replace(self, old: Executor | None) -> Executor:
        """Have an executor, or another in place of one that is broken."""
        executor = _another(old) if self._make is None else self._make()
        if not isinstance(executor, Executor):
            raise GreendeferError(f"The function of an ExecutorPool returned {shown(executor)}")
        if self._is_ours and old is not None:
            old.shutdown(wait=False)
        self._executor = executor
        self._is_ours = True
        self._is_broken = False
        return executor

    # In the reactor's thread.

    def _done(self, errand: Errand, executor: Executor, future: Future[Any]) -> None:
        self._submitted -= 1
        call = errand.call
        if call.carried_by is not errand:
            return  # it was withdrawn
        result: Any
        if future.cancelled():
            result = ExecutorFailed(f"{call.name} was dropped: {shown(executor)} was shut down")
        elif (error := future.exception()) is None:
            call.end(future.result())
            return
        elif isinstance(error, BrokenExecutor):
            if executor is self._executor:
                self._is_broken = self._can_replace
            result = ExecutorFailed(
                f"{call.name} may have run in part: a worker of {shown(executor)} has died "
                f"({safe_str(error)}). "
                + (
                    "Another one takes its place for later calls."
                    if self._can_replace
                    else "Give the ExecutorPool a function that makes one, and it is replaced."
                )
            )
            result.__cause__ = error
        else:
            result = error
        call.end(Failure(result))

    def kill(self, call: Call) -> None:
        raise NotImplementedError("an executor can't kill")

    def pinned(self) -> PinnedCarrier:
        raise NotImplementedError("an executor does not tell its workers apart")

    def stop(self) -> None:
        executor = self._executor
        if not self._is_ours or executor is None:
            return
        # Python waits for these processes when it exits (concurrent.futures.process, _python_exit).
        # What they still run has had its grace.
        processes: dict[int, Any] = getattr(executor, "_processes", None) or {}
        running = list(processes.values()) if self._submitted else []
        executor.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        if monkey.is_module_patched("threading"):
            for process in running:
                _reap(process)


def _reap(process: Any) -> None:
    """Have a worker process that was terminated known to be dead, before its executor asks.

    Patched, the executor's own threads are greenlets. As they clean up they ask for the exit of
    each process, without ever giving way, until they have it (concurrent.futures.process,
    shutdown_workers). libev may have taken that meanwhile (childcb in ev.c), and then they ask for
    ever. Nothing here gives way either, so libev has not.
    """
    popen = process._popen
    if popen is None or popen.method not in ("fork", "spawn"):
        return  # a fork server reaps its own
    until = monotonic() + ENDING_SECONDS
    while popen.returncode is None:
        try:
            pid, status = native_waitpid(process.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = process.pid, -signal.SIGTERM
        if pid:
            popen.returncode = os.waitstatus_to_exitcode(status) if status >= 0 else status
        elif monotonic() >= until:
            process.kill()
            until += ENDING_SECONDS
        else:
            native_sleep(0.001)


def _has_threads(executor: Executor) -> bool:
    # By name: importing it takes longer than the rest of this module.
    cls = type(executor)
    return cls.__name__ == "ThreadPoolExecutor" and cls.__module__ in (
        "concurrent.futures.thread",
        "gevent.threadpool",
    )


def _is_process_pool(executor: Executor | None) -> bool:
    cls = type(executor)
    return cls.__name__ == "ProcessPoolExecutor" and cls.__module__ == "concurrent.futures.process"


def _another(broken: Any) -> Executor:
    """A process pool like `broken`."""
    options: dict[str, Any] = {}
    for name in "max_workers", "mp_context", "initializer", "initargs", "max_tasks_per_child":
        if hasattr(broken, f"_{name}"):  # pragma: no branch - the last came with Python 3.11
            options[name] = getattr(broken, f"_{name}")
    if (
        monkey.is_object_patched("os", "fork")
        and options["mp_context"].get_start_method() == "fork"
    ):
        # The broken one's threads are greenlets, which are still about to clean up. A fork would
        # have copies of them, that do the same.
        options["mp_context"] = importlib.import_module("multiprocessing").get_context("forkserver")
    another: Executor = type(broken)(**options)
    return another


def _run_errand(errand: Errand) -> Any:
    """What the threads of a ThreadPoolExecutor run."""
    errand.begun()
    result = execute(errand)
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
