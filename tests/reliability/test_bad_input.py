"""Every public function against wrong values: the error names the argument, the value and what is
allowed, and nothing is half done afterwards."""

from __future__ import annotations

import gc
import importlib
import logging
import math
import os
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import gevent
import pytest
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.error import ReactorAlreadyInstalledError
from twisted.internet.task import Clock

import greendefer
from greendefer import (
    ExecutorPool,
    GreenPool,
    NativeThreadPool,
    PoolWorker,
    Timeouts,
    _holdups,
    geventreactor,
    instrumentation,
    shutdown,
)
from greendefer._errors import shown
from greendefer._pool import default_pool
from greendefer._wrapping import behaviour_of
from greendefer.adbapi import GreenConnectionPool
from greendefer.geventasyncioreactor import GeventAsyncioReactor
from greendefer.geventreactor import IReactorGreenlets
from greendefer.shutdown import set_shutdown_grace
from greendefer.testing import ClockPool, InlinePool
from greendefer.threadpool import GreenThreadPool

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st


class Hostile:
    """Its repr() can't be had."""

    def __repr__(self) -> str:
        raise gevent.GreenletExit("no")  # not even an Exception


class Unprintable:
    """The same, as far as hypothesis can bear that."""

    def __repr__(self) -> str:
        raise OSError("no")


class Unequal:
    """It can't be compared, or asked whether it is true: as an array can't."""

    def __eq__(self, other: object) -> bool:
        raise OSError("ambiguous")

    def __bool__(self) -> bool:
        raise OSError("ambiguous")

    __hash__ = None  # type: ignore[assignment]


class Long:
    def __repr__(self) -> str:
        return "x" * 100_000


the_reactor: Any = _reactor


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
                add((make, f"{name}(around=", "callable", value, "around"))
    for value in NOT_CALLABLE:
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
    return [*table, *rows_of_instrumentation(), *rows_of_threads(), *rows_of_geventreactor()]


class HalfAClock:
    seconds = time.monotonic
    callLater = 5


def rows_of_instrumentation() -> Iterator[Any]:
    """And those of the pools for tests."""
    hooks: tuple[tuple[Any, str], ...] = (
        (instrumentation.LoggingHook, "a logging.Logger or None"),
        (instrumentation.StructlogHook, "a logger of structlog's or None"),
        (instrumentation.PrometheusHook, "a CollectorRegistry or None"),
    )
    for value in (1, "logger", [], Hostile(), Long()):
        for hook, allowed in hooks:
            name = "registry" if hook is instrumentation.PrometheusHook else "logger"
            yield hook, f"{hook.__name__}({name})", allowed, value, name
    for value in (None, 1, Hostile(), Long(), blocking):
        yield instrumentation.set_hooks, "set_hooks(hooks)", "a list of hooks", value, "hooks"
    for value in ([1], "f", (Hostile(),), [instrumentation.LoggingHook(), Long()]):
        allowed = "a hook has submitted, started, ended, rejected"
        yield instrumentation.set_hooks, "set_hooks(hooks)", allowed, value, "hooks"
    warn, argument = instrumentation.warn_of_holdups, "warn_of_holdups(seconds)"
    for value in NOT_SECONDS:
        yield warn, argument, "a number of seconds", value, "seconds"
    for value in (*NO_TIME, math.inf):
        allowed = "a smaller number" if value in (HUGE, -HUGE) else "0 or more seconds, and finite"
        yield warn, argument, allowed, value, "seconds"
    yield warn, argument, "more than 0", 0, "seconds"

    def inside(f: Any) -> None:
        """Of a worker's block, which takes no reactor here, and no time."""

        async def main() -> None:
            async with InlinePool().worker() as worker:
                await worker.submit(f)

        greendefer.wait_for_deferred(ensureDeferred(main()), 20)

    for value in NOT_CALLABLE:
        yield inside, "submit(f", "something to call", value, "f"
        yield lambda f: InlinePool().submit(f), "submit(f", "something to call", value, "f"
    for value in (None, 1, "clock", Hostile(), time, HalfAClock()):
        yield ClockPool, "ClockPool(clock)", "a twisted.internet.task.Clock", value, "clock"

    def on_a_clock(**given: Any) -> ClockPool:
        return ClockPool(Clock(), **given)

    for value in NOT_A_COUNT:
        yield on_a_clock, "ClockPool(size=", "a whole number", value, "size"
        if value is not None:
            yield on_a_clock, "ClockPool(max_queued=", "a whole number", value, "max_queued"
    for value in (0, -1, -HUGE):
        yield on_a_clock, "ClockPool(size=", "at least 1", value, "size"
    yield on_a_clock, "ClockPool(max_queued=", "at least 0", -1, "max_queued"
    for value in NOT_A_STRING:
        yield on_a_clock, "ClockPool(name=", "a string or None", value, "name"
        yield InlinePool, "InlinePool(name=", "a string or None", value, "name"

    def step(takes: Any) -> None:
        waiting_pool().step(takes)

    for value in (None, *NOT_SECONDS):
        yield step, "step(takes=", "a number of seconds", value, "takes"
    for value in (*NO_TIME, math.inf):
        allowed = "a smaller number" if value in (HUGE, -HUGE) else "0 or more seconds, and finite"
        yield step, "step(takes=", allowed, value, "takes"


