"""What a hostile result may do: see "What is trusted" in docs/reliability.md."""

from __future__ import annotations

import concurrent.futures
import importlib
import os
import threading
from typing import Any

import gevent
import pytest
from gevent.queue import Queue
from twisted.internet.defer import CancelledError, Deferred
from twisted.python import log
from twisted.python.failure import Failure

import greendefer
from greendefer import (
    ExecutorFailed,
    ExecutorPool,
    GreendeferError,
    GreenPool,
    NativeThreadPool,
    Timeouts,
    WouldDeadlock,
    green_proxy,
    instrumentation,
)


class Raises(Exception):
    """Neither str() nor repr() can be had."""

    def __str__(self) -> str:
        raise SystemExit("from __str__")

    def __repr__(self) -> str:
        raise KeyboardInterrupt


class Waits(Exception):
    """Its str() and repr() wait, as for a database, if somebody asks."""

    asked = 0

    def __str__(self) -> str:
        Waits.asked += 1
        gevent.sleep(3600)
        return "at last"

    __repr__ = __str__


class Lies(Exception):
    """Its attributes are not what they seem."""

    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise OSError("from __cause__")

    def __eq__(self, other: object) -> bool:
        raise OSError("from __eq__")

    __hash__ = None  # type: ignore[assignment]


class OfNoClass(Exception):
    """Nobody may ask for its class."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise SystemExit("from __class__")


class Unbound:
    """A proxy of what is not there any more: werkzeug's LocalProxy, after the request."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("working outside of its context")


class OfAQueryBuilder(type):
    """Comparing two of them makes a condition, and that is true."""

    def __eq__(cls, other: object) -> Any:
        return [cls, "=", other]

    __hash__ = type.__hash__


class OfAMeanClass(type):
    """Whatever may be asked of a class is refused."""

    def __eq__(cls, other: object) -> bool:
        raise SystemExit("from __eq__")

    __hash__ = type.__hash__

    @property
    def __mro__(cls) -> Any:  # type: ignore[override]
        raise SystemExit("from __mro__")

    def __instancecheck__(cls, instance: object) -> bool:
        raise SystemExit("from __instancecheck__")

    def __subclasscheck__(cls, subclass: type) -> bool:
        raise SystemExit("from __subclasscheck__")


class Row(metaclass=OfAQueryBuilder):
    pass


class Mean(metaclass=OfAMeanClass):
    pass


class RefusesCallbacks(Deferred[Any]):
    """Nobody can hear of it."""

    def addBoth(self, *args: Any, **kwargs: Any) -> Any:
        raise SystemExit("from addBoth")

    addCallback = addErrback = addBoth


class Nameless:
    """Something to call that has no attribute at all, and says so in its own way."""

    def __getattr__(self, name: str) -> Any:
        raise OSError(f"there is no {name}")

    def __call__(self, f: Any = int) -> Any:
        return f()


POOLS = {"greenlets": lambda: GreenPool(2), "threads": lambda: NativeThreadPool(2)}


@pytest.mark.parametrize("error", [Raises, Waits, Lies, OfNoClass])
@pytest.mark.parametrize("kind", POOLS)
def test_exceptions(kind: str, error: Any, result: Any, stats: Any) -> None:
    """They are results like any other: nobody here asks them for a string."""
    Waits.asked = 0
    pool: Any = POOLS[kind]()

    def hostile() -> None:
        raise error

    for _ in range(3):
        got = result(pool.submit(hostile)).get()
        assert isinstance(got, Failure)
        assert got.type is (error if error is not OfNoClass else GreendeferError)
        assert error.__name__ in f"{got.type.__name__} {got.value.args}"
    assert greendefer.wait_for_deferred(pool.submit(len, "four")) == 4
    with pytest.raises(got.type):
        greendefer.wait_for_deferred(pool.submit(hostile))
    assert stats(pool).failed == 4
    assert Waits.asked == 0


