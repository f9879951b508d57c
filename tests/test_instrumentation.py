"""Hooks: what they are told of a call, at each of its ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from gevent.event import Event
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import Clock

from greendefer import (
    GreenPool,
    green_deferred,
    green_iterator,
    green_proxy,
    wait_for_deferred,
    with_options,
)
from greendefer.instrumentation import (
    CallDetails,
    LoggingHook,
    PrometheusHook,
    StructlogHook,
    get_hooks,
    set_hooks,
)
from greendefer.testing import ClockPool, InlinePool


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def submitted(self, call: CallDetails) -> None:
        self.seen.append(("submitted", call.function, call.pool))

    def started(self, call: CallDetails, *, queued: float) -> None:
        assert queued >= 0
        self.seen.append(("started",))

    def ended(self, call: CallDetails, *, how: str, queued: float, running: Any) -> None:
        assert queued >= 0
        assert running is None or running >= 0
        self.seen.append(("ended", how, running is not None))

    def rejected(self, call: CallDetails) -> None:
        self.seen.append(("rejected",))


@pytest.fixture(autouse=True)
def no_hooks_afterwards() -> Iterator[None]:
    yield
    set_hooks([])


@pytest.fixture
def seen() -> list[tuple[Any, ...]]:
    recorder = Recorder()
    set_hooks([recorder])
    assert get_hooks() == (recorder,)
    return recorder.seen


def raises() -> None:
    raise KeyError


def quiet(d: Deferred[Any]) -> Deferred[Any]:
    return d.addErrback(lambda _: None)


def test_what_a_call_goes_through(seen: Any) -> None:
    assert wait_for_deferred(GreenPool(name="p").submit(len, "four")) == 4
    assert seen == [("submitted", "len", "p"), ("started",), ("ended", "completed", True)]


def test_names_are_those_that_the_caller_knows(seen: Any) -> None:
    """Of an iteration, a worker, and both ends of ``async with`` over a proxy."""

    class Client:
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *exc_info: object) -> None:
            pass

    @green_iterator(pool=InlinePool())
    def lines() -> Iterator[str]:
        yield "line"

    async def main() -> None:
        async with InlinePool().worker():
            pass
        async for _ in lines():
            pass
        async with green_proxy(Client(), pool=InlinePool()):
            pass

    ensureDeferred(main()).addErrback(pytest.fail)
    names = [each[1].rpartition(".")[2] for each in seen if each[0] == "submitted"]
    assert names == ["worker()", "lines", "Client", "__enter__", "__exit__"]


def test_a_failure(seen: Any) -> None:
    quiet(InlinePool().submit(raises))
    assert seen[1:] == [("started",), ("ended", "failed", True)]


def test_cancelled_while_it_runs_and_while_it_is_queued(seen: Any) -> None:
    pool = ClockPool(Clock(), 1)
    running, queued = quiet(pool.submit(len, "")), quiet(pool.submit(len, ""))
    pool.step(takes=1)
    queued.cancel()
    running.cancel()
    assert seen[2:] == [
        ("started",),
        ("ended", "cancelled", False),
        ("ended", "cancelled", True),
    ]


def test_cancelled_while_a_hook_gives_way(gate: Any, in_reactor: Any) -> None:
    """Which none should; but a handler of its log may. The call ends all the same."""
    begun, goes_on = Event(), Event()

    class GivesWay(Recorder):
        def started(self, call: CallDetails, *, queued: float) -> None:
            begun.set()
            goes_on.wait()

    set_hooks([GivesWay()])
    pool = GreenPool(1)
    call = pool.submit(gate)
    assert begun.wait(20)
    in_reactor(call.cancel)
    with pytest.raises(CancelledError):
        wait_for_deferred(call)
    in_reactor(lambda: None)  # who kills it has not found it
    goes_on.set()
    wait_for_deferred(pool._when_idle(), 20)
    assert not gate.entered.is_set()


def test_out_of_time(seen: Any) -> None:
    clock = Clock()
    quiet(with_options(green_deferred(len), pool=ClockPool(clock), timeout=1)(""))
    clock.advance(1)
    assert seen[1:] == [("ended", "timed_out", False)]


def test_rejected_because_it_is_full_or_closed(seen: Any) -> None:
    pool = ClockPool(Clock(), 1, max_queued=1)
    for _ in range(3):
        quiet(pool.submit(len, ""))
    assert seen[3:] == [("rejected",)]
    pool.close()
    assert seen[4:] == [("rejected",)]
    quiet(pool.submit(len, ""))
    assert seen[5:] == [("submitted", "len", "clock"), ("rejected",)]


def test_a_hook_that_fails_is_logged(logged: Any, seen: Any) -> None:
    class Broken(Recorder):
        def submitted(self, call: CallDetails) -> None:
            raise RuntimeError("the hook")

    after = Recorder()
    set_hooks([Broken(), after])
    got: list[int] = []
    InlinePool().submit(len, "four").addCallback(got.append)
    assert got == [4]
    assert len(after.seen) == 3
    assert "the hook" in str([e["log_failure"] for e in logged if e["isError"]])
    logged.clear()


def test_what_is_no_hook(seen: Any) -> None:
    with pytest.raises(TypeError, match=r"needs a list of hooks, not <.*LoggingHook"):
        set_hooks(LoggingHook())  # type: ignore[arg-type]

    class Half:
        def submitted(self, call: CallDetails) -> None:
            pass

        rejected = submitted

    with pytest.raises(TypeError, match=r"Half .* has no method started, ended; a hook has"):
        set_hooks([Recorder(), Half()])  # type: ignore[list-item]
    InlinePool().submit(len, "four")
    assert seen  # those from before are told still


def test_logging(caplog: pytest.LogCaptureFixture) -> None:
    set_hooks([LoggingHook()])
    with caplog.at_level(logging.DEBUG, "greendefer"):
        InlinePool("x").submit(len, "")
        quiet(InlinePool("x").submit(raises))
        pool = ClockPool(Clock(), 1, max_queued=0, name="y")
        pool.submit(len, "")
        quiet(pool.submit(len, ""))
    by_level = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert ("DEBUG", "len submitted to x") in by_level
    assert ("WARNING", "len rejected by y") in by_level
    assert any(
        level == "WARNING" and text.startswith("raises failed on x") for level, text in by_level
    )


def test_structlog() -> None:
    pytest.importorskip("structlog")
    from structlog.testing import capture_logs

    with capture_logs() as events:
        set_hooks([StructlogHook()])
        InlinePool("x").submit(len, "")
        pool = ClockPool(Clock(), 1, max_queued=0)
        pool.submit(len, "")
        quiet(pool.submit(len, ""))
    names = [event["event"] for event in events]
    assert names[:3] == ["call submitted", "call started", "call ended"]
    assert names[-1] == "call rejected"
    assert events[2]["how"] == "completed"


def test_prometheus() -> None:
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    set_hooks([PrometheusHook(registry)])
    InlinePool("x").submit(len, "")
    quiet(InlinePool("x").submit(raises))
    pool = ClockPool(Clock(), 1, max_queued=0, name="y")
    pool.submit(len, "")
    quiet(pool.submit(len, ""))

    def total(**labels: str) -> Any:
        return registry.get_sample_value("greendefer_calls_total", labels)

    assert total(pool="x", function="len", outcome="completed") == 1
    assert total(pool="x", function="raises", outcome="failed") == 1
    assert total(pool="y", function="len", outcome="rejected") == 1
    assert (
        registry.get_sample_value(
            "greendefer_call_running_seconds_count", {"pool": "x", "function": "len"}
        )
        == 1
    )


def test_hooks_with_a_logger_and_calls_that_never_ran(result: Any) -> None:
    prometheus = pytest.importorskip("prometheus_client")

    class Lines:
        def __init__(self) -> None:
            self.lines: list[tuple[str, Any]] = []

        def debug(self, event: str, **keys: Any) -> None:
            self.lines.append((event, keys.get("how")))

        warning = debug

    registry = prometheus.CollectorRegistry()
    lines = Lines()
    set_hooks([StructlogHook(lines), PrometheusHook(registry)])
    try:
        pool = ClockPool(Clock(), 1, name="z")
        pool.submit(len, "")
        queued = pool.submit(len, "")
        queued.addErrback(lambda failure: failure.trap(CancelledError))
        queued.cancel()
    finally:
        set_hooks([])
    labels = {"pool": "z", "function": "len"}
    assert lines.lines[-1] == ("call ended", "cancelled")
    count = registry.get_sample_value
    assert count("greendefer_calls_total", {**labels, "outcome": "cancelled"}) == 1
    assert count("greendefer_call_running_seconds_count", labels) is None
