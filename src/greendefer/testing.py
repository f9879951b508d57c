"""To test code that uses greendefer, with no greenlets, no threads and no time.

The pools here take the place of a real one: give the decorated code a pool by ``pool=lambda _:
settings.pool``, say, or by :func:`greendefer.with_options`, and in a test one of these. They need
no reactor, installed or running, so they work alike under ``trial``, ``pytest`` and ``unittest``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from greenlet import GreenletExit
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from .admission import Pool
from .call import Call
from .carriers import PinnedCarrier
from .deadlines import Deadlines
from .errors import shown
from .home import Home

P = ParamSpec("P")
T = TypeVar("T")


class InlinePool(Pool):
    """Runs each call at once, in the caller: its Deferred has fired when it returns.

    ::

        def test_price():
            d = with_options(shop.price, pool=InlinePool())("tea")
            assert SynchronousTestCase().successResultOf(d) == 3

    Statistics and errors are those of a real pool. There is nothing to queue, to cancel or to
    time out, unless the function returns a Deferred that has not fired.
    """

    def __init__(self, name: str | None = "inline") -> None:
        super().__init__(1_000_000, name=name)  # as many as call each other
        home = _TestHome(Clock())
        self._home = home
        self._carrier = _Inline(home)

    def worker(self) -> TestWorker:
        """See :meth:`greendefer.GreenPool.worker`."""
        return TestWorker(self)


class ClockPool(Pool):
    """Runs nothing by itself: calls wait until the test has them started and ended, and their
    time is that of a :class:`twisted.internet.task.Clock`.

    ::

        clock = Clock()
        pool = ClockPool(clock, size=1)
        d = with_options(shop.price, pool=pool, timeout=5)("tea")
        clock.advance(5)  # nobody has run it
        failureResultOf(d, CallTimeout)

    A call that has a slot waits for :meth:`step`, and then runs at once, in the caller of that.
    With ``takes=`` it is said to have taken so long: it holds its slot, and its Deferred stays
    open, until the clock has come that far. So limits, queues, timeouts and cancellation can be
    tested as they are, and in no time.

    :param clock: whose time it is; it also says when things end.
    :raises TypeError: `clock` is none.
    """

    def __init__(
        self,
        clock: Clock,
        size: int = 100,
        *,
        max_queued: int | None = None,
        name: str | None = "clock",
    ) -> None:
        if not hasattr(clock, "seconds") or not hasattr(clock, "callLater"):
            raise TypeError(
                f"ClockPool(clock) needs a twisted.internet.task.Clock, not {shown(clock)}"
            )
        super().__init__(size, max_queued=max_queued, name=name)
        self.clock = clock
        home = _TestHome(clock)
        self._home = home
        self._carrier = self._stepped = _Stepped(home, clock)

    @property
    def waiting(self) -> int:
        """How many calls have a slot, and wait for :meth:`step`."""
        return len(self._stepped.ready)

    def step(self, takes: float = 0.0) -> None:
        """Run the call that has waited longest.

        :param takes: seconds on the clock until it has ended.
        :raises LookupError: none waits.
        """
        self._stepped.step(takes)

    def run(self) -> None:
        """Run calls until none waits, those that others leave behind included."""
        while self._stepped.ready:
            self.step()

    def worker(self) -> TestWorker:
        """See :meth:`greendefer.GreenPool.worker`. Here it holds no slot of its own."""
        return TestWorker(self)


class TestWorker:
    """What ``pool.worker()`` is in a test: its calls are calls of the pool."""

    __test__ = False  # for pytest

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def submit(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """See :meth:`greendefer.GreenPool.submit`."""
        return self._pool.submit(f, *args, **kwargs)

    async def __aenter__(self) -> TestWorker:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass


class _ClockTimer:
    stops_when_idle = True

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._call: Any = None

    def start(self, when: float, f: Callable[[], object]) -> None:
        self.stop()
        self._call = self._clock.callLater(max(0.0, when - self._clock.seconds()), f)

    def stop(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    def forked(self) -> None:
        pass  # the clock is the child's, too


class _TestHome(Home):
    """Everything is here, and now."""

    def __init__(self, clock: Clock) -> None:
        self.now = clock.seconds
        self.deadlines = Deadlines(_ClockTimer(clock), clock.seconds)
        self.stopped = False
        self._held: list[tuple[Callable[[Any], object], Any]] | None = None

    def is_here(self) -> bool:
        return True

    def deliver(self, fire: Callable[[Any], object], result: Any) -> None:
        if self._held is None:
            fire(result)
        else:
            self._held.append((fire, result))

    def end(self, call: Call, result: Any) -> None:
        """End a call. Its Deferred fires when its slot is free, as it does in a reactor."""
        outer, self._held = self._held, []
        try:
            call.end(result)
        finally:
            held, self._held = self._held, None
            try:
                for fire, value in held:
                    fire(value)
            finally:
                self._held = outer


def _run(call: Call) -> Any:
    call.begin()
    try:
        return call.run()
    except BaseException:
        return Failure()


class _Inline:
    kind = "the caller's stack"
    can_kill = True
    outlives_fork = True
    can_nest = True

    def __init__(self, home: _TestHome) -> None:
        self._home = home

    def start(self, call: Call) -> None:
        self._home.end(call, _run(call))

    def withdraw(self, call: Call) -> bool:
        return call.claim()

    def kill(self, call: Call) -> None:
        pass

    def pinned(self) -> PinnedCarrier:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError("there is no reactor that could stop")


class _Stepped(_Inline):
    kind = "a clock"

    def __init__(self, home: _TestHome, clock: Clock) -> None:
        super().__init__(home)
        self._clock = clock
        self.ready: list[Call] = []
        self._running: dict[Call, Any] = {}

    def start(self, call: Call) -> None:
        self.ready.append(call)

    def withdraw(self, call: Call) -> bool:
        if call in self.ready:
            self.ready.remove(call)
            return True
        return False

    def step(self, takes: float) -> None:
        if not self.ready:
            raise LookupError("No call has a slot and waits to be run")
        call = self.ready.pop(0)
        result = _run(call)
        if takes > 0:
            self._running[call] = self._clock.callLater(takes, self._ended, call, result)
        else:
            self._home.end(call, result)

    def _ended(self, call: Call, result: Any) -> None:
        del self._running[call]
        self._home.end(call, result)

    def kill(self, call: Call) -> None:
        self._running.pop(call).cancel()
        self._home.end(call, Failure(GreenletExit()))
