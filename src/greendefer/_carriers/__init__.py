"""How an admitted call runs. Each carrier is one way; the pool does not know which it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from .._admission import Call
    from .._runtime import Runtime


class Carrier(Protocol):
    """What a pool asks of whatever runs its calls. All of it in the reactor's thread.

    In return, and in that thread too, the carrier tells the call when it begins (``begin()``, which
    says whether it may) and with what it has ended (``end(result)``).
    """

    kind: str
    """What runs the calls, for people."""
    can_kill: bool
    """Can a running call be ended from outside?"""
    can_nest: bool
    """Can a call run while another one waits for it in the same slot?"""
    outlives_fork: bool
    """Do calls go on in a child process that is forked meanwhile?"""

    def start(self, call: Call) -> None:
        """Have the call run soon, in the order of these requests."""

    def withdraw(self, call: Call) -> bool:
        """Take back a call that was started; ``False`` if it runs already."""

    def kill(self, call: Call) -> None:
        """End a running call, which may take its time or refuse. Only where `can_kill`."""

    def stop(self) -> None:
        """The reactor has stopped: let go of what was kept for later calls."""


class CarrierWithWorkers(Carrier, Protocol):
    """One whose calls run on workers of its own."""

    def pinned(self) -> PinnedCarrier:
        """One of its workers, to be kept for several calls."""


class Job(Protocol):
    """What a kept worker runs: a call, or something that is less.

    :ivar call: the call that others see while it runs.
    :ivar was_killed: was it told to end?
    :ivar is_leaving: must it not be killed any more?
    :ivar carried_by: whatever its carrier needs to find it again while it runs.
    """

    carried_by: Any

    @property
    def name(self) -> str: ...
    @property
    def call(self) -> Call: ...
    @property
    def is_leaving(self) -> bool: ...
    @property
    def was_killed(self) -> bool: ...

    def begin(self) -> bool:
        """It starts to run now; ``False``, if it was withdrawn."""

    def run(self) -> Any:
        """Run it. On the worker."""

    def end(self, result: Any) -> None:
        """It has ended, with a value or a Failure."""

    def closed_error(self) -> Exception:
        """What it fails with when its worker is killed."""


class PinnedCarrier(Carrier, Protocol):
    """One worker, kept for calls that must all run on the same one.

    The worker runs :meth:`serve` as a call of its pool; the calls run inside of that. ``stop()``
    ends it when it has run what was started.
    """

    def start(self, call: Job) -> None:
        """Have it run soon, in the order of these requests."""

    def kill(self, call: Job) -> None:
        """End it while it runs."""

    def serve(self) -> None:
        """Run calls as they come, on the worker, until ``stop()``."""


class WorkItem:
    """A job on its way to another thread, and its results on their way back.

    It can be taken once: by the thread that runs it, or by the reactor's, which withdraws it.
    """

    __slots__ = ("_takers", "carried_by", "job", "runtime")

    def __init__(self, runtime: Runtime, job: Job) -> None:
        self.runtime: Runtime = runtime
        self.job: Job = job
        self.carried_by: Any = None
        job.carried_by = self
        self._takers = [True]

    @property
    def call(self) -> Call:
        return self.job.call

    def claim(self) -> bool:
        """Take it, if nobody did. ``list.pop`` is atomic."""
        try:
            return self._takers.pop()
        except IndexError:
            return False

    @property
    def is_taken(self) -> bool:
        return not self._takers

    def offer(self) -> None:
        """Let somebody else take it."""
        self._takers.append(True)

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def is_leaving(self) -> bool:
        return self.job.is_leaving

    def closed_error(self) -> Exception:
        return self.job.closed_error()

    was_killed: ClassVar[bool] = False
    """Who kills it asks its thread to, and that is after it has begun there."""

    # What the thread that takes it calls; the call hears of it in the reactor's.

    def begin(self) -> bool:
        if not self.claim():
            return False
        self.begun()
        return True

    def begun(self) -> None:
        """It was taken, and runs now."""
        if self.runtime.is_here():  # as in a "thread" of a patched executor, which is a greenlet
            self.job.begin()
        else:
            self.runtime.deliver(_begin, self.job)

    def run(self) -> Any:
        return self.job.run()

    def end(self, result: Any) -> None:
        self.runtime.deliver(self.job.end, result)


def _begin(job: Job) -> None:
    job.begin()
