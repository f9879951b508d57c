"""What an argument may be, said once more: by what the reference says, and not by the code that it
is to test. With wrong values of each kind, and what the error must say of them."""

from __future__ import annotations

import inspect
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, ContextDecorator, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import gevent
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

import greendefer
from greendefer import ExecutorPool, GreenPool, NativeThreadPool, Pool, Timeouts, instrumentation
from greendefer._errors import shown
from greendefer.testing import InlinePool


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


class HalfAClock:
    seconds = time.monotonic
    callLater = 5


class HalfAReceiver:
    def resolutionBegan(self, resolution: Any) -> None:
        raise AssertionError


class Receiver(HalfAReceiver):
    """A whole one."""

    complete: Deferred[None]

    def resolutionBegan(self, resolution: Any) -> None:
        self.complete = Deferred()

    def addressResolved(self, address: Any) -> None:
        pass

    def resolutionComplete(self) -> None:
        self.complete.callback(None)


def blocking() -> int:
    return 4


async def asynchronous() -> None:
    pass


async def asynchronous_generator() -> Any:
    yield 4


def generator() -> Iterator[int]:
    yield 4


def pool_of(instance: object) -> Pool:
    return InlinePool()


@contextmanager
def around_it() -> Iterator[None]:
    yield


class Around(AbstractContextManager["Around"], ContextDecorator):
    def __exit__(self, *exc: object) -> None:
        pass


def executor() -> Any:
    return ThreadPoolExecutor(1)


HUGE = 10**5000  # Python itself refuses to print it

NOT_A_COUNT: tuple[Any, ...] = ("1", 1.0, True, [], Hostile(), Unequal(), math.nan)
NOT_SECONDS: tuple[Any, ...] = ("1", True, [], {}, Hostile(), Long(), Unequal(), 1j, blocking)
NO_TIME: tuple[Any, ...] = (-1, -0.001, -math.inf, math.nan)
NOT_CALLABLE: tuple[Any, ...] = (1, "f", Hostile(), Long(), Unequal(), [])
NOT_A_POOL: tuple[Any, ...] = (1, "pool", Hostile(), Unequal(), [])
NOT_A_STRING: tuple[Any, ...] = (1, b"name", [], Hostile(), Unequal())
NOT_OF_A_CLASS: tuple[Any, ...] = (None, 1, "name", blocking, Hostile(), Long(), Unequal())

anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
    st.lists(st.integers()), st.complex_numbers(), st.builds(object), st.just(HUGE),
    st.builds(Unprintable), st.builds(Long), st.builds(Unequal), st.just(blocking),
    st.sampled_from([asynchronous, generator, int, object, Clock]),
    st.dictionaries(st.text(), st.integers()), st.builds(Timeouts), st.builds(GreenPool),
    st.lists(st.tuples(st.just(blocking), st.just(()), st.just({})) | st.integers()),
)  # fmt: skip


def parts_of(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, Mapping):
        yield from value
        yield from (part for each in value.values() for part in parts_of(each))
    elif isinstance(value, (list, tuple)):
        yield from (part for each in value for part in parts_of(each))
    elif isinstance(value, (str, bytes)):
        yield from value


@dataclass(frozen=True)
class Kind:
    """What an argument may be.

    :ivar allows: must the value be taken? All others must be refused.
    :ivar wrong: what the error says is allowed, and values of which it must say that.
    :ivar near: values that are right, or nearly so: those that are drawn at random seldom are.
    :ivar parts: what the error may show: the value, or, where there are several things in it, the
        one that is wrong.
    :ivar drawn: values that are drawn besides, where not all of `anything` can be.
    """

    allows: Callable[[Any], bool]
    wrong: tuple[tuple[str, tuple[Any, ...]], ...]
    near: tuple[Any, ...] = ()
    parts: Callable[[Any], Iterable[Any]] = lambda value: (value,)
    drawn: st.SearchStrategy[Any] = anything

    def values(self) -> st.SearchStrategy[Any]:
        if not self.near:
            return self.drawn
        # One of two; one_of() makes that one of twenty.
        return st.sampled_from([st.sampled_from(self.near), self.drawn]).flatmap(lambda one: one)

    def is_shown(self, value: Any, message: str) -> bool:
        # Of more than one line: how many are shown depends on what comes before.
        return any(shown(each).partition("\n")[0] in message for each in self.parts(value))


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def count(least: int, *, none: bool = False) -> Kind:
    def allows(value: Any) -> bool:
        if value is None:
            return none
        return is_whole(value) and least <= value <= sys.maxsize

    not_one = NOT_A_COUNT if none else (None, *NOT_A_COUNT)
    return Kind(
        allows,
        (
            ("a whole number", not_one),
            (f"at least {least}", (least - 1, -7, -HUGE)),
            ("a machine's number", (HUGE, sys.maxsize + 1)),
        ),
        near=(None, least - 1, least, least + 5),
    )


