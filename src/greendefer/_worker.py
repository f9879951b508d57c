"""One worker of a pool, kept for several calls that must share its thread or greenlet."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from greenlet import GreenletExit
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ._admission import Call, Pool
from ._carriers import CarrierWithWorkers, Job, PinnedCarrier
from ._errors import shown
from ._policy import Timeouts
from ._runtime import Runtime

P = ParamSpec("P")
T = TypeVar("T")


class WithWorkers(Pool):
    """A pool that can keep one of its workers for several calls."""

    _carrier: CarrierWithWorkers

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

        :returns: an async context manager, whose value has :meth:`.PoolWorker.submit`. Entering it
            raises :class:`PoolFull` or :class:`PoolClosed` where a call's Deferred would fail so,
            and :class:`GreendeferError` where none could be made.
        """
        return PoolWorker(self)


class PoolWorker(Pool):
    """One worker of a pool, in ``async with pool.worker() as w``: see :meth:`.GreenPool.worker`."""

    _carrier: PinnedCarrier

    def __init__(self, pool: WithWorkers) -> None:
        if not isinstance(pool, WithWorkers):
            raise TypeError(f"PoolWorker(pool) needs a pool with a worker(), not {shown(pool)}")
        super().__init__(1, name=f"worker of {pool.name or 'a pool'}")
        self._pool = pool
        self._entered: Deferred[None] | None = None
        self._exits: dict[Callable[[], object], None] = {}
        self._aborted = False
        self._result: Any = None

    def _find_runtime(self) -> Runtime:
        return self._pool._find_runtime()

    def _make_carrier(self, runtime: Runtime) -> PinnedCarrier:
        return self._pool._carrier.pinned()

    def _forked(self) -> None:
        pass  # its host is lost, and that ends it

    def _check_timeouts(self, timeouts: Timeouts | None) -> None:
        self._pool._check_timeouts(timeouts)

    def submit(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run ``f(*args, **kwargs)`` on this worker, after the calls submitted before.

        :returns: a Deferred of its result, which fires in the reactor's greenlet. Cancelling it
            ends the call, and not the worker.
            After its ``async with`` it has failed already, with :class:`PoolClosed`.
        :raises RuntimeError: before its ``async with``.
        :raises TypeError: `f` is not callable.
        :raises GreendeferError: this is not the reactor's thread.
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

    def _open(self, timeouts: Timeouts | None = None, title: str = "worker()") -> Deferred[None]:
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
        host.title = title
        self._host: Call | None = host
        self._pool._admit(host)  # last: it may serve at once, in another thread or right here

        def ended(result: Any) -> None:
            # Why there is no worker comes first: what waits here fails for that reason.
            if isinstance(result, Failure) and not entered.called and self._entered is entered:
                entered.errback(result)
            else:
                # For _leave(). If nobody leaves, since the coroutine is garbage, the calls have
                # failed all the same: it is no "Unhandled error in Deferred".
                self._result = result
            # Also when the pool was closed, or the worker killed, while calls run or wait here.
            self._carrier.stop()
            self.close(grace=0)

        host.addBoth(ended)
        return entered

    def _run_job(self, job: Job) -> None:
        """Run `job` on the worker, which nobody submits calls to. It may be run again when it has
        ended.

        This is a third of what a call costs: it has no Deferred, no contexts, no place in a queue.
        It ends with the worker; :attr:`_host` tells when that is.

        :raises PoolClosed: the worker was closed.
        :raises GreendeferError: this is not the reactor's thread.
        """
        assert self._bound_to is not None
        if not self._bound_to.is_here():
            self._bind()
        if self._closed:
            raise job.closed_error()
        self._carrier.start(job)

    def _kill_job(self, job: Job) -> None:
        """End it where it is, if it can be."""
        if self._carrier.can_kill:
            self._carrier.kill(job)

    def _at_exit(self, f: Callable[[], object]) -> None:
        """Have the worker call `f` as one of the last things it does, whatever ends it: the last
        one first. What `f` raises is raised by :meth:`_leave`."""
        self._exits[f] = None

    def _not_at_exit(self, f: Callable[[], object]) -> None:
        """Forget `f`: it was called already."""
        self._exits.pop(f, None)

    def _serve(self) -> None:
        assert self._bound_to is not None
        assert self._entered is not None
        self._bound_to.deliver(_fire_unless_cancelled, self._entered)
        try:
            self._carrier.serve()
        finally:
            host = self._host
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

    def _leave(self, *, kill: bool = False) -> Deferred[None]:
        """Give the worker back, when it has run what was submitted.

        :param kill: end the call that runs; those that wait fail with :class:`PoolClosed`.
        :returns: a Deferred that fires in the reactor's greenlet when the pool has its slot back,
            or fails with what ended the worker otherwise.
        """
        host = self._host
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

    def _abort(self) -> None:
        """End the call that runs, and fail those that wait with :class:`PoolClosed`. Others may
        follow."""
        self._reject_queued(self._runtime)
        self._kill_all()

    async def __aenter__(self) -> PoolWorker:
        entered = self._open()
        try:
            await entered
        except BaseException:  # GeneratorExit too: nobody will leave the block
            self._entered = Deferred()
            host = self._host
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
        left = self._leave(kill=self._aborted)
        if exc_type is None:
            await left
        else:
            left.addErrback(lambda _: None)


def _fire_unless_cancelled(d: Deferred[None]) -> None:
    if not d.called:
        d.callback(None)
