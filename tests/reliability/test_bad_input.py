"""Every public function against wrong values: the error names the argument, the value and what is
allowed, and nothing is half done afterwards."""

from __future__ import annotations

import gc
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gevent
import pytest
from twisted.internet.defer import Deferred
from zope.interface import Interface

import greendefer
from greendefer import ExecutorPool, GreenPool, NativeThreadPool, Timeouts
from greendefer._pool import default_pool
from greendefer.geventasyncioreactor import GeventAsyncioReactor
from greendefer.shutdown import set_shutdown_grace

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st


class Hostile:
    """Its repr() can't be had."""

    def __repr__(self) -> str:
        raise SystemExit("no")


class Long:
    def __repr__(self) -> str:
        return "x" * 100_000


def blocking() -> int:
    return 4


async def asynchronous() -> None:
    pass


HUGE = 10**5000  # Python itself refuses to print it

NOT_A_COUNT: tuple[Any, ...] = ("1", 1.0, None, True, [], Hostile(), math.nan)
NOT_SECONDS: tuple[Any, ...] = ("1", True, [], {}, Hostile(), Long(), 1j, blocking)
NO_TIME: tuple[Any, ...] = (-1, -0.001, -math.inf, math.nan, -HUGE, HUGE)
NOT_CALLABLE: tuple[Any, ...] = (None, 1, "f", Hostile(), Long(), [])
NOT_A_POOL: tuple[Any, ...] = (1, "pool", Hostile(), [])
NOT_A_STRING: tuple[Any, ...] = (1, b"name", [], Hostile())


def executor() -> Any:
    return ThreadPoolExecutor(1)


def rows() -> list[Any]:
    """(what is called, the argument, what the error must say of what is allowed, the value)"""
    table: list[Any] = []
    add = table.append
    pools: tuple[tuple[str, Any], ...] = (
        ("GreenPool", lambda **k: GreenPool(**{"size": 1, **k})),
        ("NativeThreadPool", lambda **k: NativeThreadPool(**{"size": 1, **k})),
        ("ExecutorPool", lambda **k: ExecutorPool(executor, **{"size": 1, **k})),
    )
    for name, make in pools:
        for value in NOT_A_COUNT:
            add((make, f"{name}(size=", "whole number", value, "size"))
            if value is not None:
                add((make, f"{name}(max_queued=", "whole number", value, "max_queued"))
        for value in (0, -1, -HUGE):
            add((make, f"{name}(size=", "at least 1", value, "size"))
        for value in (-1, -HUGE):
            add((make, f"{name}(max_queued=", "at least 0", value, "max_queued"))
        for value in NOT_A_STRING:
            add((make, f"{name}(name=", "string", value, "name"))
    for value in NOT_CALLABLE:
        if value is not None:
            add((lambda **k: GreenPool(**k), "around", "callable", value, "around"))
        add((lambda f: GreenPool().submit(f), "submit(f", "call", value, "f"))
        add((lambda f: NativeThreadPool(1).submit(f), "submit(f", "call", value, "f"))
        add((lambda f: ExecutorPool(executor, 1).submit(f), "submit(f", "call", value, "f"))
        add((lambda f: greendefer.defer_to_greenlet(f), "(f", "call", value, "f"))
        add((lambda e: ExecutorPool(e, 1), "executor", "Executor", value, "e"))
        if value is not None:
            for decorator in (
                greendefer.green_deferred,
                greendefer.green_iterator,
                greendefer.blocking_from_greenlet,
                greendefer.in_order,
            ):
                name = decorator.__name__
                add((lambda f, d=decorator: d(f), name, "decorates", value, "f"))
            add((lambda f: greendefer.green_deferred(pool=None)(f), "green", "call", value, "f"))
    for value in NOT_A_COUNT:
        add((lambda v: GreenPool(1).resize(v), "size", "whole number", value, "v"))
        add((lambda v: greendefer.green_iterator(prefetch=v), "prefetch", "whole", value, "v"))
    for value in (0, -1):
        add((lambda v: GreenPool(1).resize(v), "size", "at least 1", value, "v"))
    add((lambda v: greendefer.green_iterator(prefetch=v), "prefetch", "at least 0", -1, "v"))
    seconds: tuple[tuple[str, Any], ...] = (
        ("total", lambda v: Timeouts(total=v)),
        ("queued", lambda v: Timeouts(queued=v)),
        ("running", lambda v: Timeouts(running=v)),
        ("grace", lambda v: GreenPool().close(grace=v)),
        ("timeout", lambda v: greendefer.green_deferred(timeout=v)),
        ("timeout", lambda v: greendefer.green_iterator(timeout=v)),
        ("timeout", lambda v: greendefer.blocking_from_greenlet(timeout=v)),
        ("timeout", lambda v: greendefer.green_proxy(object(), timeout=v)),
        ("timeout", lambda v: greendefer.wait_for_deferred(Deferred(), v)),
        (
            "timeout",
            lambda v: greendefer.with_options(greendefer.green_deferred(blocking), timeout=v),
        ),
        ("running", lambda v: set_shutdown_grace(running=v)),
        ("ending", lambda v: set_shutdown_grace(ending=v)),
    )
    for name, call in seconds:
        for value in (*NOT_SECONDS, *NO_TIME):
            add((call, name, "number" if value in (HUGE,) else "seconds", value, "v"))
    for value in ("explode", 1, Hostile(), []):
        add((lambda v: Timeouts(on_expiry=v), "on_expiry", "'kill', 'abandon'", value, "v"))
        add((lambda v: greendefer.green_deferred(on_cancel=v), "on_cancel", "'kill'", value, "v"))
        add((lambda v: greendefer.install(v), "kind", "'native'", value, "v"))
        add((lambda v: greendefer.install(threads=v), "threads", "'green'", value, "v"))
    add((lambda v: greendefer.green_deferred(on_cancel=v), "on_cancel", "'kill'", None, "v"))
    for value in NOT_A_POOL:
        add((lambda v: greendefer.green_deferred(pool=v), "pool", "pool", value, "v"))
        add((lambda v: greendefer.green_iterator(pool=v), "pool", "pool", value, "v"))
        add((lambda v: greendefer.green_proxy(object(), pool=v), "pool", "pool", value, "v"))
        add((lambda v: greendefer.in_order(pool=v), "pool", "pool", value, "v"))
    for value in (None, 1, blocking, Hostile(), Long()):
        add((lambda v: greendefer.wait_for_deferred(v), "(d)", "Deferred", value, "v"))
        add((lambda v: greendefer.wait_for_greenlet(v), "(g)", "gevent.Greenlet", value, "v"))
        add((lambda v: greendefer.with_options(v, timeout=1), "decorated", "decorated", value, "v"))
    add((lambda v: greendefer.wait_for_deferred(v), "(d)", "coroutine", asynchronous, "v"))
    add((lambda v: greendefer.green_deferred(v), "async", "Deferred", asynchronous, "v"))
    add((lambda v: greendefer.green_iterator(v), "async", "iterate", asynchronous, "v"))
    for value in (1, [1], "no mapping", Hostile(), {"get": 1}, {"get": Hostile()}):
        add((lambda v: greendefer.green_proxy([], methods=v), "methods", "mapping", value, "v"))
    for value in (1, [1], [Hostile()], Hostile()):
        add((lambda v: greendefer.green_proxy([], plain=v), "plain", "names", value, "v"))
        add((lambda v: greendefer.green_proxy([], properties=v), "properties", "names", value, "v"))
    for value in (1, "list", (1,), [list], Hostile()):
        add((lambda v: greendefer.green_proxy([], results=v), "results", "callable", value, "v"))
    for value in (0, HUGE):
        add((lambda v: GreenPool(v), "size", "at least 1", value, "v"))
    add((GeventAsyncioReactor, "eventloop", "GreenEventLoop", 1, "eventloop"))
    return table