def is_seconds(value: Any, *, finite: bool = False) -> bool:
    if not is_whole(value) and not isinstance(value, float):
        return False
    try:
        number = float(value)
    except OverflowError:
        return False
    return number >= 0 and not (finite and math.isinf(number))


def seconds(*, needed: bool = False) -> Kind:
    def allows(value: Any) -> bool:
        return is_seconds(value, finite=needed) or (value is None and not needed)

    return Kind(
        allows,
        (
            ("a number of seconds", (None, *NOT_SECONDS) if needed else NOT_SECONDS),
            ("0 or more seconds", (*NO_TIME, math.inf) if needed else NO_TIME),
            ("a smaller number", (HUGE, -HUGE)),
        ),
        near=(None, 0, 0.5, math.inf, -1),
    )


SECONDS = seconds()
LIMIT_OF_HOLDUPS = Kind(
    lambda value: value is None or (is_seconds(value, finite=True) and value > 0),
    (
        ("a number of seconds", NOT_SECONDS),
        ("0 or more seconds, and finite", (*NO_TIME, math.inf)),
        ("a smaller number", (HUGE, -HUGE)),
        ("more than 0", (0, 0.0)),
    ),
    near=(None, 0.25, 0),
)
TIMEOUT = Kind(
    lambda value: value is None or isinstance(value, Timeouts) or is_seconds(value),
    (
        ("seconds, a Timeouts or None", NOT_SECONDS),
        ("0 or more seconds", NO_TIME),
        ("a smaller number", (HUGE, -HUGE)),
    ),
    near=(None, 0, 0.5, Timeouts(total=1), Timeouts(on_expiry="kill"), Timeouts),
)


def choice(*names: str, none: bool = False) -> Kind:
    def allows(value: Any) -> bool:
        return (isinstance(value, str) and value in names) or (value is None and none)

    wrong: tuple[Any, ...] = (
        "explode",
        names[0].swapcase(),
        "",
        1,
        Hostile(),
        Unequal(),
        [],
        [names[0]],
    )
    return Kind(
        allows,
        ((repr(names[0]), wrong if none else (None, *wrong)), (repr(names[-1]), (2, b"x"))),
        near=(*names, *wrong[:3]),
    )


ON_EXPIRY = choice("kill", "abandon", none=True)
ON_CANCEL = choice("kill", "abandon")
NAME = Kind(lambda v: v is None or isinstance(v, str), (("a string or None", NOT_A_STRING),))
CALLABLE = Kind(callable, (("something to call", (None, *NOT_CALLABLE)),))
ON_RESULT = Kind(
    lambda value: value is None or callable(value),
    (("something to call with the result, or None", NOT_CALLABLE),),
)
AROUND = Kind(
    lambda v: v is None or (callable(v) and not isinstance(v, ContextDecorator)),
    (
        ("a callable that returns a context manager", NOT_CALLABLE),
        ("around=f, not around=f()", (Around(), around_it())),
    ),
    near=(around_it, nullcontext, Around, Around(), around_it(), nullcontext()),
)
EXECUTOR = Kind(
    lambda value: isinstance(value, Executor) or callable(value),
    (("a concurrent.futures.Executor", (None, *NOT_CALLABLE, GreenPool(1))),),
    near=(executor, ThreadPoolExecutor),
)


def is_async(f: Any) -> bool:
    return any(ask(f) for ask in (inspect.iscoroutinefunction, inspect.isasyncgenfunction))


