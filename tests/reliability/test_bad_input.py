"""Every public function against wrong values: the error names the argument, the value and what is
allowed, and nothing is half done afterwards."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import gevent
import pytest
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import ReactorAlreadyInstalledError

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import greendefer
from greendefer import (
    ExecutorPool,
    GreenPool,
    Pool,
    Timeouts,
    _holdups,
    geventreactor,
    instrumentation,
    shutdown,
)
from greendefer._admission import Call
from greendefer._errors import shown
from greendefer._pool import default_pool
from greendefer._runtime import runtime_here
from greendefer._wrapping import behaviour_of
from greendefer.adbapi import GreenConnectionPool
from greendefer.shutdown import set_shutdown_grace
from greendefer.testing import InlinePool
from greendefer.threadpool import GreenThreadPool

from . import LONG, kinds
from .arguments import (
    BESIDES,
    PUBLIC,
    UNCHECKED,
    Argument,
    Entry,
    public_callables,
    the_reactor,
    waiting_pool,
)
from .kinds import Hostile, anything, blocking


class Row(NamedTuple):
    """A value that must be refused.

    :ivar f: what is called with it.
    :ivar allowed: what the error must say of what is allowed.
    """

    f: Callable[[Any], object]
    argument: Argument
    allowed: str
    value: Any

    def complaint(self) -> str | None:
        """What is wrong with the error."""
        try:
            self.f(self.value)
        except (TypeError, ValueError) as e:
            message = str(e)
        else:
            return f"{self.argument.named} {shown(self.value)} was taken"
        missing = {
            "name": self.argument.is_named(message),
            "value": self.argument.kind.is_shown(self.value, message),
            self.allowed: self.allowed in message,
            "end": len(message) <= 1000,
        }
        wanting = [what for what, is_there in missing.items() if not is_there]
        return f"{self.argument.named} {wanting}: {message}" if wanting else None


def with_one(entry: Entry, name: str) -> Callable[[Any], object]:
    return lambda value: entry.call(**{name: value})


def rows() -> Iterator[Row]:
    """Each argument of each public callable, with each wrong value of its kind."""
    for entry in PUBLIC.values():
        for name, argument in entry.arguments.items():
            for allowed, values in argument.kind.wrong:
                for value in values:
                    yield Row(with_one(entry, name), argument, allowed, value)
    yield from rows_besides()


def rows_besides() -> Iterator[Row]:
    """What is called in other ways than in the table there."""
    for decorator in (
        greendefer.green_deferred,
        greendefer.green_iterator,
        greendefer.blocking_from_greenlet,
        greendefer.in_order,
    ):
        name = decorator.__name__
        argument = next(iter(PUBLIC[f"greendefer.{name}"].arguments.values()))
        for allowed, values in argument.kind.wrong:
            for value in values:
                yield Row(decorator, argument, allowed, value)

    def inside(f: Any) -> None:
        """Of a worker's block, which takes no reactor here, and no time."""

        async def main() -> None:
            async with InlinePool().worker() as worker:
                await worker.submit(f)

        greendefer.wait_for_deferred(ensureDeferred(main()), 20)

    argument = PUBLIC["greendefer.PoolWorker.submit"].arguments["f"]
    for value in (None, *kinds.NOT_CALLABLE):
        yield Row(inside, argument, "something to call", value)

    green_threads = PUBLIC["greendefer.threadpool.GreenThreadPool"]
    yield Row(
        lambda v: green_threads.call(minthreads=v, maxthreads=5),
        green_threads.arguments["minthreads"],
        "at most maxthreads",
        6,
    )
    adjust = PUBLIC["greendefer.threadpool.GreenThreadPool.adjustPoolsize"]
    yield Row(
        lambda v: adjust.call(minthreads=v),
        adjust.arguments["minthreads"],
        "at most maxthreads",
        101,
    )
    argument = PUBLIC["greendefer.Timeouts"].arguments["on_expiry"]
    for pool in kinds.POOLS_THAT_KILL_NOTHING:
        for decorate in greendefer.green_deferred, greendefer.green_iterator:

            def with_a_limit(v: Any, decorate: Any = decorate, pool: Any = pool) -> None:
                decorate(pool=pool, timeout=Timeouts(on_expiry=v))

            allowed = f"can't be had on a {type(pool).__name__}"
            yield Row(with_a_limit, argument, allowed, "kill")


def there_now() -> int:
    """How many greenlets, calls and pools there are."""
    gc.collect()
    return sum(isinstance(o, (gevent.Greenlet, Pool, Call)) for o in gc.get_objects())


def test_wrong_values() -> None:
    """All of the table; and no greenlet, call or pool of it is left."""
    submitted, before = default_pool.stats().submitted, there_now()
    wrong = [complaint for row in rows() if (complaint := row.complaint()) is not None]
    assert not wrong, "\n".join(wrong)
    assert default_pool.stats().submitted == submitted
    assert there_now() <= before