@pytest.mark.parametrize("error", [Raises, Lies])
def test_exceptions_that_nobody_handles(error: Any, logged: Any) -> None:
    """Twisted logs them safely; and nothing else is disturbed."""

    def hostile() -> None:
        raise error

    def submit() -> None:
        greendefer.defer_to_greenlet(hostile)

    submit()
    assert greendefer.wait_for_deferred(greendefer.defer_to_greenlet(len, "four")) == 4
    importlib.import_module("gc").collect()
    errors = [event for event in logged if event["isError"]]
    assert any(error.__name__ in (log.textFromEventDict(event) or "") for event in errors)
    logged[:] = [event for event in logged if not event["isError"]]


@pytest.mark.parametrize(
    ("what", "says"),
    [(Unbound, "working outside of its context"), (RefusesCallbacks, "from addBoth")],
)
@pytest.mark.parametrize("kind", POOLS)
def test_a_result_that_no_deferred_can_have(
    kind: str, what: Any, says: str, result: Any, stats: Any
) -> None:
    """Twisted asks each result for its class; and who waits for a Deferred adds a callback. Where
    it refuses that, the call fails with what it says."""
    pool: Any = POOLS[kind]()
    got = [result(pool.submit(what)).get() for _ in range(3)]
    assert [str(each.value) for each in got] == [says] * 3
    assert greendefer.wait_for_deferred(pool.submit(len, "four")) == 4
    s = stats(pool)
    assert (s.failed, s.completed, s.running) == (3, 1, 0)
    assert result(pool.close()).get() is None


@pytest.mark.parametrize("what", [Row, Mean])
@pytest.mark.parametrize("kind", POOLS)
def test_a_result_whose_class_compares_oddly(kind: str, what: Any, result: Any, stats: Any) -> None:
    """A class may have a class of its own, with a say in ``==``, ``in`` and ``isinstance()``:
    nobody here asks it, and the result is one like any other."""
    pool: Any = POOLS[kind]()
    for _ in range(3):
        seen: Any = Queue()
        # Twisted compares the classes of what callbacks return.
        pool.submit(what).addBoth(lambda value, seen=seen: seen.put(value))
        assert type(seen.get(timeout=20)) is what
    seen = Queue()
    greendefer.wait_for_greenlet(gevent.spawn(what)).addBoth(lambda value: seen.put(value))
    assert type(seen.get(timeout=20)) is what
    wait = greendefer.blocking_from_greenlet(what)
    assert greendefer.wait_for_deferred(pool.submit(lambda: type(wait()) is what))
    s = stats(pool)
    assert (s.completed, s.running, s.queued) == (4, 0, 0)


@pytest.mark.parametrize("kind", POOLS)
def test_others_that_wait_for_such_a_deferred(kind: str, result: Any, stats: Any) -> None:
    """One that takes no callbacks: blocking code, and who waits for a greenlet."""
    got = result(greendefer.wait_for_greenlet(gevent.spawn(RefusesCallbacks))).get()
    assert str(got.value) == "from addBoth"
    pool: Any = POOLS[kind]()
    got = result(pool.submit(greendefer.blocking_from_greenlet(RefusesCallbacks))).get()
    assert str(got.value) == "from addBoth"
    assert stats(pool).running == 0


def test_such_a_deferred_that_nobody_hears_of(gate: Any, result: Any, stats: Any) -> None:
    """Its call was given up on before."""

    @greendefer.green_deferred(pool=(pool := GreenPool(1)), on_cancel="abandon")
    def hostile() -> Any:
        gate()
        return RefusesCallbacks()

    d = hostile()
    assert gate.entered.wait(10)
    fired = result(d)
    d.cancel()
    assert fired.error() is CancelledError
    gate.opened.set()
    assert greendefer.wait_for_deferred(pool.submit(len, "four")) == 4
    s = stats(pool)
    assert (s.cancelled, s.lingering, s.running) == (1, 0, 0)


