"""Calls in greenlets of the reactor's thread, on workers that are used again."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from gevent.hub import Waiter
from greenlet import GreenletExit, getcurrent, greenlet
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..call import ENDED, STARTED
from ..reactor.wait import SLICE

if TYPE_CHECKING:
    from ..call import Call
    from ..home import Home

_log = Logger(namespace="greendefer")

IDLE_SECONDS = 10.0
"""How often idle workers are looked at; those that nobody needed since the last time go."""


class Kill(GreenletExit):
    """What a killed call gets: gevent's own GreenletExit, with the call that is meant."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


class Worker(greenlet):
    """A greenlet that runs one call after the other, as a thread of a thread pool does.

    :ivar call: the call that it runs now.
    :ivar killed: the call that it was last told to end.
    :ivar retired: it ends when its call has ended.
    """

    call: Call | None = None
    killed: Call | None = None
    kill_watch: weakref.ref[Kill] | None = None
    retired = False

    def __init__(self, carrier: GreenletCarrier) -> None:
        super().__init__(parent=carrier.hub)
        self._carrier = carrier
        carrier.workers += 1

    def run(self) -> None:
        carrier = self._carrier
        try:
            while not self.retired:
                call = carrier.next_call()
                if call is None:
                    carrier.idle.append(self)
                    carrier.hub.switch()
                else:
                    self.execute(call)
        finally:
            carrier.workers -= 1

    def execute(self, call: Call) -> None:
        """Run one call to its end.

        :raises Kill: one that was meant for the call that this one runs inside of.
        """
        outer = self.call
        self.call = call
        call.carried_by = self
        stray = result = None
        try:
            call.begin()
            result = call.run()
            if self.killed is call:
                self.log_swallowed(call)
        except BaseException as e:
            # Of whatever kind: a SystemExit that left this greenlet would be raised in the
            # main one (gevent.hub.Hub.handle_system_error), which is the reactor's.
            if isinstance(e, Kill) and e.call is not call:
                stray = e
                result = Failure(call.pool.closed_error(call))
            else:
                result = Failure()
        self.call = outer
        try:
            call.end(result)
            if stray is not None:
                raise stray
        finally:
            # A Failure has a traceback, which has this frame: no cycle, please.
            del result, stray

    def log_swallowed(self, call: Call) -> None:
        """Say once that `call`, or what runs inside of it, goes on although it was killed."""
        if self.killed is call:
            self.killed = None
            guilty = self.call or call
            _log.warn(
                "{name} was killed (cancelled, out of time, or its pool closed) but swallowed the "
                "gevent.GreenletExit, and ran on. It holds its slot of {pool} until it ends. Let "
                "GreenletExit pass: catch Exception, not BaseException, or raise it again.",
                name=guilty.name,
                pool=repr(guilty.pool),
            )

    def switch_out(self) -> None:
        # The hub calls this in a greenlet that is about to switch to it (gevent/
        # _greenlet_primitives.py, SwitchOutGreenletWithLoop.switch).
        self._carrier.make_way()


def current_call() -> Call | None:
    """The call that the current greenlet runs, if it is a worker."""
    current = getcurrent()
    return current.call if isinstance(current, Worker) else None


