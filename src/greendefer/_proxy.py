"""green_proxy: a whole blocking object, its methods as Deferreds."""

from __future__ import annotations

import copy
import enum
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import GeneratorType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import wrapt
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ._admission import Pool
from ._behaviours import Behaviour, PoolChoice
from ._errors import shown
from ._iterators import GreenIterator
from ._policy import Timeouts
from ._proxycalls import Block, MethodOptions, ProxyCall, block_around, block_begins, block_ends
from ._stream import Stream
from ._worker import PoolWorker
from ._wrapping import Decorated, behaviour_of, is_async

_log = Logger(namespace="greendefer")

_DATA = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    bytearray,
    memoryview,
    tuple,
    list,
    dict,
    set,
    frozenset,
    range,
    type,
    enum.Enum,
    BaseException,
)
"""What is never live, whatever methods it has."""


@dataclass(frozen=True)
class Rules:
    """What a proxy, and all that come out of it, wrap; and how each method is called."""

    default: MethodOptions
    methods: Mapping[str, MethodOptions]
    results: Callable[[Any], object] | None
    result_types: tuple[type, ...]
    properties: frozenset[str]
    plain_names: frozenset[str]
    plain_types: tuple[type, ...]
    given: dict[str, Any] = field(compare=False)
    """The options of :func:`green_proxy`, for pickling."""

    def options_of(self, name: str) -> MethodOptions:
        return self.methods.get(name, self.default)

    def asked_for(self, value: Any) -> bool:
        """Has the author asked for a proxy of `value`?"""
        if isinstance(value, self.plain_types):
            return False
        if isinstance(value, self.result_types):
            return True
        return self.results is not None and bool(self.results(value))

    def outgoing(
        self,
        value: Any,
        scope: ProxyScope,
        options: MethodOptions | None = None,
        pool: Pool | None = None,
    ) -> Any:
        """`value` as it leaves an iterator, or a method that has `options` and ran on `pool`:
        proxied, if it is live."""
        if _is_ours(value):
            return value
        kind = type(value)
        if self.asked_for(value) or (
            (
                hasattr(kind, "__next__")
                or (hasattr(kind, "__enter__") and hasattr(kind, "__exit__"))
            )
            and not isinstance(value, (*_DATA, *self.plain_types))
        ):
            if kind is GeneratorType:
                return scope.iterator(value, options, pool=pool)
            return proxy(value, self, scope)
        return value

    def entered(self, value: Any, scope: ProxyScope) -> Any:
        """`value` as ``__enter__`` returned it: proxied, unless it is data."""
        if _is_ours(value) or isinstance(value, self.plain_types):
            return value
        if isinstance(value, _DATA) and not self.asked_for(value):
            return value
        return proxy(value, self, scope)

    def attribute(self, owner: Any, name: str, value: Any, scope: ProxyScope) -> Any:
        """`value` as an attribute: methods are wrapped, the others only if that was asked for."""
        if _is_ours(value) or behaviour_of(value) is not None:
            return value
        if isinstance(value, type):
            if self.asked_for(value) or (
                isinstance(owner, ModuleType)
                and not issubclass(value, (BaseException, enum.Enum, *self.plain_types))
            ):
                return proxy(value, self, scope)
            return value
        if inspect.isroutine(value) or not self.asked_for(value):
            if not callable(value) or isinstance(value, self.plain_types) or is_async(value):
                return value
            return Decorated(value, Method(self, self.options_of(name), scope, owner).wrapper)
        return proxy(value, self, scope)


def _is_ours(value: Any) -> bool:
    return isinstance(value, (Proxy, GreenIterator, Deferred))


