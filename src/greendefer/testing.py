"""To test code that uses greendefer, with no reactor, no hub, no threads and no time.

The pools here take the place of a real one: give the decorated code a pool by ``pool=lambda _:
settings.pool``, say, or by :func:`greendefer.with_options`, and in a test one of these. They need
no reactor, installed or running, so they work alike under ``trial``, ``pytest`` and ``unittest``:
for calls, workers, iterations (:func:`greendefer.green_iterator`), and proxies
(:func:`greendefer.green_proxy`).

There is no next turn of a reactor here. So a call of a proxy's method is made at once, and if it is
then entered or iterated over, its result is: these are two calls in the statistics, and one on a
real pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from greenlet import GreenletExit, getcurrent, greenlet
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from ._admission import Call
from ._carriers.threads import execute
from ._deadlines import Deadlines
from ._errors import shown
from ._policy import check_seconds
from ._runtime import Runtime
from ._twistedcontext import make_greenlet_local
from ._worker import WithWorkers


class _TestPool(WithWorkers):
    _test_home: _TestRuntime

    def _find_runtime(self) -> Runtime:
        return self._test_home


class InlinePool(_TestPool):
    """Runs each call at once, in the caller: its Deferred has fired when it returns.

    ::

        def test_price():
            d = with_options(shop.price, pool=InlinePool())("tea")
            assert SynchronousTestCase().successResultOf(d) == 3

    Statistics and errors are those of a real pool. There is nothing to queue, to cancel or to
    time out, unless the function returns a Deferred that has not fired.

    What an iteration or an ``async with`` does on its worker is done at once, too, and all of it in
    one greenlet: a coroutine that waits for nothing else has ended when it was begun.
    """

    def __init__(self, name: str | None = "inline") -> None:
        super().__init__(1_000_000, name=name)  # as many as call each other
        self._test_home = _TestRuntime(Clock())
        self._bind()

    def _make_carrier(self, runtime: Runtime) -> _Carrier:
        return _Carrier(self._test_home, _AtOnce(self._test_home))


class ClockPool(_TestPool):
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

    A worker needs a slot and no step; each of its calls waits for one. So an iteration takes one
    for each item that is not prefetched, and one to find that there are no more, and an ``async
    with`` over something proxied one for ``__enter__``, one for ``__exit__``, and those of the
    calls in between.

    :param clock: whose time it is; it also says when things end.
    :raises TypeError: `clock` is not a clock.
    """

    def __init__(
        self,
        clock: Clock,
        size: int = 100,
        *,
        max_queued: int | None = None,
        name: str | None = "clock",
    ) -> None:
        if not all(callable(getattr(clock, name, None)) for name in ("seconds", "callLater")):
            raise TypeError(
                f"ClockPool(clock) needs a twisted.internet.task.Clock, not {shown(clock)}"
            )
        super().__init__(size, max_queued=max_queued, name=name)
        self.clock = clock
        self._test_home = _TestRuntime(clock)
        self._steps = _BySteps(self._test_home, clock)
        self._bind()

    def _make_carrier(self, runtime: Runtime) -> _Carrier:
        return _Carrier(self._test_home, self._steps)

    @property
    def waiting(self) -> int:
        """How many calls have a slot, or their worker, and wait for :meth:`step`."""
        return len(self._steps.ready)

    def step(self, takes: float = 0.0) -> None:
        """Run the call that has waited longest.

        :param takes: seconds on the clock until it has ended.
        :raises LookupError: none waits.
        :raises TypeError: `takes` is not a number.
        :raises ValueError: `takes` is negative, NaN or infinite.
        """
        check_seconds("step(takes=...)", takes, needed=True)
        self._steps.step(takes)

    def run(self) -> None:
        """Run calls until none waits, those that others leave behind included."""
        while self._steps.ready:
            self.step()


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

    def forked(self) -> None:  # pragma: no cover - nobody tells the pools of a test
        pass  # the clock is the child's, too


class _NoReactor:
    """What a runtime asks of its reactor, where there is none: it never stops, and what it is to do
    soon it does now."""

    def callFromThread(  # pragma: no cover - nothing comes from elsewhere, or is put off
        self, f: Callable[..., object], *args: Any
    ) -> None:
        f(*args)

    def addSystemEventTrigger(self, *args: Any) -> None:
        pass

    def callWhenRunning(self, *args: Any) -> None:
        pass


