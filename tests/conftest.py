"""The tests run in the main greenlet, and the reactor in one beside it.

So a test may simply wait: with gevent's own primitives, or with ``wait_for_deferred``. The whole
suite runs twice, unpatched and under ``python -m gevent.monkey --module pytest``.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import greendefer

greendefer.install(os.environ.get("GREENDEFER_TEST_REACTOR", "native"))

import gevent
import pytest
from gevent.event import Event
from programs import GO, PATCH, joined, run_python
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.python import log

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that was told to run this in the background had it so, and our children would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def reactor() -> Iterator[Any]:
    from twisted.internet import reactor

    running = gevent.spawn(reactor.run, installSignalHandlers=False)
    started = Event()
    reactor.callWhenRunning(started.set)
    assert started.wait(10)
    # What was imported stays: the collections after each test need not look at all of it.
    gc.collect()
    gc.freeze()
    yield reactor
    reactor.stop()
    running.join(10)
    assert running.dead


@pytest.fixture
def in_reactor(reactor: Any) -> Callable[..., Any]:
    """Call something in the reactor's greenlet, and wait for its result."""

    def call(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        d: Deferred[Any] = Deferred()
        reactor.callFromThread(lambda: maybeDeferred(f, *args, **kwargs).chainDeferred(d))
        return greendefer.wait_for_deferred(d)

    return call


@pytest.fixture
def wait_a_turn(reactor: Any) -> Callable[[], Deferred[None]]:
    """Returns a Deferred that fires in the reactor's next turn."""
    return lambda: deferLater(reactor, 0)


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[dict[str, Any]]]:
    """What Twisted logs. A test that leaves an error in there fails: take out what you expect."""
    events: list[dict[str, Any]] = []
    log.addObserver(events.append)
    yield events
    gc.collect()  # an unhandled error is logged when its Deferred goes
    log.removeObserver(events.append)
    errors = [event for event in events if event["isError"]]
    assert not errors, "\n".join(log.textFromEventDict(event) or "" for event in errors)


class Gate:
    """A blocking call to order: it says that it runs, and returns when it is told to."""

    def __init__(self) -> None:
        self.entered = Event()
        self.ended = Event()
        self.opened = Event()

    def __call__(self, result: Any = "through") -> Any:
        self.entered.set()
        try:
            self.opened.wait()
        finally:
            self.ended.set()
        if isinstance(result, BaseException):
            raise result
        return result


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def gates() -> Callable[[int], list[Gate]]:
    return lambda n: [Gate() for _ in range(n)]


class Result:
    """Everything that comes out of a Deferred, and the greenlet that it came out in."""

    def __init__(self, d: Deferred[Any]) -> None:
        self.values: list[Any] = []
        self.greenlets: list[Any] = []
        self.fired = Event()
        d.addBoth(self._got)

    def _got(self, value: Any) -> None:
        self.values.append(value)
        self.greenlets.append(gevent.getcurrent())
        self.fired.set()

    def get(self) -> Any:
        assert self.fired.wait(20)
        (value,) = self.values
        return value

    def error(self) -> type[BaseException]:
        return self.get().type


@pytest.fixture
def result() -> type[Result]:
    return Result


def adds_up(pool: greendefer.GreenPool) -> greendefer.PoolStats:
    """The pool's statistics, if they add up."""
    s = pool.stats()
    assert s.submitted == (
        s.running + s.queued + s.completed + s.failed + s.cancelled + s.timed_out + s.rejected
    ), s
    assert s.running + s.lingering <= s.size, s
    assert min(vars(s).values()) >= 0, s
    return s


@pytest.fixture
def stats() -> Callable[[greendefer.GreenPool], greendefer.PoolStats]:
    return adds_up


@pytest.fixture
def run_program() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a whole program, patched if these tests are; it may use ``go``. One that hangs is killed:
    only that."""

    def run(
        *parts: str, args: Sequence[str] = (), check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return run_python("-c", joined(PATCH, GO, *parts), *args, check=check, **environment)

    return run
