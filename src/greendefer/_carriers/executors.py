"""Calls on a ``concurrent.futures.Executor``: worker processes, or a cluster."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from _queue import Empty
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from twisted.logger import Logger
from twisted.python.reflect import safe_str

from .._errors import ExecutorFailed, GreendeferError, failed_with, shown
from .._patched import is_patched, original
from ..shutdown import call_when_python_ends
from . import WorkItem
from .native import ENDING_SECONDS, native_sleep
from .pickling import pickled, result_of, run_pickled
from .threads import execute

if TYPE_CHECKING:
    from .._admission import Call
    from .._runtime import Runtime


_log = Logger(namespace="greendefer")

native_waitpid: Callable[[int, int], tuple[int, int]] = original("os", "waitpid")


class ExecutorCarrier:
    """Hands each call to the executor of a pool.

    :param executor: one, or what makes one; that is asked again when one has broken.
    """

    can_kill = False
    can_nest = False
    outlives_fork = False

    def __init__(self, runtime: Runtime, executor: Executor | Callable[[], Executor]) -> None:
        self._runtime = runtime
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
        self._to_submit: deque[WorkItem] = deque()
        self._submits = False
        self._is_retired = False

    def start(self, call: Call) -> None:
        self._to_submit.append(WorkItem(self._runtime, call))
        if not self._submits:
            self._submits = True
            self._runtime.call_where_it_may_wait(self._submit_all)

    def withdraw(self, call: Call) -> bool:
        item: WorkItem = call.carried_by
        future: Future[Any] | None = item.carried_by
        return item.claim() or (future is not None and future.cancel())

    # Where it may wait: submit() starts threads and processes, and takes locks.

    def _submit_all(self) -> None:
        while self._to_submit:
            item = self._to_submit.popleft()
            if item.is_taken:
                continue
            mine = False
            try:
                executor = self._executor
                if executor is None or self._is_broken:
                    executor = self._replace(executor)
                mine = item.claim()  # unless it was withdrawn while that was made
                if mine:
                    self._submit(item, executor)
            except BaseException as e:  # pickling runs code of the arguments' own
                error = e
                if not issubclass(type(e), GreendeferError):  # see Call.end()
                    what = self._executor or "what should make the executor"
                    error = ExecutorFailed(f"{item.name}: {shown(what)} refused it: {shown(e)}")
                    error.__cause__ = e
                if mine or item.claim():
                    item.end(failed_with(error))
                del error  # whose traceback has this frame
        self._submits = False
        if self._is_retired:  # what it was made for was withdrawn meanwhile
            self._shut_down()

    def _submit(self, item: WorkItem, executor: Executor) -> None:
        submit: Callable[[Executor, Any], Future[Any] | None] = _submit_to
        what: Any = item
        if _has_threads(executor):
            submit = _submit_to_threads
        else:
            what = pickled(item.call)
        try:
            future = submit(executor, what)
        except BrokenExecutor:
            if not self._can_replace:
                raise
            executor = self._replace(executor)
            future = submit(executor, what)  # it has never run
        if future is None:
            return
        item.carried_by = future
        self._submitted += 1
        if what is not item:
            # Nobody tells us when a process really starts it. A thread does by itself.
            item.begun()
        future.add_done_callback(partial(self._has_ended, item, executor))

    @property
    def _can_replace(self) -> bool:
        return self._make is not None or _is_process_pool(type(self._executor))

    def _replace(self, old: Executor | None) -> Executor:
        """Have an executor, or another in place of one that is broken."""
        executor = _another(old) if self._make is None else self._make()
        if not isinstance(executor, Executor):
            raise GreendeferError(f"The function of an ExecutorPool returned {shown(executor)}")
        if self._is_ours and old is not None:
            _shut_down(old)
        # After the reactor may have been stopped, and before Python waits for what executors run.
        call_when_python_ends(_join_managers, last=True)
        self._executor = executor
        self._is_ours = True
        self._is_broken = False
        return executor

    def _has_ended(self, item: WorkItem, executor: Executor, future: Future[Any]) -> None:
        """In whichever thread."""
        value: Any = None
        error: BaseException | None
        try:
            value, error = result_of(item.name, future)
        except CancelledError:
            error = ExecutorFailed(f"{item.name} was dropped: {shown(executor)} was shut down")
        except BaseException as e:  # such a future is somebody else's
            error = ExecutorFailed(
                f"{item.name} ran on {shown(executor)}, which failed: {shown(e)}"
            )
            error.__cause__ = e
        self._runtime.deliver(lambda _: self._done(item, executor, value, error), None)

    # In the reactor's thread.

    def _done(
        self, item: WorkItem, executor: Executor, value: Any, error: BaseException | None
    ) -> None:
        self._submitted -= 1
        item.carried_by = None  # no cycle with the executor: see _shut_down()
        call = item.call
        if call.carried_by is not item:
            return  # it was withdrawn
        if error is None:
            call.end(value)
            return
        result: Any = error
        if issubclass(type(error), BrokenExecutor) and type(error) is not ExecutorFailed:
            if executor is self._executor:
                self._is_broken = self._can_replace
            _will_end(executor)
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
        call.end(failed_with(result))

    def kill(self, call: Call) -> None:
        raise NotImplementedError("an executor can't kill")

    def retire(self) -> None:
        """Nothing runs, and nothing will: have the executor shut down, if it is ours."""
        self._is_retired = True
        if self._is_ours and not self._submits:
            self._runtime.call_where_it_may_wait(self._shut_down)

    def _shut_down(self) -> None:
        if self._is_ours and self._executor is not None:
            executor, self._executor = self._executor, None
            _shut_down(executor)

    def stop(self) -> None:
        self._is_retired = True
        if not self._is_ours:
            return
        # Python waits for these processes when it exits (concurrent.futures.process, _python_exit).
        # What they still run has had its grace.
        running = _processes_of(self._executor) if self._submitted else []
        self._shut_down()
        for process in running:
            process.terminate()
        if is_patched("threading"):
            for process in running:
                _reap(process)
        _join_managers(ENDING_SECONDS)


_ending: WeakSet[Any] = WeakSet()
"""The managers of process pools that were shut down here, or have broken: native threads, while
they run."""


def _will_end(executor: Any) -> None:
    """Its manager ends now, and Python may end meanwhile: see :func:`_join_managers`."""
    manager = getattr(executor, "_executor_manager_thread", None)
    if manager is None or is_patched("threading") or manager in _ending:
        return
    _ending.add(manager)
    call_when_python_ends(_join_managers, last=True)


def _shut_down(executor: Any) -> None:
    manager = getattr(executor, "_executor_manager_thread", None)
    _will_end(executor)
    try:
        try:
            executor.shutdown(wait=False, cancel_futures=True)
        except TypeError:  # loky's has no such argument
            executor.shutdown(wait=False)
    except BaseException:
        _log.failure("{executor} could not be shut down", executor=shown(executor))
    if manager is not None:
        # Who has the last reference to the executor tells its manager, and takes a lock for that
        # (concurrent.futures.process, weakref_cb). The manager has that lock now and then: if the
        # garbage collector found the executor there and then, it would wait for itself, for ever.
        manager.greendefer_keeps = executor


def _join_managers(seconds: float | None = None) -> None:
    """Python is about to wake all managers, and to wait for them, however long that takes
    (concurrent.futures.process, _python_exit). One that ends closes the pipe that it is woken by,
    and does not ask whether it may: Python would fail there, and hang.

    :param seconds: for all of them together; ``None`` is no limit.
    """
    until = None if seconds is None else monotonic() + seconds
    for manager in list(_ending):
        manager.join(None if until is None else max(0.0, until - monotonic()))


def _submit_to_threads(executor: Any, item: WorkItem) -> Future[Any] | None:
    """Submit a call that one of the executor's threads takes, or nobody.

    A ThreadPoolExecutor queues it before it starts a thread, and leaves it there if none can be
    started (concurrent/futures/thread.py, submit; so does gevent's): a later thread would run it.

    :returns: ``None`` if none could be, but one that was busy has it already, or it was withdrawn.
    """
    item.offer()
    try:
        future: Future[Any] = executor.submit(_run_item, item)
    except BaseException:
        if not item.claim():
            return None
        _forget(executor, item)
        raise
    return future


def _forget(executor: Any, item: WorkItem) -> None:
    """Take what nobody runs out of a ThreadPoolExecutor's queue. A thread that finds it there
    counts as idle twice, and a later call has no thread."""
    queue = executor._work_queue
    with executor._shutdown_lock:
        for _ in range(queue.qsize()):
            try:
                each = queue.get_nowait()
            except Empty:  # pragma: no cover - threads take from it, too
                break
            if not any(argument is item for argument in getattr(each, "args", ())):
                queue.put(each)


def _submit_to(executor: Any, data: bytes) -> Future[Any]:
    """Submit a call, and see to it that a process pool does not lose it.

    submit() of a ProcessPoolExecutor (concurrent/futures/process.py) wakes its manager before it
    starts a process, so the manager would not hear of that one's death until something else wakes
    it. And a manager that finds the pool broken meanwhile neither ends the process that is being
    started, for which Python would wait for ever when it exits, nor fails the call that is being
    noted.

    :raises concurrent.futures.BrokenExecutor: it was not taken, and never runs.
    """
    if not any(map(_is_process_pool, type(executor).__mro__)):
        future: Future[Any] = executor.submit(run_pickled, data)
        if not hasattr(future, "add_done_callback"):
            raise TypeError(f"its submit() returned {shown(future)}, and no future")
        return future
    if not executor._broken and not executor._shutdown_thread:
        _get_ready(executor)
    try:
        future = executor.submit(run_pickled, data)
    except BrokenExecutor:  # since just now, it may be
        _terminate_all(executor)
        raise
    if not executor._broken:
        with executor._shutdown_lock:
            executor._executor_manager_thread_wakeup.wakeup()
        return future
    _terminate_all(executor)
    if not wait([future], ENDING_SECONDS).done:
        raise BrokenExecutor("it broke as it took the call")
    return future


def _terminate_all(executor: Any) -> None:
    _will_end(executor)
    for process in _processes_of(executor):
        process.terminate()


def _processes_of(executor: Any) -> list[Any]:
    return list((getattr(executor, "_processes", None) or {}).values())


def _get_ready(executor: Any) -> None:
    """Start the process that a process pool needs for one more call, and its threads.

    submit() would, but after it has noted the call: if the system refuses a process or a thread
    then, the call is run once there is another. Processes without a manager would be ended by
    nobody, and a manager that could not be started is not started again.
    """
    manager = executor._executor_manager_thread
    with executor._shutdown_lock:
        try:
            if not getattr(executor, "_safe_to_dynamically_spawn_children", True):
                if manager is None:
                    executor._launch_processes()
            elif len(executor._processes) < executor._max_workers:
                executor._adjust_process_count()
                executor._idle_worker_semaphore.release()  # it is there for the call to come
            if manager is None:
                calls = executor._call_queue
                with calls._notempty:
                    calls._start_thread()  # the manager would, and end if it can't
                executor._start_executor_manager_thread()
                executor._executor_manager_thread._invoke_excepthook = _manager_failed
            return
        except BaseException as e:
            if manager is not None or not executor._processes:
                raise
            manager, executor._executor_manager_thread = executor._executor_manager_thread, None
            error = e
    if manager is None:
        manager = sys.modules["concurrent.futures.process"]._ExecutorManagerThread(executor)
    _break(manager, error)
    raise error


def _manager_failed(manager: Any) -> None:
    """What the manager of a process pool calls, in place of ``threading.excepthook``, when an error
    ends it: it could start no process in place of one that had run ``max_tasks_per_child`` calls,
    say. Nobody else would hear of it, and the calls would wait for ever."""
    error = sys.exc_info()[1]
    assert error is not None
    _break(manager, error)


def _break(manager: Any, error: BaseException) -> None:
    """Have a process pool whose manager does not run be broken, as it is when a process dies."""
    processes = list(manager.processes.values())
    for process in processes:
        process.kill()
    for process in processes:
        _reap(process)
        process.join(ENDING_SECONDS)
    for noted in list(manager.pending_work_items.values()):
        if not noted.future.done():  # pragma: no branch - it was cancelled just now
            failed = BrokenExecutor(f"its manager has failed: {shown(error)}")
            failed.__cause__ = error
            noted.future.set_exception(failed)
    manager.pending_work_items.clear()
    manager.terminate_broken(None)


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
    """Whether it runs calls in threads of this interpreter. A subclass of ThreadPoolExecutor does,
    but for Python 3.14's InterpreterPoolExecutor."""
    # By name: importing it takes longer than the rest of this module.
    for cls in type(executor).__mro__:
        if cls.__name__ == "InterpreterPoolExecutor":
            return False
        if cls.__name__ == "ThreadPoolExecutor" and cls.__module__ == "concurrent.futures.thread":
            return True
    return False


def _is_process_pool(cls: type) -> bool:
    return cls.__name__ == "ProcessPoolExecutor" and cls.__module__ == "concurrent.futures.process"


def _another(broken: Any) -> Executor:
    """A process pool like `broken`."""
    options: dict[str, Any] = {}
    for name in "max_workers", "mp_context", "initializer", "initargs", "max_tasks_per_child":
        if hasattr(broken, f"_{name}"):  # pragma: no branch - the last came with Python 3.11
            options[name] = getattr(broken, f"_{name}")
    if is_patched("os", "fork") and options["mp_context"].get_start_method() == "fork":
        # The broken one's threads are greenlets, which are still about to clean up. A fork would
        # have copies of them, that do the same. Since Python 3.14 a fork server's proof is read
        # from a socket that is gevent's, and has nothing yet (connect_to_new_process() in
        # multiprocessing/forkserver.py; gevent's issue 1808).
        method = "forkserver" if sys.version_info < (3, 14) else "spawn"
        options["mp_context"] = importlib.import_module("multiprocessing").get_context(method)
    another: Executor = type(broken)(**options)
    return another


def _run_item(item: WorkItem) -> None:
    """What the threads of a ThreadPoolExecutor run. It tells by itself what came of it."""
    if item.begin():
        item.end(execute(item))