class _TestRuntime(Runtime):
    """Everything is here, and now."""

    def __init__(self, clock: Clock) -> None:
        make_greenlet_local()  # a worker is a greenlet here, too
        timer = _ClockTimer(clock)
        super().__init__(_NoReactor(), timer)
        self.now = clock.seconds
        self.deadlines = Deadlines(timer, clock.seconds)
        self._held: list[tuple[Callable[[Any], object], Any]] | None = None

    def is_here(self) -> bool:
        return True

    def deliver(self, fire: Callable[[Any], object], result: Any) -> None:
        current = getcurrent()
        if self._held is None and isinstance(current, _Stack):
            current.outbox.append((fire, result))
        else:
            self.when_settled(fire, result)

    def when_settled(self, f: Callable[[Any], object], value: Any) -> None:
        """Call ``f(value)`` now; where a call is just being ended, when it has been."""
        if self._held is None:
            f(value)
        else:
            self._held.append((f, value))

    def end(self, call: Any, result: Any) -> None:
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


class _AtOnce:
    """When calls run, and for how long: at once, and for no time."""

    kind = "the caller's stack"

    def __init__(self, runtime: _TestRuntime) -> None:
        self.runtime = runtime

    def add(self, call: Any, run: Callable[[Any, float], object]) -> None:
        """Have ``run(call, seconds)`` called when its time has come."""
        self.runtime.when_settled(partial(run, call), 0.0)

    def withdraw(self, call: Any) -> bool:
        """Forget it; ``False`` if it does not wait for its time."""
        return False

    def has_run(self, call: Any, result: Any, takes: float, end: Callable[..., object]) -> None:
        """Have ``end(call, result)`` called when it has taken its time."""
        end(call, result)

    def kill(self, call: Any) -> None:
        """Have it end now."""


class _BySteps(_AtOnce):
    """... or when the test says so, and for as long as it says."""

    kind = "a clock"

    def __init__(self, runtime: _TestRuntime, clock: Clock) -> None:
        super().__init__(runtime)
        self._clock = clock
        self.ready: dict[Any, Callable[[Any, float], object]] = {}
        self._running: dict[Any, tuple[Any, Callable[..., object]]] = {}

    def add(self, call: Any, run: Callable[[Any, float], object]) -> None:
        self.ready[call] = run

    def withdraw(self, call: Any) -> bool:
        return self.ready.pop(call, None) is not None

    def step(self, takes: float) -> None:
        if not self.ready:
            raise LookupError("No call has a slot and waits to be run")
        call = next(iter(self.ready))
        self.ready.pop(call)(call, takes)

    def has_run(self, call: Any, result: Any, takes: float, end: Callable[..., object]) -> None:
        if takes > 0:
            timer = self._clock.callLater(takes, self._over, call, result)
            self._running[call] = timer, end
        else:
            end(call, result)

    def _over(self, call: Any, result: Any) -> None:
        _, end = self._running.pop(call)
        end(call, result)

    def kill(self, call: Any) -> None:
        if call in self._running:
            timer, end = self._running.pop(call)
            timer.cancel()
            end(call, Failure(GreenletExit()))


class _Carrier:
    """Runs the calls of a pool on the caller's stack; one that hosts a worker on its own."""

    can_kill = True
    can_nest = True
    outlives_fork = True

    def __init__(self, runtime: _TestRuntime, line: _AtOnce) -> None:
        self.kind = line.kind
        self._runtime = runtime
        self._line = line

    def start(self, call: Call) -> None:
        if call.hosted is None:
            self._line.add(call, self._run)
        else:
            self._runtime.when_settled(self._host, call)

    def _run(self, call: Call, takes: float) -> None:
        if call.begin():
            self._line.has_run(call, execute(cast(Any, call)), takes, self._runtime.end)

    def _host(self, call: Call) -> None:
        if call.begin():
            call.carried_by = stack = _Stack(self._runtime, call)
            stack.enter()

    def withdraw(self, call: Call) -> bool:
        self._line.withdraw(call)
        return call.is_ready

    def kill(self, call: Call) -> None:
        if call.carried_by is None:
            self._line.kill(call)
        else:
            call.carried_by.kill()

    def pinned(self) -> _WorkerCarrier:
        return _WorkerCarrier(self._runtime, self._line)

    def stop(self) -> None:
        raise NotImplementedError("there is no reactor that could stop")


