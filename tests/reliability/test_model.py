"""The pool against a simple model of it, step by step, on the real reactor (hypothesis)."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.queue import Queue
from greenlet import GreenletExit
from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.python.failure import Failure

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from greendefer import CallTimeout, GreenPool, PoolClosed, PoolFull, Timeouts
from greendefer._bridge import wait_for_deferred

from . import LONG

reactor: Any = _reactor
SECONDS = 5.0


class Boom(Exception):
    """What a call raises when it is told to."""


class Modelled:
    """One call: what the model says of it, and what has been seen of it.

    :ivar state: queued, running, lingering, inner (it has returned a Deferred), or done.
    :ivar outcome: which statistic it counts for, if it does already.
    :ivar expected: what its Deferred is to fire with: a value, or the type of an error.
    :ivar fires_here: it fires where it is refused, or cancelled: in the caller's greenlet.
    """

    def __init__(self, number: int, swallows: bool, abandons: bool, limits: set[str]) -> None:
        self.number = number
        self.swallows = swallows
        self.abandons = abandons
        self.limits = limits
        self.state = "new"
        self.outcome: str | None = None
        self.told = False  # to end
        self.expected: list[Any] = []
        self.fires_here = False
        self.inner: Deferred[Any] | None = None
        # What is seen of it.
        self.inbox: Any = Queue()
        self.d: Any = None
        self.fired: list[Any] = []
        self.fired_in: list[Any] = []

    @property
    def has_deadline(self) -> bool:
        """Is a limit of its time counted now?"""
        return self.state in ("queued", "running", "inner") and not self.limits.isdisjoint(
            ("total", "queued" if self.state == "queued" else "running")
        )


class Closing:
    """One ``close()``.

    :ivar fires: its Deferred is to fire.
    :ivar deadline: when its grace is over, if it has one and anything runs.
    """

    def __init__(self) -> None:
        self.fires = False
        self.deadline: Any = None
        self.fired_in: list[Any] = []


class PoolMachine(RuleBasedStateMachine):
    """Each rule does something to the pool, and says what that does to the model."""

    patience = SECONDS

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Modelled] = []
        self.begun: list[int] = []
        self.size = 1
        self.most = 1  # how many may hold a slot now: more than size after a resize
        self.closed = False
        self.closings: list[Closing] = []
        self.max_queued: int | None = None
        self.broken: list[str] = []

    @initialize(size=st.integers(1, 4), max_queued=st.none() | st.integers(0, 3))
    def make(self, size: int, max_queued: int | None) -> None:
        self.size = self.most = size
        self.max_queued = max_queued
        self.pool = GreenPool(size, max_queued=max_queued)

    # The model.

    def having(self, *states: str) -> list[Modelled]:
        return [call for call in self.calls if call.state in states]

    def admitted(self, call: Modelled) -> None:
        call.number = len(self.calls)
        self.calls.append(call)
        if self.closed:
            self.refused(call, PoolClosed)
        elif len(self.having("running", "lingering")) < self.size and not self.having("queued"):
            call.state = "running"
        elif self.max_queued is None or len(self.having("queued")) < self.max_queued:
            call.state = "queued"
        else:
            self.refused(call, PoolFull)

    def refused(self, call: Modelled, expected: Any) -> None:
        call.fires_here = True
        self.over(call, "rejected", expected)

    def over(self, call: Modelled, outcome: str, expected: Any, state: str = "done") -> None:
        call.outcome = outcome
        call.state = state
        call.expected.append(expected)

    def refill(self) -> None:
        held = len(self.having("running", "lingering"))
        for call in self.having("queued")[: max(0, self.size - held)]:
            call.state = "running"
        if not self.having("running", "lingering"):
            for closing in self.closings:
                closing.fires = True

    def killed(self, call: Modelled, outcome: str, expected: Any) -> None:
        """It fires now, and ends, unless it does not listen."""
        call.told = True
        self.over(call, outcome, expected, "lingering" if call.swallows else "done")
        call.swallows = False

    def given_up(self, call: Modelled, outcome: str, expected: Any, kills: bool) -> None:
        if call.state == "running" and kills:
            self.killed(call, outcome, expected)
        else:
            self.over(call, outcome, expected, "lingering" if call.state == "running" else "done")

    # What the calls do.

    def body(self, call: Modelled) -> Any:
        self.begun.append(call.number)
        self.look()
        while True:
            try:
                what, value = call.inbox.get()
            except GreenletExit:
                if self.is_deaf(call):
                    continue
                raise
            if what == "return":
                return value
            if what == "raise":
                raise value
            value()

    def is_deaf(self, call: Modelled) -> bool:
        """Each call that swallows kills does so once."""
        deaf = call.number in self.deaf
        self.deaf.discard(call.number)
        return deaf

    @property
    def deaf(self) -> set[int]:
        found: set[int] = self.__dict__.setdefault("_deaf", set())
        return found

    def look(self) -> None:
        """What must hold at every moment, also in the middle of things."""
        s = self.pool.stats()
        ended = s.completed + s.failed + s.cancelled + s.timed_out + s.rejected
        if s.submitted != s.running + s.queued + ended:
            self.broken.append(f"does not add up: {s}")
        if s.running + s.lingering > self.most:
            self.broken.append(f"more than {self.most} at once: {s}")
        if self.max_queued is not None and s.queued > self.max_queued:
            self.broken.append(f"more than {self.max_queued} queued: {s}")
        if min(vars(s).values()) < 0:
            self.broken.append(f"below 0: {s}")

    def submit_now(self, call: Modelled) -> Any:
        self.admitted(call)
        if call.swallows:
            self.deaf.add(call.number)
        # Those with none at all are to be had, too; none of all that are there is over by itself.
        timeouts = Timeouts(**dict.fromkeys(call.limits, 3600)) if call.limits else None
        how = "abandon" if call.abandons else "kill"
        call.d = d = self.pool._call(self.body, (call,), {}, timeouts, how)  # type: ignore[arg-type]

        def fired(result: Any) -> None:
            call.fired.append(result)
            call.fired_in.append(gevent.getcurrent())
            self.look()

        d.addBoth(fired)
        if call.fired and call.state != "done":
            self.broken.append(f"call {call.number} fired at once: {call.fired}")
        return d

    def in_reactor(self, f: Any, *args: Any) -> Any:
        d: Deferred[Any] = Deferred()
        reactor.callFromThread(lambda: maybeDeferred(f, *args).chainDeferred(d))
        return wait_for_deferred(d, SECONDS)

    # The rules.

    options = st.tuples(
        st.booleans(), st.booleans(), st.sets(st.sampled_from(["total", "queued", "running"]))
    )
    which = st.integers(0, 99)

    @rule(options=options, in_reactor=st.booleans(), count=st.integers(1, 4))
    def submit(self, options: Any, in_reactor: bool, count: int) -> None:
        for _ in range(count):
            call = Modelled(0, *options)
            if in_reactor:
                self.in_reactor(lambda call=call: self.submit_now(call) and None)
            else:
                self.submit_now(call)

    @rule(options=options)
    def submit_and_cancel(self, options: Any) -> None:
        """Before anything can have begun."""
        call = Modelled(0, *options)

        def both() -> None:
            self.submit_now(call)
            if not call.fired:
                self.over(call, "cancelled", CancelledError)
                self.refill()
                call.d.cancel()

        self.in_reactor(both)

    @precondition(lambda self: self.having("running"))
    @rule(which=which, options=options)
    def submit_from_inside(self, which: int, options: Any) -> None:
        call = self.pick(which, "running")
        another = Modelled(0, *options)
        done = gevent.event.Event()
        call.inbox.put(("call", lambda: (self.submit_now(another), done.set())))
        assert done.wait(SECONDS)

    @precondition(lambda self: self.having("running"))
    @rule(which=which, options=options)
    def submit_from_a_callback(self, which: int, options: Any) -> None:
        call = self.pick(which, "running")
        another = Modelled(0, *options)

        def submit(result: Any) -> None:
            self.submit_now(another)

        # Its slot is free by then, and taken by the first in the queue.
        call.d.addBoth(submit)
        self.over(call, "completed", "value")
        self.refill()
        call.inbox.put(("return", "value"))
        self.until(lambda: another.d is not None)

    def pick(self, which: int, *states: str) -> Modelled:
        calls = self.having(*states)
        return calls[which % len(calls)]

    @precondition(lambda self: self.having("running", "lingering"))
    @rule(which=which, how=st.sampled_from(["return", "raise", "SystemExit", "GreenletExit"]))
    def end(self, which: int, how: str) -> None:
        call = self.pick(which, "running", "lingering")
        errors = {"raise": Boom(), "SystemExit": SystemExit(7), "GreenletExit": GreenletExit()}
        if call.state == "lingering":
            call.state = "done"
        elif how == "return":
            self.over(call, "completed", ("value", call.number))
        else:
            self.over(call, "failed", type(errors[how]))
        self.refill()
        if how == "return":
            call.inbox.put(("return", ("value", call.number)))
        else:
            call.inbox.put(("raise", errors[how]))

    @precondition(lambda self: self.having("running"))
    @rule(which=which)
    def return_a_deferred(self, which: int) -> None:
        """Its slot is free then, and it goes on."""
        call = self.pick(which, "running")
        call.inner = Deferred()
        call.state, call.outcome = "inner", "completed"
        self.refill()
        call.inbox.put(("return", call.inner))

    @precondition(lambda self: self.having("inner"))
    @rule(which=which, fails=st.booleans())
    def fire_that_deferred(self, which: int, fails: bool) -> None:
        call = self.pick(which, "inner")
        assert call.inner is not None
        if fails:
            self.over(call, "failed", Boom)
            self.in_reactor(call.inner.errback, Failure(Boom()))
        else:
            self.over(call, "completed", "later")
            self.in_reactor(call.inner.callback, "later")

    @precondition(lambda self: self.calls)
    @rule(which=which, in_reactor=st.booleans())
    def cancel(self, which: int, in_reactor: bool) -> None:
        """Whichever: one that has fired does not care."""
        call = self.calls[which % len(self.calls)]
        inner = call.inner if call.state == "inner" else None
        if call.state in ("queued", "running", "inner"):
            call.fires_here = True
            self.given_up(call, "cancelled", CancelledError, not call.abandons)
            self.refill()
        if in_reactor:
            self.in_reactor(call.d.cancel)
        else:
            call.d.cancel()
        # What it has returned is cancelled with it, or goes on unheard.
        assert inner is None or inner.called is not call.abandons

    @precondition(lambda self: any(call.has_deadline for call in self.calls))
    @rule(which=which)
    def expire(self, which: int) -> None:
        """Its deadline, in an hour, is now."""
        calls = [call for call in self.calls if call.has_deadline]
        call = calls[which % len(calls)]
        self.given_up(call, "timed_out", CallTimeout, True)
        self.refill()
        d = call.d
        d._deadline.cancel()
        d._deadline = d.pool._runtime.deadlines.at(d.pool._runtime.now(), d._expire)

    @precondition(lambda self: self.having("running"))
    @rule(which=which)
    def kill_by_hand(self, which: int) -> None:
        """Somebody throws GreenletExit into its greenlet: no business of the pool's."""
        call = self.pick(which, "running")
        if call.swallows:
            call.swallows = False
        else:
            self.over(call, "failed", GreenletExit)
            self.refill()
        worker = call.d.carried_by
        worker.parent.loop.run_callback(worker.throw, GreenletExit())

    @rule(size=st.integers(1, 5))
    def resize(self, size: int) -> None:
        self.most = max(size, len(self.having("running", "lingering")))
        self.size = size
        self.refill()
        self.pool.resize(size)

    # An idle pool is closed at the end of each run; here it would be the end of most.
    @precondition(lambda self: self.having("running", "lingering"))
    @rule(grace=st.sampled_from([None, 0, 3600]), soon=st.booleans())
    def close(self, grace: float | None, soon: bool) -> None:
        self.closed = True
        for call in self.having("queued"):
            self.over(call, "rejected", PoolClosed)
        closing = Closing()
        self.closings.append(closing)
        if grace == 0:
            self.all_are_killed(closing)
        self.refill()
        deadlines = self.deadlines()
        closed = self.pool.close(grace=grace)
        closed.addBoth(lambda _: closing.fired_in.append(gevent.getcurrent()))
        (closing.deadline,) = self.deadlines() - deadlines or [None]
        if soon and closing in self.graces():
            self.end_grace(closing)

    @precondition(lambda self: self.graces())
    @rule(which=which)
    def the_grace_is_over(self, which: int) -> None:
        graces = self.graces()
        self.end_grace(graces[which % len(graces)])

    def end_grace(self, closing: Closing) -> None:
        """It was an hour."""
        self.all_are_killed(closing)
        self.refill()
        runtime = self.pool._runtime
        kill = closing.deadline.expired
        closing.deadline.cancel()
        runtime.deadlines.at(runtime.now(), kill)

    def graces(self) -> list[Closing]:
        return [each for each in self.closings if each.deadline is not None and not each.fires]

    def deadlines(self) -> set[Any]:
        if self.pool._bound_to is None:
            return set()
        return {deadline for _, _, deadline in self.pool._runtime.deadlines._heap}

    def all_are_killed(self, closing: Closing) -> None:
        closing.fires = True
        lingering = self.having("lingering")
        for call in self.having("running"):
            self.killed(call, "cancelled", PoolClosed)
        # Those that were abandoned are killed now; those that were killed, not again.
        for call in lingering:
            if not call.told:
                call.told = True
                if not call.swallows:
                    call.state = "done"
                call.swallows = False

    # What must hold after each.

    def until(self, condition: Any) -> None:
        assert self.comes(condition), f"never: {self.difference()}"

    def comes(self, condition: Any) -> bool:
        """Does that come true in time?"""
        with gevent.Timeout(PoolMachine.patience, False):
            while not condition():
                self.round()
            return True
        # What is found is made smaller, in some hundred runs that each wait for it in vain.
        PoolMachine.patience = SECONDS / 10
        return False

    def round(self) -> None:
        """The hub and the reactor have both had a turn."""
        gevent.sleep(0)
        self.in_reactor(int)

    def difference(self) -> str | None:
        """How what is seen differs from the model."""
        running, lingering = len(self.having("running")), len(self.having("lingering"))
        s = self.pool.stats()
        if (s.running, s.lingering, s.queued) != (running, lingering, len(self.having("queued"))):
            return f"{s}; the model: {[(c.number, c.state) for c in self.calls]}"
        for outcome in "completed", "failed", "cancelled", "timed_out", "rejected":
            modelled = sum(call.outcome == outcome for call in self.calls)
            if getattr(s, outcome) != modelled:
                return f"{outcome} {modelled}: {s}"
        for call in self.calls:
            if len(call.fired) != len(call.expected):
                return f"call {call.number} fired {call.fired}, not {call.expected}"
            if call.state in ("running", "inner") and call.number not in self.begun:
                return f"call {call.number} has not begun"
            if (call.d._deadline is not None) != call.has_deadline:
                return f"call {call.number} is {call.state}, {call.limits}: {call.d._deadline}"
        for closing in self.closings:
            if len(closing.fired_in) != closing.fires:
                return f"close() fired {closing.fired_in}, not {closing.fires}"
        return None

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert self.comes(lambda: self.difference() is None), self.difference()
        for _ in range(2):  # and nothing else happens
            self.round()
        assert self.difference() is None, self.difference()
        # Those that fired have ended by now: where it was resized below them, there are fewer.
        self.most = max(self.size, len(self.having("running", "lingering")))
        self.look()
        assert not self.broken, self.broken
        assert self.begun == sorted(self.begun)
        assert len(set(self.begun)) == len(self.begun)
        for call in self.calls:
            for got, expected, where in zip(call.fired, call.expected, call.fired_in, strict=True):
                if isinstance(got, Failure):
                    assert got.check(expected), (call.number, got)
                else:
                    assert got == expected, call.number
                assert call.fires_here or where is self.reactors, (call.number, where)
        assert all(g is self.reactors for each in self.closings for g in each.fired_in)

    @property
    def reactors(self) -> Any:
        return reactor.cooperative_wait.greenlet

    def teardown(self) -> None:
        """It ends; and nothing is left."""
        if not hasattr(self, "pool"):
            return
        self.deaf.clear()
        for call in self.having("inner"):
            self.over(call, "cancelled", CancelledError)
            call.d.cancel()
        for call in self.having("queued", "running", "lingering"):
            call.inbox.put(("return", "at last"))
        self.until(lambda: not self.pool._active and not self.pool._queue)
        closed: list[Any] = []
        self.pool.close().addBoth(closed.append)
        self.until(lambda: closed)
        assert all(len(call.fired) == 1 for call in self.calls)


def test_the_pool_is_as_its_model() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        PoolMachine,
        settings=settings(
            max_examples=3000 if LONG else 150,
            stateful_step_count=50 if LONG else 30,
            deadline=None,
            derandomize=not LONG,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            phases=set(Phase) - {Phase.explain},
        ),
    )


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("grace", [0, 3600])
def test_calls_that_a_close_ends(grace: float, swallows: bool) -> None:
    """Chance comes to this now and then only: calls that run, wait, and were abandoned before."""
    machine = PoolMachine()  # type: ignore[no-untyped-call]
    machine.make(2, None)
    machine.holds()
    machine.submit((swallows, True, set()), False, 1)
    machine.holds()
    machine.cancel(0, False)
    machine.submit((swallows, False, {"total"}), False, 2)
    machine.holds()
    machine.close(grace, False)
    machine.holds()
    if grace:
        machine.the_grace_is_over(0)
        machine.holds()
    expected = [CancelledError, PoolClosed, PoolClosed]
    assert [call.expected for call in machine.calls] == [[error] for error in expected]
    machine.teardown()
