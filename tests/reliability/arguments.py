"""Every public callable, and what each of its arguments may be."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gevent
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from zope.interface.interface import InterfaceClass

import greendefer
from greendefer import (
    ExecutorPool,
    GreenPool,
    NativeThreadPool,
    Pool,
    PoolWorker,
    Timeouts,
    geventreactor,
    instrumentation,
)
from greendefer.adbapi import GreenConnectionPool
from greendefer.geventasyncioreactor import GeventAsyncioReactor
from greendefer.shutdown import set_shutdown_grace
from greendefer.testing import ClockPool, InlinePool
from greendefer.threadpool import GreenThreadPool

from . import kinds
from .kinds import Kind, Receiver, blocking, executor

the_reactor: Any = _reactor


def parameters_of(f: Any) -> set[str]:
    """Without ``*args`` and ``**kwargs``: they go to somebody else's function."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name for name, p in inspect.signature(f).parameters.items() if p.kind not in several}


@dataclass(frozen=True)
class Argument:
    """One argument.

    :ivar taken: a value that is taken. Where there is none, since what is taken has consequences,
        it is NotImplemented.
    :ivar named: how the error names it: in one of these ways.
    """

    kind: Kind
    taken: Any
    named: tuple[str, ...] = ()

    def is_named(self, message: str) -> bool:
        return any(name in message for name in self.named)


@dataclass(frozen=True)
class Entry:
    """One public callable.

    :ivar rule: gets some of the arguments, by name, where each is allowed by itself, and returns
        what the error says if they are not so together.
    """

    f: Callable[..., Any]
    arguments: dict[str, Argument]
    rule: Callable[..., str | None] = lambda: None

    def with_defaults(self, values: dict[str, Any]) -> dict[str, Any]:
        return {**{name: a.taken for name, a in self.arguments.items()}, **values}

    def call(self, **values: Any) -> Any:
        return self.f(**self.with_defaults(values))

    def wrong_of(self, values: dict[str, Any]) -> list[str]:
        """Those that must be refused."""
        return [name for name in values if not self.arguments[name].kind.allows(values[name])]

    def broken_rule(self, values: dict[str, Any]) -> str | None:
        """What the error says, if values that are right by themselves must be refused."""
        names = parameters_of(self.rule)
        if names & set(self.wrong_of(values)):
            return None
        everything = self.with_defaults(values)
        return self.rule(**{name: everything[name] for name in names})


def waiting_pool() -> ClockPool:
    pool = ClockPool(Clock())
    pool.submit(blocking)
    return pool


class Offline(geventreactor.GeventResolver):
    """It has an answer for every name."""

    def _of_this_hub(self) -> Any:
        return self

    def gethostbyname(self, name: Any) -> str:
        return "192.0.2.1"

    def getaddrinfo(self, *args: Any) -> list[Any]:
        return []


def look_up_all(resolutionReceiver: Any, **given: Any) -> Deferred[None]:
    Offline(the_reactor).resolveHostName(resolutionReceiver, **given)
    return resolutionReceiver.complete  # type: ignore[no-any-return]


def set_on_a_pool(name: str) -> Callable[..., None]:
    return lambda **given: setattr(GreenPool(1), name, given[name])


def submit_to_an_executor(f: Any) -> Deferred[Any]:
    pool = ExecutorPool(executor, 1)
    d = pool.submit(f)
    pool.close()
    return d


def connections_for_a_while(**given: Any) -> Deferred[None]:
    return GreenConnectionPool(**given).close()


def call_in_thread(func: Any, **onResult: Any) -> Deferred[None]:
    pool = GreenThreadPool()
    if onResult:
        pool.callInThreadWithCallback(*onResult.values(), func)
    else:
        pool.callInThread(func)
    return pool.pool._when_idle()


def with_(decorator: Any) -> Any:
    """with_options() of what it decorates."""
    return lambda **given: greendefer.with_options(decorator(blocking), **given)


def decorated_by(decorator: Any, name: str = "func") -> Any:
    return lambda **given: decorator(**{k: v for k, v in given.items() if k != name})(given[name])


def the_smaller_first(minthreads: Any, maxthreads: Any) -> str | None:
    least = 0 if minthreads is None else minthreads
    most = 100 if maxthreads is None else maxthreads
    return "at most maxthreads" if least > most else None