def function(
    *, asynchronous_too: bool = False, generators: bool = True, classmethods: bool = True
) -> Kind:
    """What a decorator decorates."""

    def allows(value: Any) -> bool:
        bare = value
        while isinstance(bare, (partial, classmethod, staticmethod)):
            bare = bare.func if isinstance(bare, partial) else bare.__func__
        return (
            (callable(value) or (classmethods and isinstance(value, classmethod)))
            and (asynchronous_too or not is_async(bare))
            and (generators or not inspect.isgeneratorfunction(bare))
        )

    wrong: list[tuple[str, tuple[Any, ...]]] = [("decorates", (*NOT_CALLABLE, property(pool_of)))]
    if not asynchronous_too:
        wrong.append(("async", (asynchronous, asynchronous_generator, partial(asynchronous))))
    if not generators:
        wrong.append(("@green_iterator", (generator, partial(generator))))
    return Kind(
        allows,
        tuple(wrong),
        near=(
            *(blocking, asynchronous, asynchronous_generator, generator, partial(generator)),
            *(staticmethod(generator), classmethod(pool_of), property(pool_of), partial(blocking)),
        ),
    )


def may_be_asked_for_a_pool(value: Any) -> bool:
    if isinstance(value, Pool):
        return True
    if not callable(value) or (isinstance(value, type) and issubclass(value, Pool)):
        return False
    try:
        inspect.signature(value).bind(None)
    except TypeError:
        return False
    except ValueError:
        pass  # it does not say what it takes
    return True


POOLS_THAT_KILL_NOTHING = (NativeThreadPool(1), ExecutorPool(executor, 1))
SOME_POOLS = (GreenPool(1), InlinePool(), *POOLS_THAT_KILL_NOTHING)
POOL_CHOICE = Kind(
    lambda value: value is None or may_be_asked_for_a_pool(value),
    (
        ("a pool, a callable that returns one, or None", (*NOT_A_POOL, NativeThreadPool)),
        ("called with one argument", (blocking, lambda a, b: None, object)),
    ),
    near=(*SOME_POOLS, pool_of, GreenPool, pool_of(None)),
)
POOL = Kind(
    lambda value: isinstance(value, Pool),
    (("a greendefer.GreenPool", (None, *NOT_A_POOL, GreenPool, pool_of)),),
    near=(*SOME_POOLS, GreenPool),
)
POOL_OR_NONE = Kind(
    lambda value: value is None or isinstance(value, Pool),
    (("a pool or None", (*NOT_A_POOL, GreenPool, pool_of)),),
    near=(*SOME_POOLS, GreenPool),
)
POOL_WITH_WORKERS = Kind(
    lambda v: isinstance(v, Pool) and not isinstance(v, (ExecutorPool, greendefer.PoolWorker)),
    (("a pool with a worker()", (None, *NOT_A_POOL, GreenPool, SOME_POOLS[-1])),),
    near=SOME_POOLS,
)
A_DECORATED_ONE = greendefer.green_deferred(blocking)
DECORATED = Kind(
    lambda value: value is A_DECORATED_ONE,
    (("has decorated", (*NOT_OF_A_CLASS, succeed(4), property(pool_of))),),
    near=(A_DECORATED_ONE,),
)
DEFERRED = Kind(
    lambda value: isinstance(value, Deferred),
    (("a Deferred", NOT_OF_A_CLASS), ("a coroutine or a function", (asynchronous,))),
    near=(succeed(4), Deferred),
)
GREENLET = Kind(
    lambda value: isinstance(value, gevent.Greenlet),
    (("a gevent.Greenlet", (*NOT_OF_A_CLASS, gevent.Greenlet)),),
    near=(gevent.spawn(blocking),),
)

OF_A_METHOD: dict[str, Kind] = {
    "pool": POOL_CHOICE,
    "timeout": TIMEOUT,
    "on_cancel": ON_CANCEL,
    "prefetch": count(0),
}


def are_methods(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(each, Mapping)
        and all(name in OF_A_METHOD and OF_A_METHOD[name].allows(each[name]) for name in each)
        for each in value.values()
    )


