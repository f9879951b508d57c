"""Pools: of greenlets, of native threads, and of whatever an executor has."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

from ._admission import Around, Pool
from ._carriers import CarrierWithWorkers
from ._carriers.executors import ExecutorCarrier
from ._carriers.threads import ThreadCarrier
from ._errors import shown
from ._policy import Timeouts, refuse_to_kill
from ._runtime import Runtime
from ._worker import WithWorkers


class GreenPool(WithWorkers):
    """Runs calls in greenlets of the reactor's thread, at most `size` of them at once.

    The greenlets are workers that are used again, as threads of a thread pool are: what a call
    leaves in a ``threading.local`` (patched) or a ``gevent.local.local`` is there for a later
    call on the same worker. A worker that nobody needed for 10 to 20 seconds ends.

    ::

        http = GreenPool(50, max_queued=1000, name="http")
        d = http.submit(requests.get, "https://example.org/")

    A pool may be made before the reactor is installed, at the top of a module for instance. It
    belongs to the reactor of its first call, and is closed when that stops; running calls have
    their grace then (:func:`greendefer.shutdown.set_shutdown_grace`).

    Where the installed reactor does not run on gevent's hub, greenlets in its thread would never
    run. Then the calls run elsewhere, and ``repr(pool)`` says where: in greenlets on the hub of
    one helper thread, if sockets are patched; else in native threads, as those of a
    :class:`NativeThreadPool`, which can only be abandoned.

    What each call needs before and after can be said once, in `around`: a callable without
    arguments that returns a context manager, such as a function decorated with
    ``contextlib.contextmanager``. ::

        db = GreenPool(20, around=engine_connection_returned)

    It is entered in the worker's greenlet and the call's ``contextvars``, just before the
    function, and left when that has ended: returned, raised, or been killed (then ``__exit__``
    gets the ``gevent.GreenletExit``). What it raises is what the call fails with; if it swallows
    the function's exception, the call returns ``None``. A call that is killed while it enters is
    killed there, as it would be in a ``with`` statement; while it leaves, it is not killed, so
    that cleaning up is never cut off half-way: bound what may take long there. Around a
    :meth:`worker` it is entered once, for all of its calls; its ``__exit__`` gets a GreenletExit
    if an exception leaves the block, or the worker is killed.

    :param size: how many calls run at once.
    :param max_queued: how many more may wait for a slot; ``None`` is no bound, ``0`` none.
    :param name: what it is called in messages.
    :param around: what each call is made inside of. It is an attribute too, which may be set at
        any time and counts for calls that begin later.
    :raises TypeError: `size` or `max_queued` is not a whole number, `name` is not a string, or
        `around` is not callable.
    :raises ValueError: `size` is below 1, or `max_queued` below 0.
    """

    def _make_carrier(self, runtime: Runtime) -> CarrierWithWorkers:
        return runtime.green_carrier()


class NativeThreadPool(WithWorkers):
    """Runs calls in native threads, at most `size` of them at once: for C code that holds the
    loop (mysqlclient, sqlite3, image codecs), and for what takes long to compute.

    They are the operating system's threads also under ``gevent.monkey.patch_all()``. A thread is
    started when none is free, is used again, and ends when nobody needed it for 10 seconds. None
    keeps the process alive.

    It is as :class:`GreenPool` in all else, but a thread can't be ended from outside: a call that
    is cancelled or out of time while it runs is **abandoned**. Its Deferred fires at once, what
    it comes to is dropped, and it holds its slot (``stats().lingering``) until it has ended. What
    the pool has `around` calls is left then, too, in the call's thread.

    :param size: how many calls run at once.
    :param max_queued: how many more may wait for a slot; ``None`` is no bound, ``0`` none.
    :param name: what it is called in messages.
    :param around: what each call, or each ``worker()``, is made inside of, in its thread: see
        :class:`GreenPool`.
    :raises TypeError: `size` or `max_queued` is not a whole number, `name` is not a string, or
        `around` is not callable.
    :raises ValueError: `size` is below 1, or `max_queued` below 0.
    """

    def __init__(
        self,
        size: int,
        *,
        max_queued: int | None = None,
        name: str | None = None,
        around: Around | None = None,
    ) -> None:
        super().__init__(size, max_queued=max_queued, name=name, around=around)

    def _make_carrier(self, runtime: Runtime) -> CarrierWithWorkers:
        return ThreadCarrier(runtime)

    def _check_timeouts(self, timeouts: Timeouts | None) -> None:
        refuse_to_kill("NativeThreadPool", "a thread can't be ended from outside", timeouts)


class ExecutorPool(Pool):
    """Runs calls on a ``concurrent.futures.Executor``, at most `size` of them at once: in the
    processes of a ``ProcessPoolExecutor``, or past one machine, on a Dask cluster
    (``distributed.Client(...).get_executor()``).

    ::

        processes = ExecutorPool(lambda: ProcessPoolExecutor(4), 4)

        @green_deferred(pool=processes)
        def thumbnail(path): ...

    Functions travel by their qualified name, decorated ones too, so they must be importable where
    they run; arguments and results are pickled. ``contextvars`` and Twisted's log context stay
    behind. (To a ``ThreadPoolExecutor``, or one of a subclass, calls go as they are, and nothing
    stays behind.)

    A call that is cancelled or out of time before the executor has started it is withdrawn; else
    it is abandoned: it holds its slot until it has ended, and what it comes to is dropped. What
    the executor has taken counts as running, also where it has a queue of its own.

    If a worker process dies, the calls that the executor had fail with :class:`ExecutorFailed`.
    The executor is then broken for good, so it is replaced for later calls: by another that the
    function makes; by one with the same options, if it is a ``ProcessPoolExecutor``. Other
    executors (Dask replaces its workers by itself) are asked again, and may refuse.

    Where processes are forked, they inherit the state of gevent's hub: have them started anew,
    with ``mp_context=multiprocessing.get_context("spawn")`` (or ``"forkserver"``, which patched
    programs can't reach on Python 3.14 and newer).

    :param executor: an executor, which stays yours to shut down; or a function that makes one,
        which is called when it is needed, and whose executors are shut down with the pool, or with
        the reactor.
    :param size: how many calls the executor gets at once.
    :param max_queued: how many more may wait for a slot; ``None`` is no bound, ``0`` none.
    :param name: what it is called in messages.
    :param around: what each call is made inside of, where it runs: see :class:`GreenPool`. To
        another process it goes by its name, as functions do.
    :raises TypeError: `executor` is neither, `size` or `max_queued` is not a whole number, `name`
        is not a string, or `around` is not callable.
    :raises ValueError: `size` is below 1, or `max_queued` below 0.
    """

    _carrier: ExecutorCarrier

    def __init__(
        self,
        executor: Executor | Callable[[], Executor],
        size: int,
        *,
        max_queued: int | None = None,
        name: str | None = None,
        around: Around | None = None,
    ) -> None:
        super().__init__(size, max_queued=max_queued, name=name, around=around)
        if not isinstance(executor, Executor) and not callable(executor):
            raise TypeError(
                "ExecutorPool(executor, ...) needs a concurrent.futures.Executor, or a function "
                f"that makes one, not {shown(executor)}"
            )
        self._executor = executor

    def _make_carrier(self, runtime: Runtime) -> ExecutorCarrier:
        return ExecutorCarrier(runtime, self._executor)

    def _retire(self) -> None:
        self._carrier.retire()

    def _check_timeouts(self, timeouts: Timeouts | None) -> None:
        refuse_to_kill("ExecutorPool", "what an executor has started it can't end", timeouts)


default_pool: GreenPool = GreenPool(name="default")
"""The pool of every call that names none."""