def not_killed_in_threads(pool: Any, timeout: Any) -> str | None:
    if (
        isinstance(pool, (NativeThreadPool, ExecutorPool))
        and isinstance(timeout, Timeouts)
        and timeout.on_expiry == "kill"
    ):
        return "Timeouts(on_expiry='kill') can't be had on a"
    return None


def submits(to: Callable[..., Any]) -> Entry:
    return Entry(lambda f: to().submit(f), {"f": F})


F = Argument(kinds.CALLABLE, blocking, ("submit(f, ...)",))
COUNT_OF_CALLS = Argument(kinds.count(1), 1)
MAX_QUEUED = Argument(kinds.count(0, none=True), None)
NAME = Argument(kinds.NAME, None)
ENDS_OF_A_POOL = {"size": COUNT_OF_CALLS, "max_queued": MAX_QUEUED, "name": NAME}
OF_A_POOL = {**ENDS_OF_A_POOL, "around": Argument(kinds.AROUND, None)}
OPTIONS = {
    "pool": Argument(kinds.POOL_CHOICE, None, ("pool=",)),
    "timeout": Argument(kinds.TIMEOUT, None, ("timeout=",)),
}
ON_CANCEL = {"on_cancel": Argument(kinds.ON_CANCEL, "kill", ("on_cancel=",))}
PREFETCH = {"prefetch": Argument(kinds.count(0), 0, ("prefetch=",))}
SECONDS_ONLY = {"timeout": Argument(kinds.SECONDS, None, ("timeout=",))}
GRACE = Argument(kinds.seconds(needed=True), 1)
D = Argument(kinds.DEFERRED, succeed(4), ("wait_for_deferred(d)",))
G = Argument(kinds.GREENLET, gevent.spawn(blocking), ("wait_for_greenlet(g)",))
LEAST, MOST = Argument(kinds.count(0), 0), Argument(kinds.count(1), 5)