class SaysItIsAFailure:
    __class__ = Failure  # type: ignore[assignment]


@pytest.mark.parametrize("kind", ["green", "thread"])
@pytest.mark.parametrize("how", ["returns", "raises"])
def test_what_blocking_code_waits_for(kind: str, how: str, result: Any, stats: Any) -> None:
    """It hears of it, one way or the other, and its slot is free again."""
    pool: Any = GreenPool(1) if kind == "green" else NativeThreadPool(1)

    def hostile(what: Any) -> Any:
        if how == "raises":
            raise OfNoClass
        return what()

    @greendefer.blocking_from_greenlet
    def wait(what: Any) -> Any:
        return hostile(what)

    for what in Unbound, SaysItIsAFailure:
        got = result(pool.submit(lambda what=what: wait(what) and "heard")).get()
        if how == "raises":
            assert type(got.value) is GreendeferError
        elif what is Unbound:
            assert type(got.value) is RuntimeError
        else:
            assert got == "heard"
    assert stats(pool).running == 0


def test_what_a_greenlet_returns(result: Any) -> None:
    got = result(greendefer.wait_for_greenlet(gevent.spawn(Unbound))).get()
    assert type(got.value) is RuntimeError
    got = result(greendefer.wait_for_greenlet(gevent.spawn(SaysItIsAFailure))).get()
    assert type(got) is SaysItIsAFailure


@pytest.mark.parametrize("kind", POOLS)
def test_a_coroutine_that_fails_as_it_is_closed(kind: str, result: Any, stats: Any) -> None:
    """It is refused, like all coroutines, and has no say in that."""

    async def never_done() -> None:
        try:
            await Deferred()
        finally:
            raise SystemExit("from finally")

    def begun() -> Any:
        coroutine = never_done()
        coroutine.send(None)
        return coroutine

    pool: Any = POOLS[kind]()
    got = [result(pool.submit(begun)).get() for _ in range(3)]
    assert all("async already" in str(each.value) for each in got)
    assert (stats(pool).failed, stats(pool).running) == (3, 0)


@pytest.mark.parametrize("raises", [SystemExit, gevent.GreenletExit, Raises])
def test_a_deferred_whose_canceller_fails(raises: Any, result: Any, logged: Any) -> None:
    """A call that has returned it is cancelled, or out of time, all the same."""

    def canceller(_: Any) -> None:
        raise raises

    def returns_it() -> Any:
        return Deferred(canceller)

    pool = GreenPool(1)
    green = greendefer.green_deferred(pool=pool, timeout=0.01)(returns_it)
    assert result(green()).error() is greendefer.CallTimeout
    d = pool.submit(returns_it)
    assert greendefer.wait_for_deferred(pool.submit(len, "four")) == 4  # it has returned it
    fired = result(d)
    d.cancel()
    assert fired.error() is CancelledError
    assert len([event for event in logged if event["isError"]]) == 2
    del logged[:]


def test_a_call_that_returns_its_own_deferred(result: Any, stats: Any) -> None:
    """It waits for itself, and fails with that; so do two that return each other's."""
    pool = GreenPool(2)
    own: list[Any] = []
    own.append(pool.submit(lambda: own[0]))
    assert result(own[0]).error() is WouldDeadlock
    two: list[Any] = []
    two += [pool.submit(lambda: two[1]), pool.submit(lambda: two[0])]
    seen: Any = Queue()
    for d in two:
        d.addErrback(lambda failure: seen.put(failure.type) or failure)
    assert [seen.get(timeout=20) for _ in two] == [WouldDeadlock] * 2
    s = stats(pool)
    assert (s.failed, s.running) == (3, 0)