class ProxyScope:
    """Where calls run: on whatever pool their options say, or on one worker that was entered.

    :ivar worker: that worker.
    """

    __slots__ = ("rules", "worker")

    def __init__(self, rules: Rules, worker: PoolWorker | None = None) -> None:
        self.rules: Rules = rules
        self.worker: PoolWorker | None = worker

    def here(self, owner: Any) -> ProxyScope:
        """Where calls on `owner` run that are made by the current code."""
        if self.worker is None:
            block = block_around(owner)
            if block is not None:
                return ProxyScope(self.rules, block.worker)
        return self

    def outgoing(
        self, value: Any, options: MethodOptions | None = None, pool: Pool | None = None
    ) -> Any:
        return self.rules.outgoing(value, self, options, pool)

    def bare(self, value: Any) -> Any:
        if isinstance(value, Proxy) and value._self_rules is self.rules:
            return value.__wrapped__
        return value

    def entered(self, value: Any, worker: PoolWorker, options: MethodOptions) -> Any:
        scope = ProxyScope(self.rules, worker)
        if type(value) is GeneratorType:
            return scope.iterator(value, options, closes=False)
        return self.rules.entered(value, scope)

    def iterator(
        self,
        iterable: Any,
        options: MethodOptions | None = None,
        closes: bool = True,
        pool: Pool | None = None,
    ) -> GreenIterator[Any]:
        """An iteration over an object that is there."""
        options = options or self.rules.default
        pool = pool or self.worker or options.choose(iterable, iterable)
        name = type(iterable).__qualname__
        return self.stream(pool, lambda: iterable, name, options, closes)

    def stream(
        self,
        pool: Pool,
        open_source: Callable[[], Iterable[Any]],
        name: str,
        options: MethodOptions,
        closes: bool = True,
    ) -> GreenIterator[Any]:
        return GreenIterator(
            Stream(
                pool, open_source, name, options.timeouts, options.prefetch, self.outgoing, closes
            )
        )


class Method(Behaviour):
    """What a method of a proxied object does when it is called."""

    decorator = "green_proxy"

    def __init__(self, rules: Rules, options: MethodOptions, scope: ProxyScope, owner: Any) -> None:
        self._rules = rules
        self._options = options
        self._place = scope
        self._owner = owner

    @property
    def options(self) -> dict[str, Any]:
        return self._options.options

    def with_options(self, options: dict[str, Any]) -> Method:
        return Method(self._rules, MethodOptions(**options), self._place, self._owner)

    def wrapper(
        self,
        wrapped: Callable[..., Any],
        instance: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> ProxyCall:
        scope = self._place.here(self._owner)
        pool = scope.worker or self._options.choose(wrapped, instance)
        return ProxyCall(scope, self._options, pool, wrapped, args, kwargs)


if TYPE_CHECKING:
    _ObjectProxy = wrapt.ObjectProxy[Any]
else:
    _ObjectProxy = wrapt.ObjectProxy


class Proxy(_ObjectProxy):
    """A transparent proxy; see :func:`green_proxy`."""

    def __init__(self, obj: Any, rules: Rules, scope: ProxyScope) -> None:
        super().__init__(obj)
        self._self_rules = rules
        self._self_place = scope
        self._self_blocks: list[Block] = []

    def __getattr__(self, name: str) -> Any:
        obj = self.__wrapped__
        rules: Rules = self._self_rules
        if name in rules.properties:
            method = Method(rules, rules.options_of(name), self._self_place, obj)
            return method.wrapper(getattr, obj, (obj, name), {})
        value = getattr(obj, name)
        if name.startswith("_") or name in rules.plain_names:
            return value
        return rules.attribute(obj, name, value, self._self_place)

    def __repr__(self) -> str:
        return f"<green_proxy of {self.__wrapped__!r}>"

    def __dir__(self) -> list[str]:
        return dir(self.__wrapped__)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self.__wrapped__)

    def __subclasscheck__(self, subclass: Any) -> bool:
        return issubclass(getattr(subclass, "__wrapped__", subclass), self.__wrapped__)

    # What would block, where it is called.

    def __iter__(self) -> Any:
        raise TypeError(f"{self!r} may block: use `async for`")

    __next__ = __iter__

    def __enter__(self) -> Any:
        raise TypeError(f"{self!r} may block: use `async with`")

    def __exit__(self, *exc_info: object) -> None:
        raise TypeError(f"{self!r} may block: use `async with`")

    # ... and what to use instead.

    def __aiter__(self) -> GreenIterator[Any]:
        obj, scope = self.__wrapped__, self._self_place
        return scope.here(obj).iterator(obj, closes=False)

    async def __aenter__(self) -> Any:
        obj, options = self.__wrapped__, self._self_rules.default
        scope = self._self_place.here(obj)
        pool = scope.worker or options.choose(obj, obj)
        block = Block(scope, pool, lambda: obj, type(obj).__qualname__, options)
        value = await block.enter()
        self._self_blocks.append(block)
        block_begins(obj, block)
        return value

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        blocks: list[Block] = self._self_blocks
        block = block_around(self.__wrapped__)
        if block not in blocks:
            block = blocks[-1]  # entered elsewhere: by a fixture, say
        assert block is not None
        blocks.remove(block)
        block_ends(block)
        return await block.exit(exc)

    # Copies.

    def __copy__(self) -> Any:
        return proxy(copy.copy(self.__wrapped__), self._self_rules, self._self_place)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return proxy(copy.deepcopy(self.__wrapped__, memo), self._self_rules, self._self_place)

    def __reduce_ex__(self, protocol: Any) -> Any:
        obj, given = self.__wrapped__, self._self_rules.given
        options = [given, *given["methods"].values()]
        if self._self_place.worker is not None or any(
            isinstance(each.get("pool"), Pool) for each in options
        ):
            raise TypeError(
                f"{self!r} has a pool, which can't be pickled: give pool= as a function of a "
                "module that returns it (it is called with the instance)"
            )
        if isinstance(obj, ModuleType):
            return _proxy_of_module, (obj.__name__, given)
        return _proxy_again, (obj, given)