_PUBLIC: dict[str, Entry] = {
    "greendefer.Pool": Entry(Pool, OF_A_POOL),
    "greendefer.GreenPool": Entry(GreenPool, OF_A_POOL),
    "greendefer.GreenPool.submit": submits(GreenPool),
    "greendefer.GreenPool.resize": Entry(
        lambda size: GreenPool(1).resize(size), {"size": COUNT_OF_CALLS}
    ),
    "greendefer.GreenPool.close": Entry(
        lambda grace: GreenPool(1).close(grace=grace), {"grace": Argument(kinds.SECONDS, 0)}
    ),
    **{
        f"greendefer.GreenPool.{name}": Entry(
            set_on_a_pool(name),
            {name: Argument(OF_A_POOL[name].kind, None, (f"GreenPool.{name}",))},
        )
        for name in ("around", "max_queued", "name")
    },
    "greendefer.NativeThreadPool": Entry(NativeThreadPool, OF_A_POOL),
    "greendefer.NativeThreadPool.submit": submits(lambda: NativeThreadPool(1)),
    "greendefer.ExecutorPool": Entry(
        ExecutorPool, {"executor": Argument(kinds.EXECUTOR, executor), **OF_A_POOL}
    ),
    "greendefer.ExecutorPool.submit": Entry(submit_to_an_executor, {"f": F}),
    "greendefer.PoolWorker": Entry(
        PoolWorker, {"pool": Argument(kinds.POOL_WITH_WORKERS, GreenPool(1))}
    ),
    "greendefer.PoolWorker.submit": submits(lambda: PoolWorker(GreenPool(1))),
    "greendefer.Timeouts": Entry(
        Timeouts,
        {
            **dict.fromkeys(("total", "queued", "running"), Argument(kinds.SECONDS, None)),
            "on_expiry": Argument(kinds.ON_EXPIRY, None),
        },
    ),
    "greendefer.green_deferred": Entry(
        decorated_by(greendefer.green_deferred),
        {
            "func": Argument(
                kinds.function(generators=False),
                blocking,
                ("green_deferred decorates", "is async already", "is a generator function"),
            ),
            **ON_CANCEL,
            **OPTIONS,
        },
        not_killed_in_threads,
    ),
    "greendefer.green_iterator": Entry(
        decorated_by(greendefer.green_iterator),
        {
            "func": Argument(
                kinds.function(), blocking, ("green_iterator decorates", "is async already")
            ),
            **PREFETCH,
            **OPTIONS,
        },
        not_killed_in_threads,
    ),
    "greendefer.blocking_from_greenlet": Entry(
        decorated_by(greendefer.blocking_from_greenlet),
        {
            "func": Argument(
                kinds.function(asynchronous_too=True),
                blocking,
                ("blocking_from_greenlet decorates",),
            ),
            **SECONDS_ONLY,
        },
    ),
    "greendefer.in_order": Entry(
        decorated_by(greendefer.in_order, "method"),
        {
            "method": Argument(
                kinds.function(classmethods=False),
                blocking,
                ("in_order decorates a method", "in_order is for methods"),
            ),
            "pool": Argument(kinds.POOL_OR_NONE, None),
        },
    ),
    "greendefer.with_options": Entry(
        lambda decorated: greendefer.with_options(decorated, timeout=1),
        {"decorated": Argument(kinds.DECORATED, kinds.A_DECORATED_ONE)},
    ),
    "greendefer.with_options, green_deferred": Entry(
        with_(greendefer.green_deferred), {**ON_CANCEL, **OPTIONS}, not_killed_in_threads
    ),
    "greendefer.with_options, green_iterator": Entry(
        with_(greendefer.green_iterator), {**PREFETCH, **OPTIONS}, not_killed_in_threads
    ),
    "greendefer.with_options, blocking": Entry(
        with_(greendefer.blocking_from_greenlet), SECONDS_ONLY
    ),
    "greendefer.green_proxy": Entry(
        partial(greendefer.green_proxy, []),
        {
            "methods": Argument(kinds.METHODS, None, ("methods=",)),
            "plain": Argument(kinds.PLAIN, ()),
            "properties": Argument(kinds.PROPERTIES, ()),
            "results": Argument(kinds.RESULTS, ()),
            **OPTIONS,
        },
        not_killed_in_threads,
    ),
    "greendefer.defer_to_greenlet": Entry(
        lambda f: greendefer.defer_to_greenlet(f), {"f": Argument(kinds.CALLABLE, blocking)}
    ),
    "greendefer.wait_for_deferred": Entry(
        greendefer.wait_for_deferred, {"d": D, "timeout": Argument(kinds.SECONDS, None)}
    ),
    "greendefer.wait_for_greenlet": Entry(greendefer.wait_for_greenlet, {"g": G}),
    "greendefer.install": Entry(
        greendefer.install,
        {
            "kind": Argument(kinds.choice("native", "poll", "select", "asyncio"), "native"),
            "threads": Argument(kinds.choice("native", "green"), "native"),
        },
    ),
    "greendefer.shutdown.set_shutdown_grace": Entry(
        set_shutdown_grace, {"running": GRACE, "ending": GRACE}
    ),
    "greendefer.instrumentation.set_hooks": Entry(
        instrumentation.set_hooks, {"hooks": Argument(kinds.HOOKS, [])}
    ),
    "greendefer.instrumentation.warn_of_holdups": Entry(
        instrumentation.warn_of_holdups, {"seconds": Argument(kinds.LIMIT_OF_HOLDUPS, 0.25)}
    ),
    "greendefer.instrumentation.LoggingHook": Entry(
        instrumentation.LoggingHook, {"logger": Argument(kinds.LOGGER, None)}
    ),
    "greendefer.instrumentation.StructlogHook": Entry(
        instrumentation.StructlogHook,
        {"logger": Argument(kinds.STRUCTLOGGER, logging.getLogger())},
    ),
    "greendefer.instrumentation.PrometheusHook": Entry(
        instrumentation.PrometheusHook, {"registry": Argument(kinds.REGISTRY, NotImplemented)}
    ),
    "greendefer.threadpool.GreenThreadPool": Entry(
        GreenThreadPool, {"minthreads": LEAST, "maxthreads": MOST, "name": NAME}, the_smaller_first
    ),
    "greendefer.threadpool.GreenThreadPool.adjustPoolsize": Entry(
        lambda **sizes: GreenThreadPool().adjustPoolsize(**sizes),
        {
            "minthreads": Argument(kinds.count(0, none=True), None),
            "maxthreads": Argument(kinds.count(1, none=True), None),
        },
        the_smaller_first,
    ),
    "greendefer.threadpool.GreenThreadPool.callInThread": Entry(
        call_in_thread, {"func": Argument(kinds.CALLABLE, blocking)}
    ),
    "greendefer.threadpool.GreenThreadPool.callInThreadWithCallback": Entry(
        call_in_thread,
        {
            "onResult": Argument(kinds.ON_RESULT, None, ("for onResult",)),
            "func": Argument(kinds.CALLABLE, blocking, ("callInThread(func",)),
        },
    ),
    "greendefer.adbapi.GreenConnectionPool": Entry(
        connections_for_a_while,
        {"dbapiName": Argument(kinds.DRIVER, "sqlite3"), "cp_min": LEAST, "cp_max": MOST},
    ),
    "greendefer.testing.InlinePool": Entry(InlinePool, {"name": NAME}),
    "greendefer.testing.InlinePool.submit": submits(InlinePool),
    "greendefer.testing.ClockPool": Entry(
        ClockPool, {"clock": Argument(kinds.CLOCK, Clock()), **ENDS_OF_A_POOL}
    ),
    "greendefer.testing.ClockPool.step": Entry(
        lambda takes: waiting_pool().step(takes), {"takes": GRACE}
    ),
    "greendefer.geventreactor.deferToGreenlet": Entry(
        lambda f: geventreactor.deferToGreenlet(f),
        {"f": Argument(kinds.CALLABLE, blocking, ("defer_to_greenlet(f",))},
    ),
    "greendefer.geventreactor.deferToGreenletPool": Entry(
        lambda greenletpool, f: geventreactor.deferToGreenletPool(None, greenletpool, f),
        {"greenletpool": Argument(kinds.POOL, GreenPool(1), ("for greenletpool",)), "f": F},
    ),
    "greendefer.geventreactor.callMultipleInGreenlet": Entry(
        geventreactor.callMultipleInGreenlet, {"tupleList": Argument(kinds.CALLS, [])}
    ),
    "greendefer.geventreactor.blockingCallFromGreenlet": Entry(
        lambda f: geventreactor.blockingCallFromGreenlet(None, f),
        {"f": Argument(kinds.CALLABLE, blocking, ("blockingCallFromGreenlet(reactor, f",))},
    ),
    "greendefer.geventreactor.waitForDeferred": Entry(geventreactor.waitForDeferred, {"d": D}),
    "greendefer.geventreactor.waitForGreenlet": Entry(geventreactor.waitForGreenlet, {"g": G}),
    "greendefer.geventreactor.GeventResolver": Entry(
        geventreactor.GeventResolver, {"reactor": Argument(kinds.REACTOR, the_reactor)}
    ),
    "greendefer.geventreactor.GeventResolver.getHostByName": Entry(
        Offline(the_reactor).getHostByName,
        {"name": Argument(kinds.HOST, "localhost"), "timeout": Argument(kinds.LIMITS, ())},
    ),
    "greendefer.geventreactor.GeventResolver.resolveHostName": Entry(
        look_up_all,
        {
            "resolutionReceiver": Argument(kinds.RECEIVER, Receiver()),
            "hostName": Argument(kinds.HOST, "localhost"),
            "portNumber": Argument(kinds.PORT, 80),
            "addressTypes": Argument(kinds.ADDRESS_TYPES, None),
            "transportSemantics": Argument(kinds.TRANSPORT, "TCP"),
        },
    ),
    "greendefer.geventreactor.IReactorGreenlets.deferToGreenlet": Entry(
        lambda f: the_reactor.deferToGreenlet(f), {"f": F}
    ),
    "greendefer.geventreactor.IReactorGreenlets.callInGreenlet": Entry(
        lambda f: the_reactor.callInGreenlet(f), {"f": F}
    ),
    "greendefer.geventreactor.IReactorGreenlets.callFromGreenlet": Entry(
        lambda f: the_reactor.callFromGreenlet(f), {"f": Argument(kinds.CALLABLE, blocking)}
    ),
    "greendefer.geventreactor.IReactorGreenlets.suggestGreenletPoolSize": Entry(
        the_reactor.suggestGreenletPoolSize,
        {"size": Argument(kinds.count(1), 100, ("resize(size",))},
    ),
    "greendefer.geventasyncioreactor.GeventAsyncioReactor": Entry(
        GeventAsyncioReactor, {"eventloop": Argument(kinds.LOOP, NotImplemented)}
    ),
}