def rows_of_threads() -> Iterator[Any]:
    def adjusted(**sizes: Any) -> None:
        GreenThreadPool(0, 5).adjustPoolsize(**sizes)

    def connections(dbapiName: Any = "sqlite3", **given: Any) -> GreenConnectionPool:
        return GreenConnectionPool(dbapiName, **given)

    sized: tuple[tuple[str, Any, str, str], ...] = (
        ("GreenThreadPool", GreenThreadPool, "minthreads", "maxthreads"),
        ("adjustPoolsize", adjusted, "minthreads", "maxthreads"),
        ("GreenConnectionPool", connections, "cp_min", "cp_max"),
    )
    for name, make, least, most in sized:
        for value in NOT_A_COUNT:
            if value is not None or make is not adjusted:
                yield make, f"{name}({least}=", "a whole number", value, least
                yield make, f"{name}({most}=", "a whole number", value, most
        for value in (-1, -HUGE):
            yield make, f"{name}({least}=", "at least 0", value, least
        for value in (0, -1, -HUGE):
            yield make, f"{name}({most}=", "at least 1", value, most
        yield make, f"{name}({most}=", "a machine's number", HUGE, most
        if make is not connections:  # where Twisted takes the smaller of both
            yield make, f"{name}({least}=", "at most maxthreads", 101, least
    for value in NOT_A_STRING:
        yield GreenThreadPool, "name=", "a string or None", value, "name"
    for value in (None, *NOT_A_STRING):
        yield connections, "GreenConnectionPool(dbapiName)", "a string", value, "dbapiName"
    for value in NOT_CALLABLE:
        yield GreenThreadPool().callInThread, "func", "something to call", value, "func"
        call = GreenThreadPool().callInThreadWithCallback
        yield lambda f, call=call: call(None, f), "func", "something to call", value, "f"
        if value is not None:
            allowed = "something to call with the result, or None"
            yield lambda f, call=call: call(f, reader), "onResult", allowed, value, "f"