class CallableProxy(Proxy):
    """A proxy of what can be called: a class, which becomes a factory of proxies, for instance."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> ProxyCall:
        obj, rules = self.__wrapped__, self._self_rules
        method = Method(rules, rules.options_of("__call__"), self._self_place, obj)
        return method.wrapper(obj, None if isinstance(obj, type) else obj, args, kwargs)


def proxy(obj: Any, rules: Rules, scope: ProxyScope) -> Proxy:
    """A proxy of `obj`. If that is a class, what it makes is proxied too."""
    if isinstance(obj, type):
        rules = replace(rules, result_types=(*rules.result_types, obj))
        scope = ProxyScope(rules, scope.worker)
    return (CallableProxy if callable(obj) else Proxy)(obj, rules, scope)


def _proxy_of_module(name: str, given: dict[str, Any]) -> Any:
    return green_proxy(import_module(name), **given)


def _proxy_again(obj: Any, given: dict[str, Any]) -> Any:
    return green_proxy(obj, **given)


def green_proxy(
    obj: Any,
    *,
    pool: PoolChoice = None,
    timeout: float | Timeouts | None = None,
    results: type | tuple[type, ...] | Callable[[Any], object] | None = None,
    properties: Iterable[str] = (),
    plain: Iterable[str | type] = (),
    methods: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """A transparent proxy of a whole client object, whose methods return Deferreds.

    ::

        s3 = green_proxy(boto3.client("s3"), pool=aws, timeout=30,
                         methods={"upload_file": {"timeout": 600}})
        await s3.put_object(Bucket="b", Key="k", Body=b"...")

        db = green_proxy(engine, pool=connections)
        async with db.begin() as connection:             # one worker, from here
            async for row in connection.execute(query):  # there, too
                ...                                      # to here

    - A **method** returns a Deferred. It begins when it is awaited, or else at the reactor's next
      turn, in the order of the calls. :func:`with_options` works on it.
    - ``async with proxy.method(...) as x``, or ``async with proxy as x``, enters what the method
      returns, or the object: the method, ``__enter__``, all calls on `x` (and on what these
      return), and ``__exit__`` run on one worker, which has one slot of the pool. When an
      exception leaves the block, a call that still runs there is killed first. `x` is a proxy
      unless it is data (a number, a string, a list...).
    - ``async for item in proxy.method(...)``, or ``async for item in proxy``: as
      :func:`green_iterator`, which says what becomes of the source when the consumer stops.
      ``async with proxy.method(...) as items`` over an iterator closes it when the block is left.
    - A **result** is as it is, unless it is live: an iterator, or a context manager. These are
      proxied in turn (a generator becomes a :class:`GreenIterator`). `results` adds others.
    - **Attributes** that are no methods are as they are. So are names with an underscore in
      front, ``repr()``'s inside, ``isinstance()``, ``==``, ``hash()``, ``dir()``, setting
      attributes, and operators such as ``proxy[key]``, which run where they are written. Plain
      ``for`` and ``with`` raise TypeError.
    - On a **class** it makes a factory: calling it returns a Deferred of a proxied instance. On a
      **module**, its functions are methods, and its classes factories, but for exceptions and
      enumerations.

    It pickles and copies as a proxy of the same object with the same options.

    :param obj: what blocks.
    :param pool: where calls run: a pool with workers, or a callable that gets the instance and
        returns one. ``None`` is the default pool of 100.
    :param timeout: seconds for each call, each item, each end of an ``async with``; or a
        :class:`Timeouts`, whose `queued` is no limit of leaving a block: that has its slot.
    :param results: which other results, items and attributes are proxied, sub-clients for
        instance: a type, a tuple of types, or what is called with each and returns true.
    :param properties: names of attributes whose reading does I/O: ``await proxy.name``.
    :param plain: what is left alone: names of methods, which then run where they are called; and
        types, whose instances are never proxied.
    :param methods: options of single methods, by name: `pool`, `timeout`, `on_cancel` as those of
        :func:`green_deferred`, and `prefetch` as that of :func:`green_iterator`. They hold for
        proxied results, too.
    :returns: the proxy. Its type is ``Any``: annotate the variable with a Protocol of your own.
    :raises TypeError: an option has a wrong type, or there is no such option.
    :raises ValueError: an option has a value that is not allowed.
    """
    if isinstance(obj, Proxy):
        obj = obj.__wrapped__
    if methods is not None and not isinstance(methods, Mapping):
        raise TypeError(
            "green_proxy(methods=...) must be a mapping of names to options, or None, not "
            f"{shown(methods)}"
        )
    given = {}
    for name, each in (methods or {}).items():
        if not isinstance(each, Mapping):
            raise TypeError(
                f"green_proxy(methods={{{shown(name)}: ...}}) must be a mapping of options, not "
                f"{shown(each)}"
            )
        given[name] = dict(each)
    plain = _several("plain", "names and types", (str, type), plain)
    properties = frozenset(_several("properties", "names", (str,), properties))
    types = (results,) if isinstance(results, type) else results
    is_tuple = isinstance(types, tuple) and all(isinstance(each, type) for each in types)
    if types is not None and not is_tuple and not callable(types):
        raise TypeError(
            "green_proxy(results=...) must be a type, a tuple of types, a callable or None, "
            f"not {shown(results)}"
        )
    general = {"pool": pool, "timeout": timeout}
    default = MethodOptions(pool, timeout)
    options = {}
    for name, each in given.items():
        for option in each:
            if option not in default.options:
                raise TypeError(
                    f"methods={{{shown(name)}: ...}}: there is no option {shown(option)}; there "
                    f"are {', '.join(default.options)}"
                )
        try:
            options[name] = MethodOptions(**{**general, **each})
        except (TypeError, ValueError) as e:
            raise type(e)(f"methods={{{shown(name)}: ...}}: {e}") from None
    rules = Rules(
        default=default,
        methods=options,
        results=None if types is None or isinstance(types, tuple) else types,
        result_types=types if isinstance(types, tuple) else (),
        properties=properties,
        plain_names=frozenset(each for each in plain if isinstance(each, str)),
        plain_types=tuple(each for each in plain if isinstance(each, type)),
        given={
            **general,
            "results": results,
            "properties": properties,
            "plain": plain,
            "methods": given,
        },
    )
    return proxy(obj, rules, ProxyScope(rules))


def _several(
    what: str, kinds: str, allowed: tuple[type, ...], value: Iterable[Any]
) -> tuple[Any, ...]:
    """`value` as a tuple; a single one counts as one of them."""
    try:
        several = (value,) if isinstance(value, allowed) else tuple(value)
    except TypeError:
        several = (None,)
    if not all(isinstance(each, allowed) for each in several):
        raise TypeError(
            f"green_proxy({what}=...) must be an iterable of {kinds}, not {shown(value)}"
        )
    return several