class GreenletCarrier:
    """The workers of one pool. Calls start from the hub, for a slice of time at once."""

    can_kill = True
    can_nest = True

    def __init__(self, home: Home) -> None:
        self.hub: Any = home.hub
        self.make_way: Callable[[], None] = home.wait.make_way
        self.idle: list[Worker] = []
        self.workers = 0
        self._home = home
        self._loop = home.loop
        self._ready: deque[Call] = deque()
        self._scheduled = False
        self._until = 0.0
        self._next_round: Any = self._loop.timer(0.0)
        self._trimmer: Any = None
        self._fewest_idle = 0

    def start(self, call: Call) -> None:
        self._ready.append(call)
        if not self._scheduled:
            self._scheduled = True
            self._loop.run_callback(self._dispatch)

    def withdraw(self, call: Call) -> bool:
        return call.state == STARTED  # next_call() passes over it

    def kill(self, call: Call) -> None:
        kill_soon(self._home, call)

    def next_call(self) -> Call | None:
        """The next call to run now; ``None`` when there is none, or the slice is over.

        A worker that comes back from a long wait finds the slice over, and parks; the dispatch
        that is scheduled already gets it out again. So whoever runs calls here is bounded.
        """
        ready = self._ready
        while ready and monotonic() < self._until:
            call = ready.popleft()
            if call.state == STARTED:
                return call
        return None

    def _dispatch(self) -> None:
        """Start what is ready. Runs in the hub."""
        self._until = monotonic() + SLICE
        idle = self.idle
        try:
            while self._ready and monotonic() < self._until:
                worker = idle.pop() if idle else Worker(self)
                if not worker.dead:  # as one is that somebody killed while it was idle
                    worker.switch()  # comes back here when its call waits, or it is idle
        finally:
            self._until = 0.0
            self._fewest_idle = min(self._fewest_idle, len(idle))
            self._scheduled = bool(self._ready)
            if self._ready:
                # A callback would run before the hub polls again; a timer lets it go round first.
                self._next_round.start(self._dispatch, update=True)
            if self._trimmer is None:
                self._trimmer = self._loop.timer(IDLE_SECONDS, IDLE_SECONDS, ref=False)
                self._trimmer.start(self._trim)

    def _trim(self) -> None:
        """Let go of the workers that were idle all the time since the last look."""
        idle = self.idle
        going, idle[:] = idle[: self._fewest_idle], idle[self._fewest_idle :]
        self._fewest_idle = len(idle)
        for worker in going:
            worker.retired = True
            worker.switch()
        if not self.workers:
            self._trimmer.close()
            self._trimmer = None


class PinnedCarrier:
    """One worker of a pool, kept for calls that must all run on the same one.

    The worker runs :meth:`serve` as a call of its pool; the calls run inside of that.
    """

    can_kill = True
    can_nest = False

    def __init__(self, home: Home) -> None:
        self._home = home
        self._ready: deque[Call] = deque()
        self._waiter: Any = None
        self._stopped = False

    def start(self, call: Call) -> None:
        self._ready.append(call)
        self._wake()

    def withdraw(self, call: Call) -> bool:
        return call.state == STARTED

    def kill(self, call: Call) -> None:
        kill_soon(self._home, call)

    def stop(self) -> None:
        """Let :meth:`serve` return when it has nothing to run."""
        self._stopped = True
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._home.loop.run_callback(waiter.switch, None)

    def serve(self) -> None:
        """Run calls as they come, in the worker's greenlet, until :meth:`stop`."""
        worker = getcurrent()
        assert isinstance(worker, Worker)
        while True:
            while self._ready:
                call = self._ready.popleft()
                if call.state == STARTED:
                    worker.execute(call)
                del call
            if self._stopped:
                return
            waiter: Waiter[None] = Waiter(self._home.hub)
            self._waiter = waiter
            waiter.get()


def kill_soon(home: Home, call: Call) -> None:
    """Raise :class:`Kill` in a running call, from the hub."""
    home.loop.run_callback(_throw, home, call, call.carried_by)


def _throw(home: Home, call: Call, worker: Worker) -> None:
    inside = worker.call
    calls = []
    while inside is not None:
        calls.append(inside)
        inside = inside.pool.host
    if call not in calls:
        return  # it has ended, and the worker may run another one
    if worker.killed in calls:
        # What this one runs inside of, or what runs inside of it, is ending already. Another kill
        # would cut off its `finally` blocks; and when it has ended, so has this one, or will:
        # PoolWorker stops its worker.
        return
    worker.retired = True  # somebody may yet switch to it for what the call was waiting for
    worker.killed = call

    def gone(_: object) -> None:
        if call.state != ENDED:
            home.call_soon(worker.log_swallowed, call)

    # The exception lives for as long as it propagates: while `finally` blocks run, it is the one
    # being handled. Once it is gone, and the call is not, somebody has swallowed it.
    kill = [Kill(call)]
    worker.kill_watch = weakref.ref(kill[0], gone)
    worker.throw(kill.pop())
