"""Calls in greenlets, on workers that are used again."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from gevent.hub import Waiter
from greenlet import GreenletExit, getcurrent, greenlet
from twisted.logger import Logger
from twisted.python.failure import Failure

from .._errors import failed_with
from .._reactor.loops import in_next_round, is_destroyed
from .._reactor.wait import SLICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._admission import Call
    from . import Job

_log = Logger(namespace="greendefer")

TRIM_SECONDS = 10.0
"""How often idle workers are looked at; those that nobody needed since the last time go."""


class HubHandle(Protocol):
    """A hub, and whose it is: the reactor's, or a thread's that carries calls for another one."""

    hub: Any
    loop: Any

    def yield_to_reactor(self) -> None:
        """A greenlet is about to switch to the hub: let others run who should be first."""

    def ask(self, f: Callable[..., object], *args: Any) -> object:
        """Call ``f(*args)`` in the hub, after what was asked before; nothing, once that is gone.
        For any thread."""

    @property
    def call_soon(self) -> Callable[..., object]:
        """Calls a function in the reactor's greenlet; for any thread."""


class Kill(GreenletExit):
    """What a killed call gets: gevent's own GreenletExit, with the call that is meant."""

    def __init__(self, call: Job) -> None:
        super().__init__()
        self.call = call


class Worker(greenlet):
    """A greenlet that runs one call after the other, as a thread of a thread pool does.

    :ivar calls: those that it runs now, each inside of the one before it.
    :ivar killed: the call that it was last told to end.
    :ivar retired: it ends when its call has ended.
    :ivar is_idle: it is among those that its carrier has.
    """

    __slots__ = ("_carrier", "calls", "is_idle", "kill_next", "kill_watch", "killed", "retired")

    def __init__(self, carrier: GreenletCarrier) -> None:
        super().__init__(parent=carrier.hub)
        self.calls: list[Job] = []
        self.killed: Job | None = None
        self.kill_next: Job | None = None
        self.kill_watch: weakref.ref[Kill] | None = None
        self.retired: bool = False
        self.is_idle: bool = False
        self._carrier = carrier
        carrier.workers += 1

    @property
    def greendefer_call(self) -> Call | None:  # see current_call()
        return self.calls[-1].call if self.calls else None

    def run(self) -> None:
        carrier = self._carrier
        ready = carrier.ready
        try:
            # Not `while not self.retired`: CPython 3.11 does not specialize a loop like that where
            # it is entered once (in ceval.c, RESUME and JUMP_BACKWARD alone count towards it).
            while True:
                if self.retired:
                    return
                # A worker that returns from a long wait finds the time slice used up and parks; a
                # dispatch is already scheduled and will resume it. So calls run here for one slice
                # at most.
                if ready and not self.is_idle and monotonic() < carrier.until:
                    self.execute(ready.popleft())
                else:
                    if not self.is_idle:  # as it still is if it was somebody else who switched here
                        self.is_idle = True
                        carrier.idle.append(self)
                    carrier.hub.switch()
        finally:
            carrier.workers -= 1

    def execute(self, call: Job) -> None:
        """Run one call to its end, if nobody has withdrawn it.

        :raises Kill: one that was meant for the call that this one runs inside of.
        """
        if not call.begin():
            return
        self.calls.append(call)
        call.carried_by = self
        stray = result = None
        try:
            if call.was_killed:  # a hook has given way as it began, and nobody found it here
                raise Kill(call) if self.killed in self.calls else self.kill_of(call)
            result = call.run()
            if self.killed is call:
                self.log_swallowed(call)
        except BaseException as e:
            # Of whatever kind: a SystemExit that left this greenlet would be raised in the
            # main one (gevent.hub.Hub.handle_system_error), which is the reactor's.
            if type(e) is Kill and e.call is not call:  # not isinstance(): see Call.end()
                stray = e
                result = Failure(call.closed_error())
            else:
                if is_destroyed(self._carrier.handle.loop):
                    self.retired = True  # nobody would come back to it if it waited for more
                result = failed_with(e)
        self.calls.pop()
        if self.kill_next in self.calls and stray is None:
            stray = self.kill_of(self.kill_next)
        try:
            call.end(result)
            if stray is not None:
                raise stray
        finally:
            # A Failure has a traceback, which has this frame: no cycle, please.
            del result, stray

    def kill_of(self, call: Job) -> Kill:
        """What is to be raised in this worker, now, to end `call`."""
        self.retired = True  # somebody may yet switch to it for what the call was waiting for
        self.killed = call
        if self.kill_next is call:  # this is it, and whoever swallows it is not told again
            self.kill_next = None
        handle = self._carrier.handle

        def gone(_: object) -> None:
            if call in self.calls:
                handle.call_soon(self.log_swallowed, call)

        # The exception lives for as long as it propagates: while `finally` blocks run, it is the
        # one being handled. Once it is gone, and the call is not, somebody has swallowed it.
        kill = Kill(call)
        self.kill_watch = weakref.ref(kill, gone)
        return kill

    def log_swallowed(self, call: Job) -> None:
        """Say once that `call`, or what runs inside of it, goes on although it was killed."""
        if self.killed is call:
            self.killed = None
            guilty = self.calls[-1] if self.calls else call
            _log.warn(
                "{name} was killed (cancelled, out of time, or its pool closed) but swallowed the "
                "gevent.GreenletExit, and ran on. It holds its slot of {pool} until it ends. Let "
                "GreenletExit pass: catch Exception, not BaseException, or raise it again.",
                name=guilty.name,
                pool=repr(guilty.call.pool),
            )
        if self.kill_next in self.calls and getcurrent() is not self:
            # From the hub: this is the reactor's greenlet, perhaps of another thread, and when a
            # worker ends it is its parent that goes on, the hub.
            handle = self._carrier.handle
            handle.ask(throw_kill, handle, self.kill_next)

    def switch_out(self) -> None:
        # The hub calls this in a greenlet that is about to switch to it (gevent/
        # _greenlet_primitives.py, SwitchOutGreenletWithLoop.switch).
        self._carrier.yield_to_reactor()