def test_something_to_call_that_has_no_name(result: Any, stats: Any, logged: Any) -> None:
    """Messages and hooks name a call's function, whatever asking for that does."""
    seen: list[str] = []

    class Hook(instrumentation.LoggingHook):
        def submitted(self, call: Any) -> None:
            seen.append(call.function)

    pool = GreenPool(1, max_queued=1)
    before = instrumentation.get_hooks()
    instrumentation.set_hooks([Hook()])
    try:
        held = pool._call(Nameless(), (gevent.sleep,), {}, Timeouts(running=0), "kill")
        waiting = pool._call(Nameless(), (lambda: gevent.sleep(3600),), {}, None, "kill")
        refused = result(pool.submit(Nameless()))
        assert refused.error() is greendefer.PoolFull
        ended = result(held).get()  # its limit is over at once, too
        assert ended is None or ended.type is greendefer.CallTimeout
        fired = result(waiting)
        pool.close(grace=0)
        assert fired.error() is greendefer.PoolClosed
    finally:
        instrumentation.set_hooks(before)
    assert len(seen) == 3
    assert all("Nameless" in each for each in seen)
    assert stats(pool).submitted == 3


@pytest.mark.parametrize("event", ["submitted", "started", "ended", "rejected"])
@pytest.mark.parametrize("raises", [SystemExit, gevent.GreenletExit, Raises])
def test_a_hook_that_raises_whatever(
    event: str, raises: Any, result: Any, stats: Any, logged: Any
) -> None:
    """It is logged, and does the call no harm."""

    def raise_it(*args: Any, **kwargs: Any) -> None:
        raise raises

    hook = instrumentation.LoggingHook()
    setattr(hook, event, raise_it)
    before = instrumentation.get_hooks()
    instrumentation.set_hooks([hook])
    pool = GreenPool(1, max_queued=0)
    try:
        d = pool.submit(len, "four")
        assert result(pool.submit(len, "four")).error() is greendefer.PoolFull
        assert result(d).get() == 4
    finally:
        instrumentation.set_hooks(before)
    s = stats(pool)
    assert (s.completed, s.rejected, s.running) == (1, 1, 0)
    errors = [event for event in logged if event["isError"]]
    assert len(errors) == (2 if event == "submitted" else 1)
    del logged[:]


def test_around_and_hooks(result: Any) -> None:
    """An exception on its way through what is around the call, and through hooks."""
    from contextlib import contextmanager

    seen: list[str] = []

    @contextmanager
    def around() -> Any:
        try:
            yield
        finally:
            seen.append("left")

    def hostile() -> None:
        raise Raises

    before = instrumentation.get_hooks()
    instrumentation.set_hooks([instrumentation.LoggingHook()])
    try:
        assert result(GreenPool(1, around=around).submit(hostile)).error() is Raises
    finally:
        instrumentation.set_hooks(before)
    assert seen == ["left"]


class Hostile:
    """What somebody else's client hands out."""

    def __init__(self) -> None:
        self.read: list[str] = []

    @property
    def attribute(self) -> str:
        self.read.append("attribute")
        return "value"

    @property
    def explodes(self) -> str:
        raise SystemExit("from a property")

    def method(self) -> str:
        return "called"

    def __repr__(self) -> str:
        raise SystemExit("from __repr__")


def test_attributes_of_a_proxy(in_reactor: Any) -> None:
    """Making a proxy reads none. Reading one runs what the attribute runs, there, and no more:
    it is the object's code, as it would be without a proxy."""
    client = Hostile()
    proxied = green_proxy(client)
    assert client.read == []
    assert in_reactor(lambda: proxied.method()) == "called"
    assert client.read == []
    assert proxied.attribute == "value"
    assert client.read == ["attribute"]
    with pytest.raises(SystemExit):
        proxied.explodes  # noqa: B018


