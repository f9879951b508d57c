"""What type checkers must see. This file is only checked, never run: by mypy --strict and by
pyright, both with warnings for ignores that nothing needs. So a wrong use that stops being an
error fails, too."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from typing_extensions import assert_type

from greendefer import (
    BlockingIterator,
    GreenIterator,
    GreenPool,
    NativeThreadPool,
    Pool,
    PoolStats,
    Timeouts,
    blocking_from_greenlet,
    defer_to_greenlet,
    green_deferred,
    green_iterator,
    green_proxy,
    wait_for_deferred,
    with_options,
)
from greendefer.testing import ClockPool, InlinePool

pool = GreenPool(5)


# Any pool


def takes_any(pool: Pool) -> Deferred[int]:
    return pool.submit(len, "four")


takes_any(pool)
takes_any(NativeThreadPool(1))
takes_any(InlinePool())
takes_any(ClockPool(Clock()))

# green_deferred: functions


@green_deferred
def bare(a: int, b: str = "") -> bytes:
    return b""


@green_deferred(pool=pool, timeout=5, on_cancel="abandon")
def with_arguments(a: int, *, b: str) -> bytes:
    return b""


@green_deferred
def chained(a: int) -> Deferred[bytes]:
    raise NotImplementedError


@green_deferred(timeout=Timeouts(running=5))
def chained_with_arguments(a: int) -> Deferred[bytes]:
    raise NotImplementedError


@green_deferred()
def nothing() -> None: ...


assert_type(bare(1), Deferred[bytes])
assert_type(bare(1, b="x"), Deferred[bytes])
assert_type(with_arguments(1, b="x"), Deferred[bytes])
assert_type(chained(1), Deferred[bytes])
assert_type(chained_with_arguments(1), Deferred[bytes])
assert_type(nothing(), Deferred[None])
assert_type(green_deferred(len)([1]), Deferred[int])
assert_type(green_deferred(len, pool=pool, timeout=5, on_cancel="abandon")([1]), Deferred[int])
green_deferred(len, tiemout=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
assert_type(defer_to_greenlet(len, "four"), Deferred[int])

bare("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bare()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
bare(1, c=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
with_arguments(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
chained("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
defer_to_greenlet(len)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
defer_to_greenlet(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
wrong: Deferred[str] = bare(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
not_awaited: bytes = bare(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
green_deferred(5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
green_deferred(tiemout=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
green_deferred(timeout="5")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
green_deferred(on_cancel="explode")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
green_deferred(pool=5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]

# ... methods, in either decorator order


class Client:
    pool = GreenPool(5)

    @green_deferred
    def method(self, key: str) -> int:
        return 1

    @green_deferred(pool=lambda self: self.pool)
    def method_with_arguments(self, key: str) -> int:
        return 1

    @classmethod
    @green_deferred
    def class_inside(cls, key: str) -> int:
        return 1

    @green_deferred
    @classmethod
    def class_outside(cls, key: str) -> int:
        return 1

    @green_deferred(timeout=1)
    @classmethod
    def class_outside_with_arguments(cls, key: str) -> int:
        return 1

    @green_deferred
    @classmethod
    def class_outside_chained(cls, key: str) -> Deferred[int]:
        raise NotImplementedError

    @staticmethod
    @green_deferred
    def static_inside(key: str) -> int:
        return 1

    @green_deferred
    @staticmethod
    def static_outside(key: str) -> int:
        return 1

    @green_deferred(timeout=1)
    @staticmethod
    def static_outside_with_arguments(key: str) -> int:
        return 1

    @green_iterator
    def items(self, n: int) -> Iterator[str]:
        yield ""

    @classmethod
    @green_iterator(prefetch=5)
    def class_items(cls, n: int) -> list[str]:
        return []

    @green_iterator
    @staticmethod
    def static_items(n: int) -> Iterable[str]:
        return []

    @green_iterator
    @classmethod
    def class_items_outside(cls, n: int) -> Iterable[str]:
        return []

    @blocking_from_greenlet
    async def lookup(self, key: str) -> int:
        return await self.method(key)

    @classmethod
    @blocking_from_greenlet(timeout=5)
    def lookup_class(cls, key: str) -> Deferred[int]:
        return cls.class_inside(key)

    @blocking_from_greenlet
    @classmethod
    def lookup_class_outside(cls, key: str) -> Deferred[int]:
        return cls.class_inside(key)

    @blocking_from_greenlet
    @staticmethod
    async def lookup_static(key: str) -> int:
        return 1

    @blocking_from_greenlet
    async def events(self, n: int) -> AsyncIterator[str]:
        yield ""


client = Client()
assert_type(client.method("k"), Deferred[int])
assert_type(Client.method(client, "k"), Deferred[int])
assert_type(client.method_with_arguments("k"), Deferred[int])
assert_type(client.class_inside("k"), Deferred[int])
assert_type(Client.class_inside("k"), Deferred[int])
assert_type(client.class_outside("k"), Deferred[int])
assert_type(Client.class_outside("k"), Deferred[int])
assert_type(Client.class_outside_with_arguments("k"), Deferred[int])
assert_type(Client.class_outside_chained("k"), Deferred[int])
assert_type(client.static_inside("k"), Deferred[int])
assert_type(Client.static_inside("k"), Deferred[int])
assert_type(client.static_outside("k"), Deferred[int])
assert_type(Client.static_outside("k"), Deferred[int])
assert_type(client.static_outside_with_arguments("k"), Deferred[int])
assert_type(client.items(1), GreenIterator[str])
assert_type(Client.class_items(1), GreenIterator[str])
assert_type(client.static_items(1), GreenIterator[str])
assert_type(Client.class_items_outside(1), GreenIterator[str])
assert_type(client.lookup("k"), int)
assert_type(Client.lookup_class("k"), int)
assert_type(Client.lookup_class_outside("k"), int)
assert_type(client.lookup_static("k"), int)
assert_type(client.events(1), BlockingIterator[str])

client.method(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
client.method()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Client.class_inside(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Client.class_outside(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Client.static_outside(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
client.static_inside()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
client.items("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
client.lookup(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# with_options keeps the signature

assert_type(with_options(bare, timeout=1)(1), Deferred[bytes])
assert_type(with_options(client.method, pool=pool, on_cancel="kill")("k"), Deferred[int])
assert_type(with_options(Client.class_inside, timeout=None)("k"), Deferred[int])
assert_type(with_options(Client.static_outside, timeout=1)("k"), Deferred[int])
assert_type(with_options(client.items, prefetch=5, timeout=1)(1), GreenIterator[str])
assert_type(with_options(client.lookup, timeout=1)("k"), int)
same: Callable[[str], Deferred[int]] = with_options(client.method, timeout=1)

with_options(bare, timeout=1)("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
with_options(client.method, timeout=1)(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
with_options(bare, tiemout=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
with_options(bare, prefetch=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
with_options(5, timeout=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]

# green_iterator


@green_iterator
def numbers(n: int) -> Iterator[int]:
    yield 1


@green_iterator(pool=pool, timeout=5, prefetch=10)
def numbers_with_arguments(n: int) -> list[int]:
    return []


async def iterate() -> None:
    assert_type(numbers(1), GreenIterator[int])
    async for number in numbers(1):
        assert_type(number, int)
    async with numbers_with_arguments(1) as it:
        assert_type(it, GreenIterator[int])
        assert_type(await it.__anext__(), int)
        assert_type(it.aclose(), Deferred[None])
    assert_type(await bare(1), bytes)
    ai: AsyncIterator[int] = numbers(1)
    print(ai)
    numbers("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for _ in numbers(1):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
        pass


@green_iterator  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUntypedFunctionDecorator]
def no_iterable() -> int:
    return 1


green_iterator(prefetch="5")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]

# blocking_from_greenlet


@blocking_from_greenlet
def from_deferred(a: int) -> Deferred[str]:
    raise NotImplementedError


@blocking_from_greenlet
async def from_coroutine(a: int) -> str:
    return ""


@blocking_from_greenlet(timeout=5)
async def with_timeout(a: int) -> str:
    return ""


@blocking_from_greenlet(timeout=5)
def deferred_with_timeout(a: int) -> Deferred[str]:
    raise NotImplementedError


@blocking_from_greenlet
def plain(a: int) -> str:
    return ""


@blocking_from_greenlet
async def generator(a: int) -> AsyncIterator[str]:
    yield ""


@blocking_from_greenlet(timeout=5)
async def generator_with_timeout(a: int) -> AsyncIterator[str]:
    yield ""


@blocking_from_greenlet
@asynccontextmanager
async def manager(a: int) -> AsyncGenerator[str, None]:
    yield ""


assert_type(from_deferred(1), str)
assert_type(from_coroutine(1), str)
assert_type(with_timeout(1), str)
assert_type(deferred_with_timeout(1), str)
assert_type(plain(1), str)
assert_type(generator(1), BlockingIterator[str])
assert_type(generator_with_timeout(1), BlockingIterator[str])
assert_type(manager(1), AbstractContextManager[str, "bool | None"])
for text in generator(1):
    assert_type(text, str)
with generator(1) as texts:
    assert_type(next(texts), str)
with manager(1) as entered:
    assert_type(entered, str)
there_and_back: Callable[[int], Deferred[str]] = green_deferred(from_deferred)
assert_type(blocking_from_greenlet(bare)(1), bytes)

from_deferred("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
from_coroutine()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
generator("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
manager("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
blocking_from_greenlet(timeout="5")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
blocking_from_greenlet(pool=pool)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]

# Waiting, and pools

assert_type(wait_for_deferred(bare(1)), bytes)
assert_type(pool.submit(len, "four"), Deferred[int])
assert_type(pool.stats(), PoolStats)
assert_type(pool.close(grace=5), Deferred[None])
wait_for_deferred(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
pool.submit(len, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def worker() -> None:
    async with pool.worker() as w:
        assert_type(await w.submit(len, "four"), int)


# green_proxy is Any, or the author's Protocol


class KeyValue(Protocol):
    def get(self, key: str) -> Deferred[bytes]: ...
    def scan(self) -> GreenIterator[str]: ...


store: KeyValue = green_proxy(object(), pool=pool, methods={"scan": {"prefetch": 10}})
assert_type(store.get("k"), Deferred[bytes])
assert_type(store.scan(), GreenIterator[str])
store.get(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
green_proxy(object(), tiemout=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