def rows_of_geventreactor() -> Iterator[Any]:
    def in_pool(greenletpool: Any = default_pool, f: Any = reader) -> Any:
        return geventreactor.deferToGreenletPool(the_reactor, greenletpool, f)

    def blocking_call(f: Any) -> Any:
        return geventreactor.blockingCallFromGreenlet(the_reactor, f)

    calls: tuple[tuple[Any, str], ...] = (
        (in_pool, "submit(f"),
        (geventreactor.deferToGreenlet, "defer_to_greenlet(f"),
        (blocking_call, "blockingCallFromGreenlet(reactor, f"),
        (the_reactor.deferToGreenlet, "submit(f"),
        (the_reactor.callInGreenlet, "submit(f"),
        (the_reactor.callFromGreenlet, "callFromGreenlet(f"),
    )
    for value in NOT_CALLABLE:
        for f, argument in calls:
            yield f, argument, "something to call", value, "f"
    for value in (None, *NOT_A_POOL):
        yield in_pool, "for greenletpool", "a greendefer.GreenPool", value, "greenletpool"
    several, argument = geventreactor.callMultipleInGreenlet, "callMultipleInGreenlet(tupleList)"
    for value in (None, 1, Hostile(), Long(), blocking):
        yield several, argument, "a list of (f, args, kwargs)", value, "tupleList"
    for value in (
        *([1], "f", [(reader,)], [(1, (), {})], [(reader, 1, {})], [(reader, (), 1)]),
        *([(reader, (), {1: 2})], [(reader, (), {"a": 1, Hostile(): 2})], [Hostile()]),
    ):
        allowed = "something to call, a tuple, and a dict with strings for keys"
        yield several, argument, allowed, value, "tupleList"
    for value in (None, 1, blocking, Hostile(), Long()):
        yield geventreactor.waitForGreenlet, "(g)", "a gevent.Greenlet", value, "g"
        yield geventreactor.waitForDeferred, "(d)", "Deferred", value, "d"
        make = geventreactor.GeventResolver
        yield make, "GeventResolver(reactor)", "called from threads", value, "reactor"
    for value in NOT_A_COUNT:
        resize = the_reactor.suggestGreenletPoolSize
        yield resize, "size", "a whole number", value, "size"
    resolver = geventreactor.GeventResolver(the_reactor)

    def look_up(timeout: Any) -> Any:
        return resolver.getHostByName("localhost", timeout)

    argument = "getHostByName(timeout=...)"
    for value in (5, 0, True, "12", "", b"12", {}, {1, 2}, Hostile(), Long(), blocking):
        yield look_up, argument, "a sequence of seconds", value, "timeout"
    for value in NOT_SECONDS:
        yield look_up, argument, "a number of seconds", (1, value), "timeout"
    for value in (*NO_TIME, math.inf):
        allowed = "a smaller number" if value in (HUGE, -HUGE) else "0 or more seconds, and finite"
        yield look_up, argument, allowed, [1, value], "timeout"
    yield look_up, argument, "the sum must be 0 or more seconds", [1e308, 10**308], "timeout"


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


def reader() -> int:
    return 4


def decorated(decorator: Any) -> Any:
    return decorator(reader)


def with_(decorator: Any) -> Any:
    """with_options() of what it decorates."""
    return lambda **given: greendefer.with_options(decorator(reader), **given)


def waiting_pool() -> ClockPool:
    pool = ClockPool(Clock())
    pool.submit(reader)
    return pool


def submit_to_worker(f: Any) -> Any:
    return PoolWorker(GreenPool(1)).submit(f)


def connections_for_a_while(**given: Any) -> Deferred[None]:
    return GreenConnectionPool("sqlite3", **given).close()


def call_in_thread(onResult: Any, func: Any) -> Deferred[None]:
    pool = GreenThreadPool()
    pool.callInThreadWithCallback(onResult, func)
    return pool.pool._when_idle()


OPTIONS = {"pool": None, "timeout": None}
GREEN_PROXY = {"methods": None, "plain": (), "properties": (), "results": (), **OPTIONS}
POOL_OPTIONS = {"size": 1, "max_queued": None, "name": None, "around": None}