METHODS = Kind(
    lambda value: value is None or are_methods(value),
    (
        ("a mapping of names to options", (1, [1], "no mapping", Hostile(), Unequal())),
        ("a mapping of options", ({"get": 1}, {"get": Hostile()}, {"a": {}, "b": Unequal()})),
        ("there are pool, timeout, on_cancel, prefetch", ({"get": {"nope": 1}},)),
        ("a pool, a callable", ({"get": {"pool": 5}},)),
        ("a whole number", ({"get": {"prefetch": None}},)),
        ("'kill' or 'abandon'", ({"get": {"on_cancel": "explode"}},)),
    ),
    near=(
        *({}, {"get": {}}, {"get": {"timeout": 1, "prefetch": 3}}, {"get": {"prefetch": -1}}),
        *({"get": {"on_cancel": "no"}}, {"get": {}, "put": {"nope": 1}}),
    ),
    parts=parts_of,
)


def are(kinds: tuple[type, ...]) -> Callable[[Any], bool]:
    """One of these, or several."""

    def allows(value: Any) -> bool:
        if isinstance(value, kinds):
            return True
        return isinstance(value, Iterable) and all(isinstance(each, kinds) for each in value)

    return allows


PLAIN = Kind(
    are((str, type)),
    (("an iterable of names and types", (None, 1, [1], b"get", [Hostile()], Hostile())),),
    near=("get", ("get", int), int, [], ["get", 5]),
)
PROPERTIES = Kind(
    are((str,)),
    (("an iterable of names", (None, 1, [1], b"get", [int], int, [Hostile()], Hostile())),),
    near=("get", ("get", int), int, [], ["get"]),
)
RESULTS = Kind(
    lambda value: (
        value is None
        or callable(value)
        or (isinstance(value, tuple) and all(isinstance(each, type) for each in value))
    ),
    (("a type, a tuple of types, a callable or None", (1, "list", (1,), [list], Hostile())),),
    near=(int, (int, str), (int, "str"), [int], ()),
)

EVENTS = ("submitted", "started", "ended", "rejected")


def has(*names: str) -> Callable[[Any], bool]:
    return lambda value: all(callable(getattr(value, name, None)) for name in names)


A_HOOK = instrumentation.LoggingHook()
HOOKS = Kind(
    lambda value: isinstance(value, Iterable) and all(map(has(*EVENTS), value)),
    (
        ("a list of hooks", (None, 1, Hostile(), Long(), Unequal(), blocking, A_HOOK)),
        ("a hook has submitted, started, ended, rejected", ([1], "f", (Hostile(),), [A_HOOK, 2])),
    ),
    near=([A_HOOK], (A_HOOK,), A_HOOK, [], [A_HOOK, 1]),
    parts=parts_of,
)


def or_none(allowed: str, *methods: str, right: Any = None) -> Kind:
    return Kind(
        lambda value: value is None or has(*methods)(value),
        ((f"{allowed} or None", (1, "logger", [], Hostile(), Long(), Unequal())),),
        near=() if right is None else (right,),
    )


LOGGER = or_none("a logging.Logger", "debug", "log", "warning", right=logging.getLogger())
STRUCTLOGGER = or_none("a logger of structlog's", "debug", "warning", right=logging.getLogger())
REGISTRY = or_none("a CollectorRegistry", "register")
CLOCK = Kind(
    has("seconds", "callLater"),
    (("a twisted.internet.task.Clock", (None, 1, "clock", Hostile(), time, HalfAClock())),),
    near=(Clock(), HalfAClock()),
)
LOOP = Kind(
    lambda _: False,  # a right one can't be used here
    (("a GreenEventLoop of this module", (1, "loop", Hostile(), Unequal(), [])),),
    drawn=anything.filter(lambda value: value is not None),
)
REACTOR = Kind(has("callFromThread"), (("called from threads", (*NOT_OF_A_CLASS, Clock())),))
# Others name a module, which would be imported.
DRIVER = Kind(
    lambda value: isinstance(value, str),
    (("a string", (None, *NOT_A_STRING)),),
    near=("sqlite3",),
    drawn=anything.filter(lambda value: not isinstance(value, str)),
)