class GreenletCarrier:
    """The workers of one pool, all on one hub. Calls start from there, for a slice of time at
    once."""

    kind = "greenlets"
    can_kill = True
    can_nest = True
    outlives_fork = True

    def __init__(self, handle: HubHandle) -> None:
        self.hub: Any = handle.hub
        self.yield_to_reactor: Callable[[], None] = handle.yield_to_reactor
        self.idle: list[Worker] = []
        self.workers = 0
        self.handle = handle
        self._loop = handle.loop
        self.ready: deque[Job] = deque()
        self._scheduled = False
        self.until: float = 0.0
        self._trimmer: Any = None
        self._fewest_idle = 0

    def start(self, call: Job) -> None:
        self.ready.append(call)
        if not self._scheduled:
            self._scheduled = True
            self._loop.run_callback(self._dispatch)

    def withdraw(self, call: Call) -> bool:
        return call.is_ready  # it will not begin

    def kill(self, call: Call) -> None:
        self._loop.run_callback(throw_kill, self.handle, call)

    def pinned(self) -> PinnedGreenletCarrier:
        return PinnedGreenletCarrier(self.handle)

    def stop(self) -> None:
        pass  # idle workers go with the hub

    def _dispatch(self) -> None:
        """Start what is ready. Runs in the hub."""
        self.until = monotonic() + SLICE
        idle = self.idle
        try:
            while self.ready and monotonic() < self.until:
                worker = idle.pop() if idle else Worker(self)
                worker.is_idle = False
                if not worker.dead:  # as one is that somebody killed while it was idle
                    worker.switch()  # comes back here when its call waits, or it is idle
        finally:
            self.until = 0.0
            self._fewest_idle = min(self._fewest_idle, len(idle))
            self._scheduled = bool(self.ready)
            if self.ready:
                in_next_round(self._loop, self._dispatch)
            if self._trimmer is None:
                self._trimmer = self._loop.timer(TRIM_SECONDS, TRIM_SECONDS, ref=False)
                self._trimmer.start(self._trim)

    def _trim(self) -> None:
        """Let go of workers that were idle all the time since the last look. Runs in the hub."""
        idle = self.idle
        going, idle[:] = idle[: self._fewest_idle], idle[self._fewest_idle :]
        self._fewest_idle = len(idle)
        self._let_go(going)

    def _let_go(self, going: list[Worker]) -> None:
        """A hundred thousand of them take most of a second: they go a slice of time at once."""
        until = monotonic() + SLICE
        while going:
            worker = going.pop()
            worker.retired = True
            worker.switch()
            if monotonic() >= until:
                break
        if going:
            in_next_round(self._loop, self._let_go, going)
        elif not self.workers:
            self._trimmer.close()
            self._trimmer = None


class PinnedGreenletCarrier:
    """One worker of a pool, kept: see :class:`greendefer._carriers.PinnedCarrier`."""

    kind = "one greenlet"
    can_kill = True
    can_nest = False
    outlives_fork = True

    def __init__(self, handle: HubHandle) -> None:
        self._handle = handle
        self._ready: deque[Job] = deque()
        self._waiter: Any = None
        self._stopped = False

    def start(self, call: Job) -> None:
        self._ready.append(call)
        self._wake()

    def withdraw(self, call: Call) -> bool:
        return call.is_ready

    def kill(self, call: Job) -> None:
        self._handle.loop.run_callback(throw_kill, self._handle, call)

    def stop(self) -> None:
        self._stopped = True
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not is_destroyed(self._handle.loop):
            self._handle.loop.run_callback(waiter.switch, None)

    def serve(self) -> None:
        worker = getcurrent()
        assert isinstance(worker, Worker)
        while True:
            while self._ready:
                worker.execute(self._ready.popleft())
            if self._stopped:
                return
            waiter: Waiter[None] = Waiter(self._handle.hub)
            self._waiter = waiter
            waiter.get()


def throw_kill(handle: HubHandle, call: Job) -> None:
    """Raise :class:`Kill` in a running call. From the hub that it runs on."""
    worker: Worker | None = call.carried_by
    if worker is None or call not in worker.calls or call.is_leaving:
        return  # it has ended, and the worker may run another one; or it is about to
    if worker.killed in worker.calls:
        # One kill at a time: another would cut off the `finally` blocks that the first one runs.
        # What runs inside of the one that is killed ends with it; what that one runs inside of
        # has its turn afterwards.
        if worker.calls.index(call) < worker.calls.index(worker.killed):
            worker.kill_next = call
    else:
        worker.throw(worker.kill_of(call))
