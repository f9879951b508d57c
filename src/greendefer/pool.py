"""Pools: of greenlets, of native threads, and of whatever an executor has."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from greenlet import GreenletExit
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from .admission import Around, Pool
from .call import Call
from .carriers import Carrier, Job, PinnedCarrier
from .carriers.threads import ThreadCarrier
from .errors import shown
from .home import Home
from .policy import Timeouts, refuse_to_kill

P = ParamSpec("P")
T = TypeVar("T")


class WithWorkers(Pool):
    """A pool that can keep one of its workers for several calls."""

    def worker(self) -> PoolWorker:
        """Keep one worker for several calls, for what is tied to its thread or greenlet: a
        transaction, a cursor.

        ::

            async with pool.worker() as w:
                await w.submit(connection.begin)
                await w.submit(connection.execute, sql)

        It holds one slot of the pool from enter to exit, and counts there as one call; ``async
        with`` waits for a free slot. Its calls run one at a time, in order. Leaving the block
        waits for those submitted; when an exception leaves it, a call that still runs is killed,
        and queued ones fail with :class:`PoolClosed`. So they do when the pool itself is closed
        and its grace is over; then leaving the block raises that too.

        :returns: an async context manager, whose value has :meth:`.PoolWorker.submit`.
        """
        return PoolWorker(self)


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

    def _make_carrier(self, home: Home) -> Carrier:
        return home.green_carrier()


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

    def _make_carrier(self, home: Home) -> Carrier:
        return ThreadCarrier(home)

    def check_timeouts(self, timeouts: Timeouts | None) -> None:
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
    behind. (To a ``ThreadPoolExecutor`` calls go as they are, and nothing stays behind.)

    A call that is cancelled or out of time before the executor has started it is withdrawn; else
    it is abandoned: it holds its slot until it has ended, and what it comes to is dropped. What
    the executor has taken counts as running, also where it has a queue of its own.

    If a worker process dies, the calls that the executor had fail with :class:`ExecutorFailed`.
    The executor is then broken for good, so it is replaced for later calls: by another that the
    function makes; by one with the same options, if it is a ``ProcessPoolExecutor``. Other
    executors (Dask replaces its workers by itself) are asked again, and may refuse.

    Where processes are forked, they inherit the state of gevent's hub: have them started anew,
    with ``mp_context=multiprocessing.get_context("spawn")`` or ``"forkserver"``.

    :param executor: an executor, which stays yours to shut down; or a function that makes one,
        which is called when it is needed, and whose executors are shut down with the reactor.
    :param size: how many calls the executor gets at once.
    :param max_queued: how many more may wait for a slot; ``None`` is no bound, ``0`` none.
    :param name: what it is called in messages.
    :param around: what each call is made inside of, where it runs: see :class:`GreenPool`. To
        another process it goes by its name, as functions do.
    :raises TypeError: `executor` is neither, `size` or `max_queued` is not a whole number, `name`
        is not a string, or `around` is not callable.
    :raises ValueError: `size` is below 1, or `max_queued` below 0.
    """

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

    def _make_carrier(self, home: Home) -> Carrier:
        from .carriers.executors import ExecutorCarrier

        return ExecutorCarrier(home, self._executor)

    def check_timeouts(self, timeouts: Timeouts | None) -> None:
        refuse_to_kill("ExecutorPool", "what an executor has started it can't end", timeouts)