def test_all_public_callables_are_in_the_table() -> None:
    """By inspection: a new function, method, or property that can be set, and each new parameter,
    is missed here. What has two names needs to be there by one of them."""
    in_table = {
        f"{name.partition(',')[0]}({each})"
        for name, entry in PUBLIC.items()
        for each in entry.arguments
    }
    found: dict[Any, tuple[set[str], set[str]]] = {}
    for name, thing, parameters in public_callables():
        names, _ = found.setdefault(thing, (set(), parameters))
        names.add(name)
    assert len(found) > 60
    missing = set()
    for names, parameters in found.values():
        for each in parameters:
            if not in_table & {f"{name}({each})" for name in names}:
                missing |= {f"{name}({each})" for name in names}
    exceptions = [pattern for patterns in UNCHECKED.values() for pattern in patterns]
    assert not {m for m in missing if not any(fnmatchcase(m, each) for each in exceptions)}
    assert not [each for each in exceptions if not any(fnmatchcase(m, each) for m in missing)]
    known = {
        f"{name}({each})"
        for names, parameters in found.values()
        for name in names
        for each in parameters
    }
    assert in_table - known == BESIDES
    for entry in PUBLIC.values():
        assert all(argument.kind.wrong for argument in entry.arguments.values())


def settled() -> Any:
    """What a refused call must leave as it was."""
    return (
        default_pool.stats(),
        instrumentation.get_hooks(),
        (shutdown._running, shutdown._ending),
        _holdups._threshold,
        len(the_reactor.getDelayedCalls()),
        # (An executor's thread may deliver once more after the call has ended.)
        sum(f != runtime_here()._flush for f, *_ in list(the_reactor.threadCallQueue)),
        triggers(),
    )


def triggers() -> list[Any]:
    """What is to be called as the reactor starts or stops."""
    events = the_reactor._eventTriggers.values()
    return [each for event in events for each in (*event.before, *event.during, *event.after)]


@pytest.fixture
def settings_kept() -> Any:
    hooks, threshold = instrumentation.get_hooks(), _holdups._threshold
    running, ending = shutdown._running, shutdown._ending
    size = default_pool.size
    yield
    instrumentation.set_hooks(hooks)
    instrumentation.warn_of_holdups(threshold)
    set_shutdown_grace(running, ending)
    default_pool.resize(size)


# What is taken can't be used here: a reactor is there, and the worker was not entered.
TAKEN_ALL_THE_SAME: dict[str, type[Exception]] = {
    "greendefer.install": ReactorAlreadyInstalledError,
    "greendefer.PoolWorker.submit": RuntimeError,
}


def check_that_it_is_right(name: str, values: dict[str, Any]) -> None:
    """What is not allowed, and nothing else, raises TypeError or ValueError, which names one of the
    wrong arguments and shows its value; and all is as it was before."""
    entry = PUBLIC[name]
    wrong, rule = entry.wrong_of(values), entry.broken_rule(values)
    is_wrong = bool(wrong) or rule is not None
    before = settled()
    try:
        taken = entry.call(**values)
    except TAKEN_ALL_THE_SAME.get(name, ()):
        assert not is_wrong
    except (TypeError, ValueError) as e:
        message = str(e)
        assert is_wrong, f"what is allowed was refused: {message}"
        blamed = [
            each
            for each in wrong
            if entry.arguments[each].is_named(message)
            and entry.arguments[each].kind.is_shown(values[each], message)
        ]
        assert blamed or (rule is not None and rule in message), message
        assert len(message) < 1000
        assert settled() == before
    else:
        assert not is_wrong, f"{wrong or rule}: it was taken"
        if isinstance(taken, Deferred):
            # Or its result comes, from another thread, while the next example looks what is there.
            greendefer.wait_for_deferred(taken.addErrback(lambda _: None), 20)
        greendefer.wait_for_deferred(default_pool.submit(len, "four"), 20)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("name", PUBLIC)
def test_values_that_are_nearly_right(name: str, settings_kept: None, logged: Any) -> None:
    for each, argument in PUBLIC[name].arguments.items():
        for value in argument.kind.near:
            if value is not None or argument.taken is not NotImplemented:
                check_that_it_is_right(name, {each: value})
    logged[:] = [event for event in logged if not event["isError"]]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("name", PUBLIC)
