"""Pools of greenlets."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from greenlet import GreenletExit
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from .admission import Pool
from .call import Call
from .carriers import Carrier
from .carriers.greenlets import GreenletCarrier, PinnedCarrier
from .home import Home
from .policy import Timeouts

P = ParamSpec("P")
T = TypeVar("T")


class GreenPool(Pool):
    """Runs calls in greenlets of the reactor's thread, at most `size` of them at once.

    The greenlets are workers that are used again, as threads of a thread pool are: what a call
    leaves in a ``threading.local`` (patched) or a ``gevent.local.local`` is there for a later
    call on the same worker. A worker that nobody needed for 10 to 20 seconds ends.

    ::

        http = GreenPool(50, max_queued=1000, name="http")
        d = http.submit(requests.get, "https://example.org/")

    A pool may be made before the reactor is installed, at the top of a module for instance. It
    belongs to the reactor of its first call, and is closed when that stops, with one second of
    grace.

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
        return GreenletCarrier(home)

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

        :returns: an async context manager, whose value has :meth:`submit`.
        """
        return PoolWorker(self)


class PoolWorker(Pool):
    """One worker of a pool, in ``async with pool.worker() as w``: see :meth:`GreenPool.worker`."""

    _carrier: PinnedCarrier

    def __init__(self, pool: Pool) -> None:
        super().__init__(1, name=f"worker of {pool.name or 'a pool'}")
        self._pool = pool
        self._entered: Deferred[None] | None = None
        self._exits: dict[Callable[[], object], None] = {}
        self._aborted = False

    def _make_carrier(self, home: Home) -> Carrier:
        return PinnedCarrier(home)

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
        :raises GreendeferError: no green reactor is installed, or this is not its thread.
        """
        if self._entered is not None:
            raise RuntimeError("This worker was entered before: ask for another, pool.worker()")
        self._bind()
        if timeouts is not None:
            timeouts = Timeouts(queued=timeouts.queued, on_expiry=timeouts.on_expiry)
        host = self._pool._call(self._serve, (), {}, timeouts, "kill")
        self.host: Call | None = host
        host.hosted = self
        entered: Deferred[None] = Deferred(lambda _: host.cancel())
        self._entered = entered

        def ended(result: Any) -> Any:
            # Also when the pool was closed, or the worker killed, while calls run or wait here.
            self._carrier.stop()
            self.close(grace=0)
            if isinstance(result, Failure) and not entered.called and self._entered is entered:
                entered.errback(result)
                return None
            return result  # for leave()

        host.addBoth(ended)
        return entered

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
        self._home.call_soon(_fire_unless_cancelled, self._entered)
        try:
            self._carrier.serve()
        finally:
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
        host.addBoth(lambda result: None if left.called else left.callback(result))
        return left

    def abort(self) -> None:
        """End the call that runs, and fail those that wait with :class:`PoolClosed`. Others may
        follow."""
        self._reject_queued(self._home_of_calls)
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