class PoolWorker(Pool):
    """One worker of a pool, in ``async with pool.worker() as w``: see :meth:`.GreenPool.worker`."""

    _carrier: PinnedCarrier

    def __init__(self, pool: Pool) -> None:
        super().__init__(1, name=f"worker of {pool.name or 'a pool'}")
        self._pool = pool
        self._entered: Deferred[None] | None = None
        self._exits: dict[Callable[[], object], None] = {}
        self._aborted = False
        self._result: Any = None

    def _find_home(self) -> Home:
        return self._pool._find_home()

    def _make_carrier(self, home: Home) -> Carrier:
        return self._pool._carrier.pinned()

    def forked(self) -> None:
        pass  # its host is lost, and that ends it

    def check_timeouts(self, timeouts: Timeouts | None) -> None:
        self._pool.check_timeouts(timeouts)

    def submit(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run ``f(*args, **kwargs)`` on this worker, after the calls submitted before.

        :returns: a Deferred of its result, which fires in the reactor's greenlet. Cancelling it
            ends the call, and not the worker.
        :raises RuntimeError: outside of its ``async with``.
        :raises TypeError: `f` is not callable.
        """
        return super().submit(f, *args, **kwargs)

    def resize(self, size: int) -> None:
        """
        :raises RuntimeError: always. A worker is one.
        """
        raise RuntimeError("A worker runs one call at a time: resize its pool instead")

    def _admit(self, call: Call) -> Call:
        if self._entered is None:
            raise RuntimeError(
                "A worker is there inside of its block only: async with pool.worker() as w: "
                "await w.submit(f)"
            )
        return super()._admit(call)

    # An `async with` in its parts, for those who are not coroutines.

    def open(self, timeouts: Timeouts | None = None) -> Deferred[None]:
        """Ask the pool for a worker, in its turn. What is submitted from now on runs on it.

        :param timeouts: of these, how long to wait for a free slot.
        :returns: a Deferred that fires in the reactor's greenlet when the worker is there, or
            fails with what came in between. Cancelling it gives the worker up.
        :raises RuntimeError: it was entered before.
        :raises GreendeferError: no reactor is installed, or this is not its thread.
        """
        if self._entered is not None:
            raise RuntimeError("This worker was entered before: ask for another, pool.worker()")
        self._pool._bind()
        self._bind()
        if timeouts is not None:
            timeouts = Timeouts(queued=timeouts.queued, on_expiry=timeouts.on_expiry)
        entered: Deferred[None] = Deferred(lambda _: host.cancel())
        self._entered = entered
        host = Call(self._pool, self._serve, (), {}, timeouts, "kill")
        host.hosted = self
        self.host: Call | None = host
        self._pool._admit(host)  # last: it may serve at once, in another thread or right here

        def ended(result: Any) -> None:
            # Why there is no worker comes first: what waits here fails for that reason.
            if isinstance(result, Failure) and not entered.called and self._entered is entered:
                entered.errback(result)
            else:
                # For leave(). If nobody leaves, since the coroutine is garbage, the calls have
                # failed all the same: it is no "Unhandled error in Deferred".
                self._result = result
            # Also when the pool was closed, or the worker killed, while calls run or wait here.
            self._carrier.stop()
            self.close(grace=0)

        host.addBoth(ended)
        return entered

    def run_job(self, job: Job) -> None:
        """Run `job` on the worker, which nobody submits calls to. It may be run again when it has
        ended.

        This is a third of what a call costs: it has no Deferred, no contexts, no place in a queue.
        It ends with the worker; :attr:`host` tells when that is.

        :raises PoolClosed: the worker was closed.
        :raises GreendeferError: this is not the reactor's thread.
        """
        assert self._home is not None
        if not self._home.is_here():
            self._bind()
        if self._closed:
            raise job.closed_error()
        self._carrier.start(job)

    def kill_job(self, job: Job) -> None:
        """End it where it is, if it can be."""
        if self._carrier.can_kill:
            self._carrier.kill(job)

    def at_exit(self, f: Callable[[], object]) -> None:
        """Have the worker call `f` as one of the last things it does, whatever ends it: the last
        one first. What `f` raises is raised by :meth:`leave`."""
        self._exits[f] = None

    def not_at_exit(self, f: Callable[[], object]) -> None:
        """Forget `f`: it was called already."""
        self._exits.pop(f, None)

    def _serve(self) -> None:
        assert self._home is not None
        assert self._entered is not None
        self._home.deliver(_fire_unless_cancelled, self._entered)
        try:
            self._carrier.serve()
        finally:
            host = self.host
            assert host is not None
            host.is_leaving = True  # a kill on its way would cut off what cleans up
            self._run_exits()
        if self._aborted:
            raise GreenletExit  # what is around the worker is to know that not all went well

    def _run_exits(self) -> None:
        try:
            while self._exits:
                self._exits.popitem()[0]()
        finally:
            if self._exits:
                self._run_exits()

    def leave(self, *, kill: bool = False) -> Deferred[None]:
        """Give the worker back, when it has run what was submitted.

        :param kill: end the call that runs; those that wait fail with :class:`PoolClosed`.
        :returns: a Deferred that fires in the reactor's greenlet when the pool has its slot back,
            or fails with what ended the worker otherwise.
        """
        host = self.host
        assert host is not None
        self._closed = True
        self._carrier.stop()
        if not host.is_running and not host.called:
            host.cancel()
        if kill:
            self.close(grace=0)
        left: Deferred[None] = Deferred(lambda _: host.cancel())
        host.addBoth(lambda _: None if left.called else left.callback(self._result))
        return left

    def abort(self) -> None:
        """End the call that runs, and fail those that wait with :class:`PoolClosed`. Others may
        follow."""
        self.reject_queued(self.home)
        self._kill_all()

    async def __aenter__(self) -> PoolWorker:
        entered = self.open()
        try:
            await entered
        except BaseException:  # GeneratorExit too: nobody will leave the block
            self._entered = Deferred()
            host = self.host
            assert host is not None
            host.addErrback(lambda _: None)
            host.cancel()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._aborted = exc_type is not None
        left = self.leave(kill=self._aborted)
        if exc_type is None:
            await left
        else:
            left.addErrback(lambda _: None)


def _fire_unless_cancelled(d: Deferred[None]) -> None:
    if not d.called:
        d.callback(None)


default_pool: GreenPool = GreenPool(name="default")
"""The pool of every call that names none."""
