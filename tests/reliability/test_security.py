"""What a hostile result may do: see "What is trusted" in docs/reliability.md."""

from __future__ import annotations

import concurrent.futures
import importlib
from typing import Any

import gevent
import pytest
from gevent import monkey
from twisted.python import log
from twisted.python.failure import Failure

import greendefer
from greendefer import ExecutorPool, GreendeferError, GreenPool, NativeThreadPool, green_proxy


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


POOLS = {"greenlets": lambda: GreenPool(2), "threads": lambda: NativeThreadPool(2)}


@pytest.mark.parametrize("error", [Raises, Waits, Lies])
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
        assert got.type is error
    assert greendefer.wait_for_deferred(pool.submit(len, "four")) == 4
    with pytest.raises(error):
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


def test_around_and_hooks(result: Any) -> None:
    """An exception on its way through what is around the call, and through hooks."""
    from contextlib import contextmanager

    from greendefer import instrumentation

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

    from twisted.internet.defer import Deferred

    assert in_reactor(lambda: Deferred.fromCoroutine(read("attribute"))) == "value"
    with pytest.raises(SystemExit):
        in_reactor(lambda: Deferred.fromCoroutine(read("explodes")))


class RaisesInReply:
    """A result that can't be unpickled."""

    def __reduce__(self) -> Any:
        return _raise, ()


class RaisesWhenPickled:
    def __reduce__(self) -> Any:
        raise SystemExit("from __reduce__")


def _raise() -> None:
    raise Raises


def reply(kind: str) -> Any:
    return {"raises": RaisesInReply, "not pickled": RaisesWhenPickled}[kind]()


@pytest.fixture
def processes() -> Any:
    if monkey.is_module_patched("threading"):
        pytest.skip("the executor's own threads are greenlets that wait for its processes")
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
    or pickled, is that call's error; where it breaks the executor, another takes its place."""
    for kind in "raises", "not pickled":
        got = result(processes.submit(reply, kind)).get()
        assert isinstance(got, Failure), got
    assert greendefer.wait_for_deferred(processes.submit(len, "four"), 30) == 4


def test_arguments_that_cannot_be_pickled(processes: Any, result: Any) -> None:
    for argument in RaisesWhenPickled(), RaisesWhenPickled():
        got = result(processes.submit(len, argument)).get()
        assert isinstance(got, Failure)
        assert isinstance(got.value, (GreendeferError, SystemExit))
    assert greendefer.wait_for_deferred(processes.submit(len, "four"), 30) == 4