PUBLIC: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "greendefer.GreenPool": (GreenPool, POOL_OPTIONS),
    "greendefer.GreenPool.submit": (lambda f: GreenPool(1).submit(f), {"f": reader}),
    "greendefer.GreenPool.resize": (lambda size: GreenPool(1).resize(size), {"size": 1}),
    "greendefer.GreenPool.close": (lambda grace: GreenPool(1).close(grace=grace), {"grace": 0}),
    "greendefer.NativeThreadPool": (NativeThreadPool, POOL_OPTIONS),
    "greendefer.NativeThreadPool.submit": (lambda f: NativeThreadPool(1).submit(f), {"f": reader}),
    "greendefer.ExecutorPool": (ExecutorPool, {"executor": executor, **POOL_OPTIONS}),
    "greendefer.Timeouts": (
        Timeouts,
        {"total": None, "queued": None, "running": None, "on_expiry": None},
    ),
    "greendefer.green_deferred": (
        lambda func, **options: greendefer.green_deferred(**options)(func),
        {"func": reader, "on_cancel": "kill", **OPTIONS},
    ),
    "greendefer.green_iterator": (
        lambda func, **options: greendefer.green_iterator(**options)(func),
        {"func": reader, "prefetch": 0, **OPTIONS},
    ),
    "greendefer.blocking_from_greenlet": (
        lambda func, **options: greendefer.blocking_from_greenlet(**options)(func),
        {"func": reader, "timeout": None},
    ),
    "greendefer.in_order": (
        lambda method, pool: greendefer.in_order(pool=pool)(method),
        {"method": reader, "pool": None},
    ),
    "greendefer.with_options": (
        lambda decorated: greendefer.with_options(decorated, timeout=1),
        {"decorated": greendefer.green_deferred(reader)},
    ),
    "greendefer.with_options, green_deferred": (
        with_(greendefer.green_deferred),
        {"on_cancel": "kill", **OPTIONS},
    ),
    "greendefer.with_options, green_iterator": (
        with_(greendefer.green_iterator),
        {"prefetch": 0, **OPTIONS},
    ),
    "greendefer.with_options, blocking": (
        with_(greendefer.blocking_from_greenlet),
        {"timeout": None},
    ),
    "greendefer.green_proxy": (partial(greendefer.green_proxy, []), GREEN_PROXY),
    "greendefer.defer_to_greenlet": (lambda f: greendefer.defer_to_greenlet(f), {"f": reader}),
    "greendefer.wait_for_deferred": (
        lambda d, timeout: greendefer.wait_for_deferred(d, timeout),
        {"d": succeed(4), "timeout": None},
    ),
    "greendefer.wait_for_greenlet": (greendefer.wait_for_greenlet, {"g": gevent.Greenlet()}),
    "greendefer.install": (greendefer.install, {"kind": "native", "threads": "native"}),
    "greendefer.PoolWorker": (submit_to_worker, {"f": reader}),
    "greendefer.shutdown.set_shutdown_grace": (set_shutdown_grace, {"running": 1, "ending": 1}),
    "greendefer.instrumentation.set_hooks": (instrumentation.set_hooks, {"hooks": []}),
    "greendefer.instrumentation.warn_of_holdups": (
        instrumentation.warn_of_holdups,
        {"seconds": 0.25},
    ),
    "greendefer.instrumentation.LoggingHook": (instrumentation.LoggingHook, {"logger": None}),
    "greendefer.instrumentation.StructlogHook": (
        instrumentation.StructlogHook,
        {"logger": logging.getLogger()},
    ),
    "greendefer.instrumentation.PrometheusHook": (
        lambda registry: instrumentation.PrometheusHook(registry),
        {"registry": NotImplemented},
    ),
    "greendefer.threadpool.GreenThreadPool": (
        GreenThreadPool,
        {"minthreads": 0, "maxthreads": 1, "name": None},
    ),
    "greendefer.threadpool.GreenThreadPool.adjustPoolsize": (
        lambda **sizes: GreenThreadPool().adjustPoolsize(**sizes),
        {"minthreads": None, "maxthreads": None},
    ),
    "greendefer.threadpool.GreenThreadPool.callInThreadWithCallback": (
        call_in_thread,
        {"onResult": None, "func": reader},
    ),
    "greendefer.adbapi.GreenConnectionPool": (connections_for_a_while, {"cp_min": 3, "cp_max": 5}),
    "greendefer.testing.InlinePool": (InlinePool, {"name": None}),
    "greendefer.testing.ClockPool": (
        ClockPool,
        {"clock": Clock(), "size": 1, "max_queued": None, "name": None},
    ),
    "greendefer.testing.ClockPool.step": (
        lambda takes: waiting_pool().step(takes),
        {"takes": 0},
    ),
    "greendefer.geventreactor.deferToGreenlet": (geventreactor.deferToGreenlet, {"f": reader}),
    "greendefer.geventreactor.deferToGreenletPool": (
        lambda greenletpool, f: geventreactor.deferToGreenletPool(None, greenletpool, f),
        {"greenletpool": GreenPool(1), "f": reader},
    ),
    "greendefer.geventreactor.callMultipleInGreenlet": (
        geventreactor.callMultipleInGreenlet,
        {"tupleList": []},
    ),
    "greendefer.geventreactor.blockingCallFromGreenlet": (
        lambda f: geventreactor.blockingCallFromGreenlet(None, f),
        {"f": reader},
    ),
    "greendefer.geventreactor.waitForDeferred": (
        geventreactor.waitForDeferred,
        {"d": succeed(4)},
    ),
    "greendefer.geventreactor.waitForGreenlet": (
        geventreactor.waitForGreenlet,
        {"g": gevent.Greenlet()},
    ),
    "greendefer.geventreactor.GeventResolver": (
        geventreactor.GeventResolver,
        {"reactor": the_reactor},
    ),
    "greendefer.geventreactor.IReactorGreenlets.deferToGreenlet": (
        the_reactor.deferToGreenlet,
        {"f": reader},
    ),
    "greendefer.geventreactor.IReactorGreenlets.callInGreenlet": (
        the_reactor.callInGreenlet,
        {"f": reader},
    ),
    "greendefer.geventreactor.IReactorGreenlets.callFromGreenlet": (
        the_reactor.callFromGreenlet,
        {"f": reader},
    ),
    "greendefer.geventreactor.IReactorGreenlets.suggestGreenletPoolSize": (
        the_reactor.suggestGreenletPoolSize,
        {"size": 100},
    ),
    "greendefer.geventasyncioreactor.GeventAsyncioReactor": (
        lambda eventloop: GeventAsyncioReactor(eventloop),
        {"eventloop": NotImplemented},
    ),
}
"""Every public function and class, with its arguments and a value for each that is taken. Where
there is none, since what is taken has consequences, it is NotImplemented."""

