"""What seldom happens: branches that no program comes through on a good day."""

from __future__ import annotations

import types
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import gevent
import pytest
from gevent import monkey
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.python import context

import greendefer
from greendefer import GreendeferError, GreenPool, green_deferred
from greendefer.reactor._dispatch import call_with_logger
from greendefer.reactor._stock import native_kind
from greendefer.testing import ClockPool


def test_an_abandoned_call_is_killed_where_its_pool_is_closed_without_grace(
    gate: Any, result: Any
) -> None:
    pool = GreenPool(1)
    d = green_deferred(gate, pool=pool, on_cancel="abandon")()
    cancelled = result(d)
    assert gate.entered.wait(20)
    d.cancel()
    assert cancelled.error() is CancelledError
    assert pool.stats().lingering == 1
    greendefer.wait_for_deferred(pool.close(grace=0), 20)
    assert gate.ended.wait(20)


def test_start_reactor_in_another_thread_than_the_reactors() -> None:
    with pytest.raises(GreendeferError, match="another thread"):
        gevent.get_hub().threadpool.apply(greendefer.start_reactor)


def test_a_greenlet_of_another_threads_hub_can_not_be_waited_for() -> None:
    theirs = gevent.get_hub().threadpool.apply(gevent.Greenlet, (int,))
    with pytest.raises(GreendeferError, match="hub of another thread"):
        greendefer.wait_for_greenlet(theirs)


def test_a_wait_for_a_greenlet_that_is_cancelled_as_that_one_ends(result: Any) -> None:
    g = gevent.spawn(int, "7")
    d = greendefer.wait_for_greenlet(g)
    cancelled = result(d)
    g.join()  # what it returned is on its way to the reactor
    d.cancel()
    assert cancelled.error() is CancelledError
    gevent.sleep(0.01)
    assert len(cancelled.values) == 1


def test_messages_name_the_function_inside_of_a_partial(gate: Any, result: Any) -> None:
    pool = GreenPool(1, max_queued=0)
    running = pool.submit(gate)
    full = result(pool.submit(partial(partial(sorted, [2, 1]), reverse=True)))
    assert full.get().getErrorMessage().startswith("sorted: ")
    gate.opened.set()
    greendefer.wait_for_deferred(running)


def test_a_coroutine_that_would_not_be_closed_is_refused_all_the_same() -> None:
    @types.coroutine
    def pause() -> Generator[None, None, None]:
        yield

    async def stubborn() -> None:
        for _ in range(2):
            try:
                await pause()
            except GeneratorExit:
                pass

    def begun() -> Any:
        coroutine = stubborn()
        coroutine.send(None)
        return coroutine

    with pytest.raises(TypeError, match="is async already"):
        greendefer.wait_for_deferred(GreenPool(1).submit(begun))


def test_a_worker_is_entered_once(in_reactor: Callable[..., Any]) -> None:
    pool = GreenPool(1)

    def twice() -> Any:
        worker = pool.worker()
        worker.open().addErrback(lambda failure: failure.trap(CancelledError))
        with pytest.raises(RuntimeError, match="was entered before"):
            worker.open()
        return worker.leave()

    in_reactor(twice)
    assert pool.stats().running == 0


def test_a_worker_of_a_clock_pool() -> None:
    pool = ClockPool(Clock())
    worker = pool.worker()
    d = worker.submit(int, "7")
    pool.run()
    assert d.result == 7


def test_a_proxy_can_not_be_left_by_a_plain_with() -> None:
    proxy = greendefer.green_proxy(object())
    with pytest.raises(TypeError, match="async with"):
        proxy.__exit__(None, None, None)


class Selectable:
    def logPrefix(self) -> str:
        return "mine"


class AnotherTracker:
    """As whoever calls twisted.python.context.installContextTracker() may have it."""

    def callWithContext(self, ctx: Any, f: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        return f(*args, **kw)

    def getContext(self, key: Any, default: Any = None) -> Any:
        return {} if default is None else default


def test_an_event_under_somebody_elses_context_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "theContextTracker", AnotherTracker())
    monkeypatch.setattr(context, "call", AnotherTracker().callWithContext)
    monkeypatch.setattr(context, "get", AnotherTracker().getContext)
    assert call_with_logger(Selectable(), int, "7") == 7


def test_what_an_event_raises_is_logged_with_its_prefix(logged: list[dict[str, Any]]) -> None:
    call_with_logger(Selectable(), lambda: 1 // 0)
    (error,) = [event for event in logged if event["isError"]]
    logged.remove(error)
    assert error["failure"].check(ZeroDivisionError)
    assert error["system"] == "mine"


def test_a_keyboard_interrupt_is_no_error_of_an_event() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_with_logger(Selectable(), interrupted)


@pytest.mark.parametrize(
    ("has", "kind"), [("epoll", "epoll"), ("kqueue", "kqueue"), ("", "select")]
)
def test_the_native_poller(has: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_original(module: str, name: str) -> Any:
        if name != has:
            raise AttributeError(name)

    monkeypatch.setattr(monkey, "get_original", get_original)
    assert native_kind() == kind