def is_a_call(each: Any) -> bool:
    if not isinstance(each, (tuple, list)) or len(each) != 3:
        return False
    f, args, kwargs = each
    return (
        callable(f)
        and isinstance(args, Iterable)
        and isinstance(kwargs, Mapping)
        and all(isinstance(key, str) for key in kwargs)
    )


CALLS = Kind(
    lambda value: isinstance(value, Iterable) and all(map(is_a_call, value)),
    (
        ("a list of (f, args, kwargs)", (None, 1, Hostile(), Long(), Unequal(), blocking)),
        (
            "something to call, a tuple, and a dict with strings for keys",
            (
                *([1], "f", [(blocking,)], [(1, (), {})], [(blocking, 1, {})], [Hostile()]),
                *([(blocking, (), 1)], [(blocking, (), {1: 2})]),
                *([(blocking, (), {"a": 1, Hostile(): 2})], [(blocking, (), {}), None]),
            ),
        ),
    ),
    near=([(blocking, (), {})], [(blocking, [], {}), (blocking, (), {})], [(blocking, (), {1: 2})]),
    parts=parts_of,
)


def are_limits(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray)):
        return value is None
    return all(is_seconds(each, finite=True) for each in value) and math.isfinite(
        sum(map(float, value))
    )


def limits_in(value: Any) -> Iterator[Any]:
    """Where each is right, their sum may be wrong, and is shown."""
    yield from parts_of(value)
    if isinstance(value, (list, tuple)) and all(is_seconds(each) for each in value):
        yield sum(map(float, value))


LIMITS = Kind(
    are_limits,
    (
        (
            "a sequence of seconds",
            (
                *(5, 0, True, "12", "", b"12", bytearray(b"12"), {}, {1, 2}),
                *(Hostile(), Long(), Unequal(), blocking),
            ),
        ),
        ("a number of seconds", tuple((1, value) for value in (None, *NOT_SECONDS))),
        ("0 or more seconds, and finite", tuple([1, value] for value in (*NO_TIME, math.inf))),
        ("a smaller number", ([1, HUGE], (-HUGE,))),
        ("the sum must be 0 or more seconds, and finite", ([1e308, 10**308], (1e308, 1e308))),
    ),
    near=((), [], (1, 3), [0.5], range(1, 3), [1e308, 1e308], (1, None)),
    parts=limits_in,
)
HOST = Kind(
    lambda value: isinstance(value, (str, bytes)),
    (("a string", (None, 5, True, [], ("a",), bytearray(b"a"), Hostile(), Long(), Unequal())),),
    near=("localhost", b"localhost", "", "a\0b", "a..b", "x" * 70, "\ud800"),
)


def is_a_port(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            return True
    return is_whole(value) and 0 <= value <= 65535


PORT = Kind(
    is_a_port,
    (
        (
            "a port's number, from 0 to 65535, or the name of a service",
            (
                *(None, True, 1.5, b"80", [], Hostile(), Long(), Unequal()),
                *(-1, 65536, HUGE, -HUGE, "-1", "70000"),
            ),
        ),
    ),
    near=(0, 80, 65535, 65536, "80", "http", "65536"),
)
ADDRESS_TYPES = Kind(
    lambda value: (
        value is None
        or (
            isinstance(value, Iterable)
            and bool(types := list(value))
            and all(any(each is one for one in (IPv4Address, IPv6Address)) for each in types)
        )
    ),
    (
        (
            "IPv4Address, IPv6Address, or both, in a list",
            (
                *(
                    5,
                    IPv4Address,
                    "IPv4Address",
                    [IPv4Address, int],
                    [None],
                    Hostile(),
                    [Hostile()],
                ),
                *([], (), "", {}, Unequal(), [Unequal()], [[]]),
            ),
        ),
    ),
    near=([IPv4Address], (IPv6Address,), {IPv4Address, IPv6Address}, [], [IPv4Address, 5]),
)
TRANSPORT = choice("TCP", "UDP")
RECEIVER = Kind(
    has("resolutionBegan", "addressResolved", "resolutionComplete"),
    (("an IResolutionReceiver", (*NOT_OF_A_CLASS, HalfAReceiver())),),
    near=(Receiver(), HalfAReceiver()),
)
