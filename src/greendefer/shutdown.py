"""The end: what becomes of calls when the reactor stops."""

from __future__ import annotations

import atexit
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList, succeed

from ._policy import check_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._admission import Call, Pool
    from ._runtime import Runtime

MOMENT = 0.005
"""Seconds between two looks at whether all calls have ended, once the reactor takes no turns."""

__all__ = ["set_shutdown_grace"]

_running = _ending = 1.0


def set_shutdown_grace(running: float = 1.0, ending: float = 1.0) -> None:
    """How long calls are given when the reactor stops.

    From ``reactor.stop()`` on (or the signal that does it), calls that wait for a slot fail with
    :class:`~greendefer.PoolClosed`, and those that run have `running` seconds. Those left are
    killed, where that can be, and their Deferreds fail with :class:`~greendefer.PoolClosed` as
    well; then their ``finally`` blocks have `ending` seconds, in which they may wait, for Deferreds
    too. The reactor is gone when they have ended, or after both times. A call whose function has
    returned a Deferred has the same time for that to fire; then it is cancelled.

    New calls may be made meanwhile, as services do while they stop. They go on for as long as
    something holds the shutdown back (a "before shutdown" trigger's Deferred), and are killed
    afterwards; their ``finally`` blocks have `ending` seconds then, but can't wait for Deferreds.

    A pool that is closed already, or by a "before shutdown" trigger of yours, has the grace that
    you give it there: ``pool.close(grace=20)``. Return its Deferred from the trigger.

    What can't be killed (a native thread) is left behind: Python ends with it still running.
    Worker processes that an :class:`~greendefer.ExecutorPool` has started are terminated.

    :param running: seconds; 0 kills at once.
    :param ending: seconds; with 0, ``finally`` blocks run until they wait.
    :raises TypeError: one of them is not a number.
    :raises ValueError: one is negative, NaN or infinite.
    """
    global _running, _ending
    check_seconds("set_shutdown_grace(running=...)", running, needed=True)
    check_seconds("set_shutdown_grace(ending=...)", ending, needed=True)
    _running, _ending = running, ending


_when_python_ends: list[Callable[[], object]] = []


def call_when_python_ends(f: Callable[[], object], *, last: bool = False) -> None:
    """Call `f` when the program ends, before Python waits for threads, and for the processes of
    those executors that are there by now. It is called more than once.

    :param last: after the others that are called so.

    What is registered last is called first (threading.py, _shutdown), and the modules of executors
    register themselves as they are imported. So all of these are registered anew.
    """
    if f not in _when_python_ends:
        _when_python_ends.insert(len(_when_python_ends) if last else 0, f)
        atexit.register(f)
    register = getattr(threading, "_register_atexit", atexit.register)
    try:
        for each in reversed(_when_python_ends):
            register(each)
    except RuntimeError:
        pass  # it ends already


def longest_shutdown() -> float:
    """Seconds after which all calls have ended, or were given up."""
    return _running + 2 * _ending


def add_first_trigger(reactor: Any, phase: str, f: Callable[[], object]) -> Callable[[], object]:
    """Have a reactor call `f` as the first of all in that phase of its shutdown; as the last one,
    if it is not of Twisted's usual kind. For any thread.

    :returns: what takes it back, in the reactor's thread, unless it was called.
    """
    event = _shutdown_event(reactor)
    if event is None:
        trigger = reactor.addSystemEventTrigger(phase, "shutdown", f)
        return lambda: reactor.removeSystemEventTrigger(trigger)
    triggers: list[Any] = getattr(event, phase)
    entry: tuple[Any, ...] = (f, (), {})
    triggers.insert(0, entry)
    return lambda: triggers.remove(entry)


def _shutdown_event(reactor: Any) -> Any:
    """What keeps the triggers of its shutdown: twisted.internet.base, _ThreePhaseEvent; or None."""
    return getattr(reactor, "_eventTriggers", {}).get("shutdown")


class Shutdown:
    """The end of one reactor, for all pools on it. Calls may be made until all that others do
    before shutdown is done. Then all ends that is ours, before Twisted waits for its own threads:
    one of these may wait for the reactor."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._before: list[Call] = []
        self._had_their_time: set[Call] = set()
        reactor = runtime.reactor
        reactor.addSystemEventTrigger("before", "shutdown", self._last_in_line)
        add_first_trigger(reactor, "during", self._close)
        reactor.addSystemEventTrigger("after", "shutdown", runtime.reactor_stopped)
        # Calls that are made once the reactor was told to stop are those of services that stop.
        # So this goes before the triggers that were registered earlier: what services call while
        # they stop is not cut off with the old ones.
        event = _shutdown_event(reactor)
        if event is not None and event.state == "BASE":
            add_first_trigger(reactor, "before", self._begin)

    def _begin(self) -> None:
        """The reactor was told to stop, and nobody has done anything about it yet."""
        for pool in self._pools():
            pool._reject_queued(self._runtime)
            self._before += pool._active_calls() + pool._unfired_calls()

    def _last_in_line(self) -> None:
        self._runtime.reactor.addSystemEventTrigger("before", "shutdown", self._drain)

    def _drain(self) -> Deferred[None]:
        """Give running calls their grace, and then what they do at their end."""
        drained: Deferred[None] = Deferred()

        def fire() -> None:
            if not drained.called:
                drained.callback(None)

        def done(_: object = None) -> None:
            # After all results that are on the way, which may take several turns; and after what
            # the calls that ended last have asked of the reactor themselves.
            runtime.deliver(runtime.call_soon, fire)

        def kill() -> None:
            before, self._before = self._before, []
            if drained.called:
                return
            for call in before:
                if not call.pool._is_closed:  # whoever closes one himself has said how
                    call.pool._end_now(call)
                    self._had_their_time.add(call)
            pools = [pool for pool in self._pools() if pool._can_kill]
            DeferredList([pool._when_idle() for pool in pools]).addCallback(done)
            runtime.deadlines.at(runtime.now() + _ending, done)

        runtime = self._runtime
        if not runtime.pools:
            return succeed(None)
        idle = DeferredList([pool._when_idle() for pool in self._pools()])
        idle.addCallback(lambda _: DeferredList([p._when_all_fired() for p in self._pools()]))
        idle.addCallback(done)
        runtime.deadlines.at(runtime.now() + _running, kill)
        return drained

    def _pools(self) -> list[Pool]:
        return list(self._runtime.pools)

    def _close(self) -> None:
        """Nothing holds the shutdown back any more, and the reactor takes no more turns."""
        runtime = self._runtime
        runtime.stopped = True
        for pool in self._pools():
            pool.close(grace=0)
            for call in pool._unfired_calls():
                pool._end_now(call)
        runtime._flush(all_of_it=True)
        until = monotonic() + _ending
        while any(map(self._may_yet_end, self._pools())):
            if monotonic() >= until:
                break
            runtime.let_others_run()
            runtime._flush(all_of_it=True)
        runtime.end_waits()

    def _may_yet_end(self, pool: Pool) -> bool:
        """Has it calls that were killed just now?"""
        return pool._can_kill and not self._had_their_time.issuperset(pool._active_calls())
