"""``GreenPool(around=...)``: what each call is made inside of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any

import gevent
import pytest
from greenlet import GreenletExit
from twisted.internet.defer import CancelledError, Deferred

import greendefer
from greendefer import CallTimeout, ExecutorPool, GreenPool, PoolClosed

Hook = Callable[[], AbstractContextManager[None]]


class Diary:
    """What happens around calls; a gate may be put at either end."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self.greenlets: set[Any] = set()
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.greenlets.add(gevent.getcurrent())
        self.lines.append("enter")
        try:
            self.before()
        except BaseException as e:
            self.lines.append(f"not entered: {type(e).__mro__[1].__name__}")
            raise
        try:
            yield
        except BaseException as e:
            ours = isinstance(e, GreenletExit)
            self.lines.append(GreenletExit if ours else type(e))
            raise
        finally:
            self.after()
            self.lines.append("left")

    def note(self, line: Any) -> Any:
        self.greenlets.add(gevent.getcurrent())
        self.lines.append(line)
        return line


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
def pool(diary: Diary) -> GreenPool:
    return GreenPool(1, around=diary)


def test_it_is_around_each_call_in_its_greenlet(pool: GreenPool, diary: Diary) -> None:
    for _ in range(2):
        assert greendefer.wait_for_deferred(pool.submit(diary.note, "call")) == "call"
    assert diary.lines == ["enter", "call", "left"] * 2
    assert len(diary.greenlets) == 1
    assert gevent.getcurrent() not in diary.greenlets


def test_it_is_in_the_calls_context(reactor: Any) -> None:
    """What it sets there the call sees, and the caller does not."""
    var: ContextVar[str] = ContextVar("var", default="nobody's")

    @contextmanager
    def around() -> Iterator[None]:
        var.set(f"set around {var.get()}")
        yield

    pool = GreenPool(1, around=around)
    var.set("the caller's")
    assert greendefer.wait_for_deferred(pool.submit(var.get)) == "set around the caller's"
    assert var.get() == "the caller's"


def test_decorated_calls_and_arguments(pool: GreenPool, diary: Diary) -> None:
    call = greendefer.green_deferred(pool=pool)(dict)
    assert greendefer.wait_for_deferred(call([("a", 1)], b=2)) == {"a": 1, "b": 2}
    assert diary.lines == ["enter", "left"]


