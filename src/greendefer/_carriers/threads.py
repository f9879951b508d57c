"""Calls in native threads, which are started on demand, used again, and end when idle."""

from __future__ import annotations

from _queue import Empty
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent
from twisted.python.failure import Failure

from .._errors import GreendeferError, failed_with
from . import Job, WorkItem
from .native import ENDING_SECONDS, IDLE_SECONDS, Mailbox, start_thread

if TYPE_CHECKING:
    from .._admission import Call
    from .._runtime import Runtime

_number = count(1).__next__


class ThreadCarrier:
    """The threads of one pool: as many as it has had calls at once, less those that were idle."""

    kind = "native threads"
    can_kill = False
    can_nest = True
    outlives_fork = False

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._idle: deque[_Thread] = deque()

    def start(self, call: Call) -> None:
        item = WorkItem(self._runtime, call)
        idle = self._idle
        while idle:
            if idle.pop().take(item):
                return
        try:
            _Thread(self, item)
        except RuntimeError as e:
            item.claim()  # it was shown to nobody else
            error = GreendeferError(f"{call.name}: no thread could be started for it: {e}")
            error.__cause__ = e
            item.end(Failure(error))

    def withdraw(self, call: Call) -> bool:
        item: WorkItem = call.carried_by
        return item.claim()

    def kill(self, call: Call) -> None:
        raise NotImplementedError("a thread can't be killed")

    def pinned(self) -> PinnedThreadCarrier:
        return PinnedThreadCarrier(self._runtime)

    def stop(self) -> None:
        idle = list(self._idle)
        self._idle.clear()
        for thread in idle:
            thread.take(None)
        for thread in idle:
            thread.join(ENDING_SECONDS)

    def ended(self, thread: _Thread, call: Call, result: Any) -> None:
        """A thread has run its call, and is free."""
        idle = self._idle
        while idle and idle[0].has_left:
            idle.popleft()
        if self._runtime.stopped:
            thread.take(None)
        else:
            idle.append(thread)
        call.end(result)


class _Thread:
    """One thread, which waits for its next call in a mailbox of its own."""

    def __init__(self, carrier: ThreadCarrier, item: WorkItem) -> None:
        self._carrier = carrier
        self._inbox: Mailbox = Mailbox()
        self._inbox.put(item)
        # Whoever takes it decides: the reactor's thread, that there is one more call to run; this
        # one, that it was idle for long enough.
        self._vacant: list[bool] = []
        self.has_left: bool = False
        self.join: Callable[[float], object] = start_thread(self._run, f"greendefer-{_number()}")

    def take(self, item: WorkItem | None) -> bool:
        """Run this one next; ``None`` ends the thread. ``False`` if it has ended by itself."""
        try:
            self._vacant.pop()
        except IndexError:
            return False
        self._inbox.put(item)
        return True

    def _run(self) -> None:
        while True:
            try:
                item = self._inbox.get(timeout=IDLE_SECONDS)
            except Empty:
                try:
                    self._vacant.pop()
                except IndexError:
                    continue  # there is one on the way
                self.has_left = True
                return
            if item is None:
                return
            if item.begin():
                result = execute(item)
                call, runtime = item.call, item.runtime
                del item
                self._vacant.append(True)
                runtime.deliver(self._ended, (call, result))
                del call, result
            else:  # it was withdrawn, and nothing will be heard of it
                del item
                self._vacant.append(True)
                self._carrier._runtime.deliver(self._carrier._idle.append, self)

    def _ended(self, ended: tuple[Call, Any]) -> None:
        self._carrier.ended(self, *ended)


def execute(item: WorkItem) -> Any:
    """Run one call that has begun, in this thread.

    :returns: its result, or a Failure.
    """
    current: Any = getcurrent()
    outer = getattr(current, "greendefer_call", None)
    current.greendefer_call = item.call  # see current_call()
    try:
        return item.run()
    except BaseException as e:
        return failed_with(e)
    finally:
        current.greendefer_call = outer


class PinnedThreadCarrier:
    """One thread of a pool, kept: see :class:`greendefer._carriers.PinnedCarrier`."""

    kind = "one native thread"
    can_kill = False
    can_nest = False
    outlives_fork = False

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._inbox: Mailbox = Mailbox()

    def start(self, call: Job) -> None:
        self._inbox.put(WorkItem(self._runtime, call))

    def withdraw(self, call: Call) -> bool:
        item: WorkItem = call.carried_by
        return item.claim()

    def kill(self, call: Job) -> None:
        raise NotImplementedError("a thread can't be killed")

    def stop(self) -> None:
        self._inbox.put(None)

    def serve(self) -> None:
        while (item := self._inbox.get()) is not None:
            if item.begin():
                item.end(execute(item))
            del item