@settings(
    deadline=None,
    max_examples=1000 if LONG else 40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_fuzzed(name: str, data: Any, settings_kept: None, logged: Any) -> None:
    arguments = PUBLIC[name].arguments
    drawn = data.draw(st.sets(st.sampled_from(sorted(arguments)), min_size=1))
    values = {each: data.draw(arguments[each].kind.values(), label=each) for each in sorted(drawn)}
    assume(
        all(v is not None for each, v in values.items() if arguments[each].taken is NotImplemented)
    )
    check_that_it_is_right(name, values)
    # What was taken may well fail, as calling Interface does.
    logged[:] = [event for event in logged if not event["isError"]]


@settings(deadline=None, max_examples=100)
@given(size=anything, max_queued=anything, name=anything, timeout=anything, on_cancel=anything)
def test_what_is_taken_works(**values: Any) -> None:
    def tried(f: Any, **given: Any) -> Any:
        try:
            return f(**given)
        except (TypeError, ValueError):
            return None

    pool = tried(
        GreenPool,
        size=values["size"],
        max_queued=values["max_queued"],
        name=values["name"],
    )
    if pool is not None:
        assert greendefer.wait_for_deferred(pool.submit(len, "four"), 20) == 4
        repr(pool)
    green = tried(
        lambda timeout, on_cancel: greendefer.green_deferred(timeout=timeout, on_cancel=on_cancel)(
            blocking
        ),
        timeout=values["timeout"],
        on_cancel=values["on_cancel"],
    )
    if green is not None:
        d = green().addErrback(lambda failure: failure.trap(greendefer.CallTimeout) and 4)
        assert greendefer.wait_for_deferred(d, 20) == 4


class TestNothingIsHalfDone:
    """Where a wrong value comes beside, or behind, a right one."""

    def refused(self, f: Any, *args: Any, **kwargs: Any) -> None:
        with pytest.raises((TypeError, ValueError)):
            f(*args, **kwargs)

    def test_a_pool_keeps_its_size_and_stays_open(self) -> None:
        pool = GreenPool(3)
        self.refused(pool.resize, 0)
        self.refused(pool.close, grace=-1)
        assert pool.size == 3
        assert greendefer.wait_for_deferred(pool.submit(len, "four")) == 4

    def test_a_deferred_is_not_waited_for(self) -> None:
        d: Deferred[None] = Deferred()
        self.refused(greendefer.wait_for_deferred, d, -1)
        assert not d.called

    def test_no_call_of_several(self) -> None:
        called: list[int] = []
        several: list[Any] = [(called.append, (1,), {}), (called.append, 2, {})]
        self.refused(geventreactor.callMultipleInGreenlet, several)
        geventreactor.callMultipleInGreenlet([(called.append, (3,), {})])
        assert greendefer.wait_for_deferred(default_pool.submit(len, "four")) == 4
        assert called == [3]

    def test_a_call_on_a_clock_still_waits_for_its_step(self) -> None:
        pool = waiting_pool()
        for takes in "1", -1, math.nan:
            self.refused(pool.step, takes)
        assert pool.waiting == 1
        pool.step()
        assert pool.stats().completed == 1

    def test_a_thread_pool_keeps_both_sizes(self) -> None:
        pool = GreenThreadPool(1, 5)
        self.refused(pool.adjustPoolsize, "1", 7)
        self.refused(pool.adjustPoolsize, 8, 7)
        assert (pool.min, pool.max, pool.pool.size) == (1, 5, 5)

    def test_a_connection_pool_is_not_told_of_the_shutdown(self, in_reactor: Any) -> None:
        before = triggers()

        def refuse_some() -> None:
            for sizes in (
                *({"cp_max": 0}, {"cp_max": 0, "cp_min": 0}, {"cp_max": "5"}, {"cp_min": -1}),
                *({"cp_max": 2.5}, {"cp_max": True, "cp_min": 1}, {"cp_min": None}),
            ):
                self.refused(GreenConnectionPool, "sqlite3", **sizes)
            self.refused(GreenConnectionPool, 5)

        in_reactor(refuse_some)
        assert triggers() == before
        pool = in_reactor(GreenConnectionPool, "sqlite3", cp_max=1)
        assert (pool.min, pool.max) == (1, 1)  # fewer than the 3 that are the default of cp_min
        assert len(triggers()) == len(before) + 1
        greendefer.wait_for_deferred(pool.close(), 20)
        assert triggers() == before

    def test_nothing_is_called_in_a_thread(self, logged: Any) -> None:
        pool = GreenThreadPool(0, 1)
        self.refused(pool.callInThread, "f")
        self.refused(pool.callInThreadWithCallback, 5, len, "four")
        assert pool.pool.stats().submitted == 0

    def test_hooks_stay(self) -> None:
        before = instrumentation.get_hooks()
        self.refused(instrumentation.set_hooks, [instrumentation.LoggingHook(), 1])
        assert instrumentation.get_hooks() == before

    def test_options_stay(self) -> None:
        green = greendefer.green_deferred(timeout=5)(blocking)
        self.refused(greendefer.with_options, green, timeout=1, on_cancel="explode")
        assert behaviour_of(green).options["timeout"] == Timeouts(total=5)  # type: ignore[union-attr]


def test_a_pool_that_is_none(in_reactor: Any) -> None:
    """``pool=`` as a callable that returns something else: the call is not made."""
    green = greendefer.green_deferred(pool=lambda _: "no pool")(blocking)  # type: ignore
    with pytest.raises(TypeError, match=r"pool=.*must return a pool, not 'no pool'"):
        in_reactor(green)


def test_an_executor_that_is_none(result: Any) -> None:
    """What makes one makes something else: the call fails, and the pool is as before."""
    pool = ExecutorPool(lambda: Hostile(), 1)  # type: ignore[arg-type,return-value]
    for _ in range(2):
        error = result(pool.submit(len, "four")).get().value
        assert "function of an ExecutorPool returned" in str(error)
    s = pool.stats()
    assert (s.failed, s.running, s.lingering) == (2, 0, 0)
