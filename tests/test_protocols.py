"""in_order: protocol methods that may block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.basic import LineReceiver

import greendefer
from greendefer.protocols import MANY


class Lines(LineReceiver):
    delimiter = b"\n"

    def __init__(self) -> None:
        self.gates: dict[bytes, Event] = {}
        self.log: list[bytes] = []
        self.begun = Event()
        self.lost = Event()

    @greendefer.in_order
    def lineReceived(self, line: bytes) -> None:
        """What a line does."""
        self.log.append(b"+" + line)
        self.begun.set()
        if line in self.gates:
            self.gates[line].wait()
        if line == b"bad":
            raise RuntimeError(line)
        self.log.append(b"-" + line)
        self.sendLine(line.upper())

    @greendefer.in_order
    def connectionLost(self, reason: Any = None) -> None:  # type: ignore[override]
        self.log.append(b"lost")
        self.lost.set()


@pytest.fixture
def connect(in_reactor: Any) -> Any:
    def connect(**gates: Event) -> tuple[Lines, StringTransport]:
        lines, transport = Lines(), StringTransport()
        lines.gates = {name.encode(): gate for name, gate in gates.items()}
        in_reactor(lines.makeConnection, transport)
        return lines, transport

    return connect


def test_calls_of_one_object_run_one_after_the_other(connect: Any, in_reactor: Any) -> None:
    gate = Event()
    lines, transport = connect(a=gate)
    assert in_reactor(lines.dataReceived, b"a\nb\nc\n") is None
    in_reactor(lines.connectionLost)
    assert lines.begun.wait(10)
    gevent.sleep(0.01)  # what others would need to begin, too
    assert lines.log == [b"+a"]
    gate.set()
    assert lines.lost.wait(10)
    assert lines.log == [b"+a", b"-a", b"+b", b"-b", b"+c", b"-c", b"lost"]
    assert transport.value() == b"A\nB\nC\n"


def test_other_connections_go_on(connect: Any, in_reactor: Any) -> None:
    gate = Event()
    blocked, _ = connect(a=gate)
    free, transport = connect()
    in_reactor(blocked.dataReceived, b"a\n")
    in_reactor(free.dataReceived, b"a\nb\n")
    in_reactor(free.connectionLost)
    assert free.lost.wait(10)
    assert transport.value() == b"A\nB\n"
    assert blocked.log == [b"+a"]
    gate.set()
    in_reactor(blocked.connectionLost)
    assert blocked.lost.wait(10)


def test_who_sends_too_fast_is_paused(connect: Any, in_reactor: Any) -> None:
    gate = Event()
    lines, transport = connect(a=gate)
    in_reactor(lines.dataReceived, b"a\n" + b"x\n" * (MANY - 1))
    assert transport.producerState == "producing"
    in_reactor(lines.dataReceived, b"x\n")
    assert transport.producerState == "paused"
    in_reactor(lines.connectionLost)
    gate.set()
    assert lines.lost.wait(10)
    in_reactor(gevent.getcurrent)
    assert lines.log.count(b"-x") == MANY
    assert transport.producerState == "producing"


def test_an_exception_ends_the_connection(connect: Any, in_reactor: Any, logged: Any) -> None:
    lines, transport = connect()
    in_reactor(lines.dataReceived, b"bad\ngood\n")
    in_reactor(lines.connectionLost)
    assert lines.lost.wait(10)
    assert transport.disconnected
    assert lines.log == [b"+bad", b"+good", b"-good", b"lost"]
    (error,) = [event for event in logged if event["isError"]]
    assert error["failure"].check(RuntimeError)
    assert "lineReceived" in repr(error["f"])
    logged.clear()


def test_a_closed_pool_does_not_recurse(in_reactor: Any) -> None:
    pool = greendefer.GreenPool(1)

    class Closed(Protocol):
        @greendefer.in_order(pool=pool)
        def dataReceived(self, data: bytes) -> None:
            pool.stats()

    closed, transport = Closed(), StringTransport()
    in_reactor(closed.makeConnection, transport)
    in_reactor(pool.close)

    def many() -> None:
        for _ in range(5000):
            closed.dataReceived(b"x")

    in_reactor(many)
    assert transport.disconnected
    assert pool.stats().rejected == 5000


def test_wrong_uses(in_reactor: Any) -> None:
    with pytest.raises(TypeError, match="decorates a method, not 3"):
        greendefer.in_order(3)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"test_wrong_uses.* is async, and runs in the reactor"):

        @greendefer.in_order
        async def dataReceived(self: Any, data: bytes) -> None: ...

    with pytest.raises(TypeError, match="must be a pool or None, not 3"):
        greendefer.in_order(pool=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="called without an object"):
        in_reactor(greendefer.in_order(len), "")
    assert Lines.lineReceived.__doc__ == "What a line does."


class Slotted:
    __slots__ = ()

    @greendefer.in_order
    def work(self) -> None: ...


def test_of_an_object_that_can_not_have_attributes(in_reactor: Any) -> None:
    with pytest.raises(TypeError, match=r"Slotted .* can't have one: it has __slots__"):
        in_reactor(Slotted().work)


def test_in_another_thread(in_reactor: Any) -> None:
    """It is refused there, also while a call of the reactor's thread runs."""
    bare = Bare()
    go = gevent.event.Event()

    class Held(Bare):
        @greendefer.in_order
        def hold(self) -> None:
            go.wait()

    held = Held()
    in_reactor(held.hold)
    for each in bare, held:
        with pytest.raises(greendefer.GreendeferError, match="not the reactor's thread"):
            gevent.get_hub().threadpool.apply(each.work, (1,))
    go.set()
    in_reactor(held.work, MANY)
    assert held.last.wait(20)
    assert held.done == [MANY]
    assert bare.done == []


class Bare:
    """No protocol: it has no transport."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.last = gevent.event.Event()

    @greendefer.in_order
    def work(self, n: int) -> None:
        if n < 0:
            raise ValueError(n)
        self.done.append(n)
        if n == MANY:
            self.last.set()


def test_methods_in_order_of_what_has_no_transport(
    in_reactor: Callable[..., Any], logged: list[dict[str, Any]]
) -> None:
    bare = Bare()

    def calls() -> None:
        bare.work(-1)
        for n in range(MANY + 1):
            bare.work(n)

    in_reactor(calls)
    assert bare.last.wait(20)
    assert bare.done == list(range(MANY + 1))
    (error,) = [event for event in logged if event["isError"]]
    logged.remove(error)
    assert error["log_failure"].check(ValueError)


class Connection:
    connected = True
    paused = 0
    resumed = 0

    def pauseProducing(self) -> None:
        self.paused += 1

    def resumeProducing(self) -> None:
        self.resumed += 1


@pytest.mark.parametrize("closes", [False, True])
def test_a_connection_that_is_gone_is_not_resumed(
    closes: bool, in_reactor: Callable[..., Any], wait_a_turn: Any
) -> None:
    bare, transport = Bare(), Connection()
    bare.transport = transport  # type: ignore[attr-defined]

    def calls() -> None:
        for n in range(MANY + 1):
            bare.work(n)
        assert transport.paused == 1
        transport.connected = not closes

    in_reactor(calls)
    assert bare.last.wait(20)
    in_reactor(wait_a_turn)
    assert transport.resumed == (not closes)