WITHOUT = {
    # No arguments that could be wrong.
    "greendefer.start_reactor",
    "greendefer.instrumentation.get_hooks",
    "greendefer.geventreactor.install",
    *("greendefer.doctor.examine", "greendefer.doctor.report"),
    "greendefer.contrib.psycopg.install",
    # Theirs are those of the command line.
    *("greendefer.doctor.main", "greendefer.__main__.main"),
    # Its argument is that of the reactor, which is in the table.
    "greendefer.geventasyncioreactor.install",
    # Made by others.
    *("greendefer.GreenIterator", "greendefer.BlockingIterator"),
    *("greendefer.geventasyncioreactor.GreenEventLoop", "greendefer.geventreactor.GeventReactor"),
    "greendefer.geventasyncioreactor.GreenSelector",
    # Data, or what others implement, or are.
    "greendefer.Pool",
    *("greendefer.PoolStats", "greendefer.instrumentation.CallDetails"),
    "greendefer.doctor.Finding",
    *("greendefer.instrumentation.Hook", "greendefer.instrumentation.CallObserver"),
}
MODULES = (
    greendefer,
    *(
        importlib.import_module(f"greendefer.{name}")
        for name in (
            *("adbapi", "geventasyncioreactor", "geventreactor", "instrumentation", "protocols"),
            *("shutdown", "testing", "threadpool", "doctor", "contrib.psycopg", "__main__"),
        )
    ),
)
"""All but greendefer.contrib.django, which can't be imported without Django; there is nothing in it
that takes an argument."""