def _with_names(name: str, entry: Entry) -> Entry:
    """Where nothing else is said, an error names an argument as ``function(argument``."""
    short = name.partition(",")[0].rpartition(".")[2]
    arguments = {
        each: a if a.named else Argument(a.kind, a.taken, (f"{short}({each}",))
        for each, a in entry.arguments.items()
    }
    return Entry(entry.f, arguments, entry.rule)


PUBLIC = {name: _with_names(name, entry) for name, entry in _PUBLIC.items()}
"""By its name; where that is there twice, what follows a comma says which it is."""

UNCHECKED: dict[str, tuple[str, ...]] = {
    "Any object will do.": ("greendefer.green_proxy(obj)",),
    "It is ignored: a historical one.": (
        "greendefer.geventreactor.waitForDeferred(result)",
        "greendefer.geventreactor.deferToGreenletPool(reactor)",
        "greendefer.geventreactor.blockingCallFromGreenlet(reactor)",
    ),
    "A reactor is installed here, and that comes first. Its class has it in the table.": (
        "greendefer.geventasyncioreactor.install(eventloop)",
    ),
    "It raises RuntimeError, whatever it is given.": ("greendefer.PoolWorker.resize(size)",),
    "greendefer makes them; nobody else does.": (
        *("greendefer.GreenIterator(stream)", "greendefer.instrumentation.CallObserver(*)"),
        *("greendefer.BlockingIterator(source)", "greendefer.BlockingIterator(timeout)"),
        "greendefer.geventasyncioreactor.GreenSelector(wait)",
    ),
    "Plain data, which greendefer makes.": (
        *("greendefer.PoolStats(*)", "greendefer.instrumentation.CallDetails(*)"),
        "greendefer.doctor.Finding(*)",
    ),
    "greendefer calls them.": tuple(
        f"greendefer.instrumentation.{each}.*(*)"
        for each in ("CallObserver", "Hook", "LoggingHook", "StructlogHook", "PrometheusHook")
    ),
    "Methods of Twisted's and asyncio's, which call them, and check what they are given. What a "
    "reactor has besides are those of IReactorGreenlets.": (
        "greendefer.geventreactor.GeventReactor.*(*)",
        *(
            f"greendefer.geventasyncioreactor.{each}.*(*)"
            for each in ("GeventAsyncioReactor", "GreenEventLoop", "GreenSelector")
        ),
    ),
}
"""Why an argument of a public callable is not in the table."""