class _Stack(greenlet):
    """Where a call runs that lasts, since it hosts a worker: apart from the caller's stack, so that
    it can be left there, and gone back to.

    :ivar outbox: what it has to tell when it is left.
    :ivar killed: it is to end, and was at work when it was told.
    """

    def __init__(self, runtime: _TestRuntime, call: Call) -> None:
        super().__init__()
        self._runtime = runtime
        self._call = call
        self._at_work = False
        self.killed: bool = False
        self.outbox: list[tuple[Callable[[Any], object], Any]] = []

    def run(self, _: None) -> Any:
        return execute(cast(Any, self._call))

    @property
    def is_parked(self) -> bool:
        """Was it left, and can be gone back to?"""
        return not self._at_work and not self.dead

    def park(self, result: Any = None) -> Any:
        """Leave it, with `result`.

        :returns: what it is entered with.
        """
        caller = self.parent
        assert caller is not None
        return caller.switch(result)

    def enter(self, job: Any = None) -> Any:
        """Go on there until it is left, or has ended.

        :returns: what it is left with.
        """
        return self._go_on(self.switch, job)

    def kill(self) -> None:
        """End it where it was left; if it is at work, as soon as it is."""
        self.killed = True
        if self.is_parked:
            self.killed = False
            self._go_on(self.throw, GreenletExit)

    def _go_on(self, switch: Callable[[Any], Any], what: Any) -> Any:
        self.parent = getcurrent()
        self._at_work = True
        try:
            result = switch(what)
        finally:
            self._at_work = False
        ended = self.dead
        outbox, self.outbox = self.outbox, []
        for fire, value in outbox:
            fire(value)
        if ended:
            self._runtime.end(self._call, result)
        return result


class _WorkerCarrier:
    """Runs the calls of a worker, all of them on the stack of its host."""

    kind = "one stack"
    can_kill = True
    can_nest = False
    outlives_fork = True

    def __init__(self, runtime: _TestRuntime, line: _AtOnce) -> None:
        self._runtime = runtime
        self._line = line
        self._stack: _Stack | None = None
        self._early: list[Any] = []
        self._due: deque[tuple[Any, float]] = deque()
        self._unfinished: set[Any] = set()
        self._stopped = False

    def start(self, call: Any) -> None:
        self._unfinished.add(call)
        if self._stack is None:
            self._early.append(call)
        else:
            self._line.add(call, self._run)

    def withdraw(self, call: Call) -> bool:
        if not call.is_ready:
            return False
        self._forget(call)
        if not call.pool.stats().queued:  # else the next one is about to be started
            self._runtime.when_settled(self._go_on, None)
        return True

    def kill(self, call: Any) -> None:
        if self._forget(call):
            self._ended(call, Failure(GreenletExit()))
        else:
            self._line.kill(call)

    def _forget(self, call: Any) -> bool:
        """It is not to begin any more. ``False`` if it has."""
        if call in self._early:
            self._early.remove(call)
        elif not self._line.withdraw(call):
            return False
        self._unfinished.discard(call)
        return True

    def stop(self) -> None:
        self._stopped = True
        self._runtime.when_settled(self._go_on, None)

    def serve(self) -> None:
        stack = getcurrent()
        assert isinstance(stack, _Stack)
        self._stack = stack
        self._runtime.deliver(self._begin, None)
        job = stack.park()
        while job is not None:
            job = stack.park(execute(job))

    def _begin(self, _: None) -> None:
        early, self._early = self._early, []
        for call in early:
            self._line.add(call, self._run)
        self._go_on()

    def _run(self, call: Any, takes: float) -> None:
        self._due.append((call, takes))
        self._go_on()

    def _go_on(self, _: None = None) -> None:
        """Have the stack do what there is to do, unless it is at it."""
        stack = self._stack
        while stack is not None and stack.is_parked:
            if stack.killed:
                stack.kill()
            elif self._due:
                call, takes = self._due.popleft()
                if call.begin():
                    self._line.has_run(call, stack.enter(call), takes, self._ended)
            elif self._stopped and not self._unfinished:
                stack.enter()
            else:
                return

    def _ended(self, call: Any, result: Any) -> None:
        self._unfinished.discard(call)
        self._runtime.end(call, result)
        self._go_on()