def refused(f: Any, name: str, value: Any) -> str:
    """What `f` says about the value."""
    try:
        try:
            f(**{name: value})
        except TypeError as e:
            if "unexpected keyword" not in str(e):
                raise
            f(value)
    except (TypeError, ValueError) as e:
        return str(e)
    raise AssertionError(f"{name}={greendefer._errors.shown(value)} was taken")


def test_wrong_values() -> None:
    """All of the table; and no greenlet, call or pool of it is left."""
    gc.collect()
    submitted = default_pool.stats().submitted
    before = sum(isinstance(o, (gevent.Greenlet, GreenPool)) for o in gc.get_objects())
    wrong = []
    for f, argument, allowed, value, name in rows():
        message = refused(f, name, value)
        is_plain = type(value) in (int, float, str, bool, type(None)) and value not in (HUGE, -HUGE)
        if (
            argument not in message
            or allowed not in message
            or len(message) > 1000
            or (is_plain and repr(value) not in message)
        ):
            wrong.append((argument, allowed, message))
    assert not wrong
    assert default_pool.stats().submitted == submitted
    gc.collect()
    after = sum(isinstance(o, (gevent.Greenlet, GreenPool)) for o in gc.get_objects())
    assert after <= before


def test_all_names_are_in_the_table() -> None:
    """Or have no arguments that could be wrong, or are made by others, or are data."""
    with open(__file__) as f:
        source = f.read()
    without = {"start_reactor", "PoolStats", "PoolWorker", "GreenIterator", "BlockingIterator"}
    for name in greendefer.__all__:
        thing = getattr(greendefer, name)
        if isinstance(thing, type) and issubclass(thing, BaseException):
            continue
        assert (
            name in without
            or f"greendefer.{name}(" in source
            or f"{name}(" in source
            or (f"greendefer.{name}," in source)
        ), name


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
    st.lists(st.integers()), st.complex_numbers(), st.builds(object), st.just(HUGE),
    st.builds(Hostile), st.builds(Long), st.just(blocking), st.just(Interface),
    st.dictionaries(st.text(), st.integers()), st.builds(Timeouts),
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(
    size=anything, max_queued=anything, name=anything, timeout=anything, on_cancel=anything,
    prefetch=anything,
)  # fmt: skip
def test_fuzzed(**values: Any) -> None:
    """What is taken works, and what is not raises TypeError or ValueError, with its name."""

    def tried(f: Any, **given: Any) -> Any:
        try:
            return f(**given)
        except (TypeError, ValueError) as e:
            message = str(e)
            assert any(f"{name}=" in message or f"({name}" in message for name in given), message
            assert len(message) < 1000
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
    tried(GreenPool(2).resize, size=values["size"])
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
    tried(
        lambda timeout, prefetch: greendefer.green_iterator(timeout=timeout, prefetch=prefetch),
        timeout=values["timeout"],
        prefetch=values["prefetch"],
    )
    tried(
        lambda total, queued: Timeouts(total=total, queued=queued),
        total=values["timeout"],
        queued=values["size"],
    )


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