def test_attributes_that_do_io(in_reactor: Any) -> None:
    """``properties=``: it runs on a worker, so what it raises is a result."""
    proxied = green_proxy(Hostile(), properties=["explodes", "attribute"])

    async def read(name: str) -> Any:
        return await getattr(proxied, name)

    assert in_reactor(lambda: Deferred.fromCoroutine(read("attribute"))) == "value"
    with pytest.raises(SystemExit):
        in_reactor(lambda: Deferred.fromCoroutine(read("explodes")))


class RaisesInReply:
    """A result that can't be unpickled."""

    def __reduce__(self) -> Any:
        return _raise, ()


class RaisesWhenPickled:
    def __init__(self, error: Any = SystemExit) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("from __reduce__")


def _raise() -> None:
    raise Raises


class NeedsTwo(Exception):
    """As many are: it is pickled with its one argument, and made anew with that alone."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class UnpicklesAsAnother(Exception):
    def __reduce__(self) -> Any:
        return int, (4,)


def reply(kind: str) -> Any:
    if kind == "an error of no class":
        raise OfNoClass
    if kind == "an error that needs two":
        raise NeedsTwo(404, "not found")
    if kind == "an error that holds a lock":
        raise ValueError(threading.Lock())
    if kind == "an error of no class that holds a lock":
        raise OfNoClass(threading.Lock())
    if kind == "an error whose text waits":
        raise Waits
    if kind == "an error that is a number":
        raise UnpicklesAsAnother
    return {"raises": RaisesInReply, "not pickled": RaisesWhenPickled, "unbound": Unbound}[kind]()


@pytest.fixture
def processes() -> Any:
    context = importlib.import_module("multiprocessing").get_context("spawn")
    made: list[Any] = []

    def make() -> Any:
        made.append(concurrent.futures.ProcessPoolExecutor(1, mp_context=context))
        return made[-1]

    yield ExecutorPool(make, 1)
    for each in made:
        each.shutdown()


def test_pickled_replies(processes: Any, result: Any) -> None:
    """Worker processes are trusted: unpickling runs what they say. A reply that can't be unpickled,
    or pickled, is that call's error, and nobody else's."""
    worker = greendefer.wait_for_deferred(processes.submit(os.getpid), 30)
    errors = {}
    for kind in (
        "raises",
        "not pickled",
        "unbound",
        "an error of no class",
        "an error that needs two",
        "an error that is a number",
        "an error that holds a lock",
        "an error of no class that holds a lock",
        "an error whose text waits",
    ):
        got = result(processes.submit(reply, kind)).get()
        assert isinstance(got, Failure), got
        errors[kind] = got.value
    assert greendefer.wait_for_deferred(processes.submit(os.getpid), 30) == worker
    for kind, words in {
        "raises": "what it returned can't be unpickled: ",
        "an error that needs two": "its error, NeedsTwo: 404: not found, can't be unpickled: ",
        "an error that holds a lock": "its error can't be pickled: ValueError: ",
        "an error of no class that holds a lock": "its error can't be pickled: OfNoClass",
        "an error that is a number": "can't be unpickled: TypeError('it unpickles as 4')",
    }.items():
        assert type(errors[kind]) is ExecutorFailed
        assert words in str(errors[kind]), errors[kind]
    assert type(errors["an error of no class"]) is GreendeferError
    assert type(errors["an error whose text waits"]) is Waits  # nobody has asked for it


def test_the_traceback_in_the_process_is_kept(processes: Any, result: Any) -> None:
    got = result(processes.submit(int, "four")).get()
    assert got.type is ValueError
    assert "invalid literal" in str(got.value)
    assert "run_pickled" in str(got.value.__cause__)


def test_arguments_that_cannot_be_pickled(processes: Any, result: Any) -> None:
    for error in SystemExit, SystemExit, OfNoClass:
        got = result(processes.submit(len, RaisesWhenPickled(error))).get()
        assert isinstance(got, Failure)
        assert isinstance(got.value, (GreendeferError, SystemExit))
    assert greendefer.wait_for_deferred(processes.submit(len, "four"), 30) == 4