def public_names(module: Any) -> Iterator[str]:
    for name in getattr(module, "__all__", None) or vars(module):
        thing = getattr(module, name)
        is_ours = hasattr(module, "__all__") or (
            getattr(thing, "__module__", None) == module.__name__ and not name.startswith("_")
        )
        is_error = isinstance(thing, type) and issubclass(thing, BaseException)
        if is_ours and callable(thing) and not is_error:
            yield f"{module.__name__}.{name}"


def test_all_public_names_are_in_the_table() -> None:
    names = {name for module in MODULES for name in public_names(module)}
    assert len(names) > 30
    fuzzed = {name.partition(",")[0] for name in PUBLIC}
    # in_order has its name there, too.
    assert names - fuzzed - WITHOUT - {"greendefer.protocols.in_order"} == {
        "greendefer.geventreactor.IReactorGreenlets"  # whose methods are in the table
    }
    assert names >= WITHOUT
    owners = names | {module.__name__ for module in MODULES}
    assert not [name for name in fuzzed - names if not is_found_in(owners, name)]


def is_found_in(owners: set[str], name: str) -> bool:
    """Is it a method of one of these classes, or what one of these modules has from another?"""
    owner, _, attribute = name.rpartition(".")
    if owner not in owners:
        return False
    thing = pkgutil.resolve_name(owner)
    return attribute in thing if thing is IReactorGreenlets else hasattr(thing, attribute)


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
    st.lists(st.integers()), st.complex_numbers(), st.builds(object), st.just(HUGE),
    st.builds(Unprintable), st.builds(Long), st.builds(Unequal), st.just(blocking),
    st.dictionaries(st.text(), st.integers()), st.builds(Timeouts), st.builds(GreenPool),
    st.lists(st.tuples(st.just(blocking), st.just(()), st.just({})) | st.integers()),
)  # fmt: skip

INSIDE = {"methods", "plain", "properties", "results", "hooks", "tupleList"}
"""Arguments of which the error shows the part that is wrong."""


def settled() -> Any:
    """What a refused call must leave as it was."""
    return (
        default_pool.stats(),
        instrumentation.get_hooks(),
        (shutdown._running, shutdown._ending),
        _holdups._threshold,
        len(the_reactor.getDelayedCalls()),
        len(the_reactor.threadCallQueue),
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


@pytest.mark.parametrize("name", PUBLIC)
@settings(
    deadline=None,
    max_examples=1000 if os.environ.get("GREENDEFER_RELIABILITY") == "long" else 40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_fuzzed(name: str, data: Any, settings_kept: None, logged: Any) -> None:
    """What is not taken raises TypeError or ValueError, which names one of the arguments and shows
    its value; and all is as it was before."""
    f, arguments = PUBLIC[name]
    wrong = data.draw(st.sets(st.sampled_from(sorted(arguments)), min_size=1))
    values = {each: data.draw(anything, label=each) for each in sorted(wrong)}
    assume(all(values[each] is not None for each in wrong if arguments[each] is NotImplemented))
    before = settled()
    # What is taken can't be used here: a reactor is there, and the worker was not entered.
    taken_all_the_same = {
        "greendefer.install": ReactorAlreadyInstalledError,
        "greendefer.PoolWorker": RuntimeError,
    }
    try:
        taken = f(**{**arguments, **values})
    except taken_all_the_same.get(name, ()):
        pass
    except (TypeError, ValueError) as e:
        message = str(e)
        named = [each for each in arguments if re.search(rf"\b{each}\b", message)]
        assert named or (wrong & {"func", "method"} and "decorates" in message), message
        # Of more than one line: how many are shown depends on what comes before.
        shows = [
            shown(values[each]).partition("\n")[0] in message for each in named if each in values
        ]
        assert any(shows) or wrong & (INSIDE | {"func", "method"}), message
        assert len(message) < 1000
        assert settled() == before
    else:
        if isinstance(taken, Deferred):
            # Or its result comes, from another thread, while the next example looks what is there.
            greendefer.wait_for_deferred(taken.addErrback(lambda _: None), 20)
        greendefer.wait_for_deferred(default_pool.submit(len, "four"), 20)
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
        several = [(called.append, (1,), {}), (called.append, 2, {})]
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