def test_it_sees_what_the_call_raises(pool: GreenPool, diary: Diary) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        greendefer.wait_for_deferred(pool.submit(lambda: 1 // 0))
    assert diary.lines == ["enter", ZeroDivisionError, "left"]
    assert "1 // 0" in str(raised.traceback[-1].statement)


def test_a_call_that_is_killed(
    pool: GreenPool, diary: Diary, gate: Any, result: Any, stats: Any
) -> None:
    d = pool.submit(gate)
    cancelled = result(d)
    assert gate.entered.wait(10)
    d.cancel()
    assert cancelled.error() is CancelledError
    assert greendefer.wait_for_deferred(pool.submit(diary.note, "next")) == "next"
    assert diary.lines == ["enter", GreenletExit, "left", "enter", "next", "left"]
    assert stats(pool).lingering == 0


def test_a_call_that_is_killed_while_it_enters(
    pool: GreenPool, diary: Diary, gate: Any, result: Any
) -> None:
    """As in a ``with`` statement: what had not been entered is not left."""
    diary.before = gate
    d = pool.submit(diary.note, "call")
    cancelled = result(d)
    assert gate.entered.wait(10)
    d.cancel()
    assert cancelled.error() is CancelledError
    diary.before = lambda: None
    greendefer.wait_for_deferred(pool.submit(diary.note, "next"))
    assert diary.lines == ["enter", "not entered: GreenletExit", "enter", "next", "left"]


@pytest.mark.parametrize("how", ["cancel", "timeout", "close"])
def test_a_call_that_is_killed_while_it_leaves(
    how: str, diary: Diary, gate: Any, result: Any, stats: Any
) -> None:
    """Its Deferred fires, but the cleaning up is done to the end; it holds its slot until then."""
    pool = GreenPool(1, around=diary)
    diary.after = gate
    call = greendefer.green_deferred(
        pool=pool, timeout=greendefer.Timeouts(running=0.01) if how == "timeout" else None
    )(diary.note)
    d = call("call")
    ended = result(d)
    assert gate.entered.wait(10)
    if how == "cancel":
        d.cancel()
    elif how == "close":
        pool.close(grace=0)
    assert (
        ended.error()
        is {
            "cancel": CancelledError,
            "timeout": CallTimeout,
            "close": PoolClosed,
        }[how]
    )
    gevent.sleep(0)  # a kill, if there were one, would have arrived
    gevent.sleep(0)
    assert not gate.ended.is_set()
    assert stats(pool).lingering == 1
    gate.opened.set()
    pool.close()
    assert greendefer.wait_for_deferred(pool.close()) is None
    assert diary.lines == ["enter", "call", "left"]
    assert stats(pool).lingering == 0


def test_killed_once_more_while_it_leaves_because_it_was_killed(
    pool: GreenPool, diary: Diary, gates: Any
) -> None:
    inside, leaving = gates(2)
    diary.after = leaving
    d = pool.submit(inside)
    d.addErrback(lambda _: None)
    assert inside.entered.wait(10)
    d.cancel()
    assert leaving.entered.wait(10)
    pool.close(grace=0)
    gevent.sleep(0)
    gevent.sleep(0)
    assert not leaving.ended.is_set()
    leaving.opened.set()
    greendefer.wait_for_deferred(pool.close())
    assert diary.lines == ["enter", GreenletExit, "left"]


def test_its_own_errors_are_the_calls() -> None:
    ran: list[int] = []

    def around() -> Any:
        raise LookupError("no context")

    with pytest.raises(LookupError, match="no context"):
        greendefer.wait_for_deferred(GreenPool(1, around=around).submit(ran.append, 1))
    with pytest.raises((TypeError, AttributeError)):  # the latter on Python 3.10
        greendefer.wait_for_deferred(GreenPool(1, around=list).submit(ran.append, 1))
    assert ran == []

    @contextmanager
    def leaves_badly() -> Iterator[None]:
        yield
        raise LookupError("could not clean up")

    with pytest.raises(LookupError, match="could not clean up"):
        greendefer.wait_for_deferred(GreenPool(1, around=leaves_badly).submit(ran.append, 2))
    assert ran == [2]


def test_it_may_swallow_what_the_call_raises() -> None:
    pool = GreenPool(1, around=lambda: suppress(ZeroDivisionError))
    assert greendefer.wait_for_deferred(pool.submit(lambda: 1 // 0)) is None


def test_once_around_a_worker(pool: GreenPool, diary: Diary, in_reactor: Any) -> None:
    """``async with pool.worker()``: all of its calls are inside of one."""

    async def use() -> None:
        async with pool.worker() as w:
            await w.submit(diary.note, 1)
            with suppress(ZeroDivisionError):
                await w.submit(lambda: 1 // 0)
            await w.submit(diary.note, 2)

    in_reactor(lambda: Deferred.fromCoroutine(use()))
    assert diary.lines == ["enter", 1, 2, "left"]
    assert len(diary.greenlets) == 1


def test_a_worker_that_an_exception_leaves(
    pool: GreenPool, diary: Diary, gate: Any, in_reactor: Any
) -> None:
    """What is around the worker is told: a transaction, say, must not be committed."""

    async def use() -> None:
        async with pool.worker() as w:
            w.submit(gate).addErrback(lambda _: None)
            await greendefer.defer_to_greenlet(gate.entered.wait, 10)
            raise KeyError("out")

    with pytest.raises(KeyError):
        in_reactor(lambda: Deferred.fromCoroutine(use()))
    greendefer.wait_for_deferred(pool.close())
    assert diary.lines == ["enter", GreenletExit, "left"]


def test_an_idle_worker_that_an_exception_leaves(
    pool: GreenPool, diary: Diary, in_reactor: Any
) -> None:
    async def use() -> None:
        async with pool.worker() as w:
            await w.submit(diary.note, "call")
            raise KeyError("out")

    with pytest.raises(KeyError):
        in_reactor(lambda: Deferred.fromCoroutine(use()))
    greendefer.wait_for_deferred(pool.close())
    assert diary.lines == ["enter", "call", GreenletExit, "left"]


def test_a_worker_whose_entering_fails(in_reactor: Any) -> None:
    def around() -> Any:
        raise LookupError("no context")

    pool = GreenPool(1, around=around)

    async def use() -> None:
        async with pool.worker():
            raise AssertionError("entered")

    with pytest.raises(LookupError, match="no context"):
        in_reactor(lambda: Deferred.fromCoroutine(use()))


def test_what_is_around_a_worker_fails_when_nobody_waits_for_that(
    in_reactor: Callable[..., Any], logged: list[dict[str, Any]]
) -> None:
    """The block has been left, and its result is known; so it is logged."""

    @contextmanager
    def around() -> Iterator[None]:
        yield
        raise ValueError("at the end")

    pool = GreenPool(1, around=around)

    async def main() -> str:
        async with greendefer.green_proxy(nullcontext("entered"), pool=pool) as entered:
            return str(entered)

    assert in_reactor(lambda: Deferred.fromCoroutine(main())) == "entered"
    greendefer.wait_for_deferred(pool.close(), 20)
    (error,) = [each for each in logged if "Leaving" in str(each.get("log_format"))]
    logged.remove(error)
    assert error["log_failure"].type is ValueError


def test_it_can_be_set_later(diary: Diary) -> None:
    pool = GreenPool(1)
    greendefer.wait_for_deferred(pool.submit(diary.note, 1))
    pool.around = diary
    greendefer.wait_for_deferred(pool.submit(diary.note, 2))
    pool.around = None
    greendefer.wait_for_deferred(pool.submit(diary.note, 3))
    assert diary.lines == [1, "enter", 2, "left", 3]


def test_it_must_be_callable() -> None:
    with pytest.raises(TypeError, match=r"GreenPool\(around=\.\.\.\) must be a callable"):
        GreenPool(1, around=suppress(ValueError))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"ExecutorPool\(around=\.\.\.\) must be a callable"):
        ExecutorPool(Executor, 1, around=suppress(ValueError))  # type: ignore[arg-type]


def test_what_it_is_set_to_is_checked_where_it_is_set(pool: GreenPool, diary: Diary) -> None:
    with pytest.raises(TypeError, match=r"GreenPool\.around must be a callable that .*, not 5"):
        pool.around = 5  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"not <contextlib\.suppress .*; it is called for"):
        pool.around = suppress(ValueError)
    assert pool.around is diary
    greendefer.wait_for_deferred(pool.submit(int))
    assert diary.lines == ["enter", "left"]


def test_it_is_not_called_yet() -> None:
    """What a context manager's function returns can be called, but for another purpose."""

    @contextmanager
    def around() -> Iterator[None]:
        yield

    with pytest.raises(TypeError, match=r"called for each call: around=f, not around=f\(\)"):
        GreenPool(1, around=around())  # type: ignore[arg-type]