BESIDES = {
    # What **others, and **connkw, have in them.
    "greendefer.with_options(prefetch)",
    *(
        "greendefer.adbapi.GreenConnectionPool(cp_min)",
        "greendefer.adbapi.GreenConnectionPool(cp_max)",
    ),
    # Twisted's own method, which calls ours.
    "greendefer.threadpool.GreenThreadPool.callInThread(func)",
}
"""What is in the table though inspection can't find it."""

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


REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def public_things() -> Iterator[tuple[str, Any]]:
    """What there is for others to call, exceptions apart: greendefer raises them."""
    for module in MODULES:
        for name in getattr(module, "__all__", None) or vars(module):
            thing = getattr(module, name)
            is_ours = hasattr(module, "__all__") or (
                getattr(thing, "__module__", None) == module.__name__ and not name.startswith("_")
            )
            is_error = isinstance(thing, type) and issubclass(thing, BaseException)
            if is_ours and callable(thing) and not is_error:
                yield f"{module.__name__}.{name}", thing
    # What a module has from another, and is documented as its own.
    for page in REFERENCE.glob("*.md"):
        for name in re.findall(r"auto(?:class|function):: (greendefer\.[\w.]+)", page.read_text()):
            yield name, pkgutil.resolve_name(name)


def public_methods(owner: str, cls: type) -> Iterator[tuple[str, Any, set[str]]]:
    """Of what greendefer itself defines: methods, and properties that can be set."""
    for name in dir(cls):
        thing = inspect.getattr_static(cls, name)
        thing = getattr(thing, "__func__", thing)
        is_property = isinstance(thing, property)
        f = thing.fset if is_property else thing
        if name.startswith("_") or not inspect.isfunction(f):
            continue
        if f.__module__.partition(".")[0] == "greendefer":
            is_static = isinstance(inspect.getattr_static(cls, name), staticmethod)
            parameters = {name} if is_property else parameters_of(f)
            yield (
                f"{owner}.{name}",
                thing,
                parameters if is_static else parameters - {"self", "cls"},
            )


def public_callables() -> Iterator[tuple[str, Any, set[str]]]:
    """(its name, what it is, its parameters)"""
    for name, thing in public_things():
        if isinstance(thing, InterfaceClass):  # whose methods are not its attributes
            for each in thing.names():
                yield f"{name}.{each}", thing[each], set(thing[each].positional)
        else:
            yield name, thing, parameters_of(thing)
            if isinstance(thing, type):
                yield from public_methods(name, thing)
