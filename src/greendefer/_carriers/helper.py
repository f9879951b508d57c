"""Calls in greenlets of a helper thread, for a reactor that does not run on gevent's hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent
from gevent.hub import Waiter

from .._reactor.loops import LoopInbox
from . import Job, WorkItem
from .greenlets import GreenletCarrier, PinnedGreenletCarrier, throw_kill
from .native import ENDING_SECONDS, allocate_lock, start_thread

if TYPE_CHECKING:
    from .._admission import Call
    from .._runtime import Runtime


DESCRIPTORS = 8
"""What a hub needs, and some more."""


def check_descriptors() -> None:
    """See that there are descriptors for a hub: libev ends the process where there are none
    (evpipe_init and ev_syserr in ev.c).

    :raises OSError: there are not.
    """
    found: list[int] = []
    try:
        found.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(DESCRIPTORS))
    finally:
        for each in found:
            os.close(each)


class HelperHub:
    """gevent's hub, running in a thread of its own: a :class:`~.greenlets.HubHandle`.

    :raises RuntimeError: the thread can't be started.
    :raises OSError: its hub can't be made: there are no descriptors left, say.
    """

    hub: Any
    loop: Any

    def __init__(self, runtime: Runtime) -> None:
        self.call_soon: Callable[..., object] = runtime.call_soon
        self._ended: Any = None
        self._failed: BaseException | None = None
        is_there = allocate_lock()
        is_there.acquire()
        self._join = start_thread(lambda: self._run(is_there.release), "greendefer-hub")
        is_there.acquire()
        if self._failed is not None:
            raise self._failed

    def yield_to_reactor(self) -> None:
        pass  # there is no reactor here that should be first

    def stop(self) -> None:
        """Let the thread end, after what was asked before."""
        self.ask(self._ended.switch, None)
        self._join(ENDING_SECONDS)

    def _run(self, is_there: Callable[[], object]) -> None:
        try:
            check_descriptors()
            self.hub = gevent.get_hub()
            self.loop = self.hub.loop
            self._ended = Waiter(self.hub)
            inbox = LoopInbox(self.loop, ref=True)
            self.ask: Callable[..., object] = inbox.ask
        except BaseException as e:
            self._failed = e
            return
        finally:
            is_there()
        try:
            self._ended.get()
        finally:
            inbox.close()


class HelperCarrier:
    """A :class:`GreenletCarrier` on the hub of another thread than the reactor's."""

    kind = "greenlets of a helper thread"
    can_kill = True
    can_nest = True
    outlives_fork = False

    def __init__(self, runtime: Runtime, helper: HelperHub) -> None:
        self._runtime = runtime
        self._helper = helper
        self._there = GreenletCarrier(helper)

    def start(self, call: Call) -> None:
        self._helper.ask(self._there.start, WorkItem(self._runtime, call))

    def withdraw(self, call: Call) -> bool:
        item: WorkItem = call.carried_by
        return item.claim()

    def kill(self, call: Call) -> None:
        _kill_there(self._helper, call)

    def pinned(self) -> PinnedHelperCarrier:
        return PinnedHelperCarrier(self._runtime, self._helper, self._there)

    def stop(self) -> None:
        self._there.stop()


class PinnedHelperCarrier:
    """One such greenlet, kept: see :class:`greendefer._carriers.PinnedCarrier`."""

    kind = "one greenlet of a helper thread"
    can_kill = True
    can_nest = False
    outlives_fork = False

    def __init__(self, runtime: Runtime, helper: HelperHub, carrier: GreenletCarrier) -> None:
        self._runtime = runtime
        self._helper = helper
        self._there: PinnedGreenletCarrier = carrier.pinned()

    def start(self, call: Job) -> None:
        self._helper.ask(self._there.start, WorkItem(self._runtime, call))

    def withdraw(self, call: Call) -> bool:
        item: WorkItem = call.carried_by
        return item.claim()

    def kill(self, call: Job) -> None:
        _kill_there(self._helper, call)

    def stop(self) -> None:
        self._helper.ask(self._there.stop)

    def serve(self) -> None:
        self._there.serve()


def _kill_there(helper: HelperHub, call: Job) -> None:
    helper.ask(throw_kill, helper, call.carried_by)
