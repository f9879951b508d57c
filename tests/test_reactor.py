"""The reactor waits in gevent's hub, and whatever a greenlet asks of it takes effect at once."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from programs import ON_LIBUV
from twisted.internet import error
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.python import context

import greendefer
from greendefer._reactor import installed
from greendefer._reactor.dispatch import call_with_logger
from greendefer._reactor.stock import native_kind, stock_module
from greendefer._reactor.wait import READ, CooperativeWait

LATER = 3600.0
"""An hour: a test that has to wait for this hangs, and so fails."""


@pytest.fixture
def asleep(reactor: Any) -> None:
    """The reactor is parked in its wait."""
    while reactor.cooperative_wait._parked is None or reactor.threadCallQueue:
        gevent.sleep(0)


@pytest.mark.usefixtures("asleep")
class TestWakes:
    """From a greenlet that is not the reactor's, while the reactor sleeps."""

    def test_call_later(self, reactor: Any) -> None:
        done = Event()
        reactor.callLater(0, done.set)
        assert done.wait(10)

    def test_call_later_when_another_one_is_due_much_later(self, reactor: Any) -> None:
        much_later = reactor.callLater(LATER, lambda: None)
        self.let_it_sleep(reactor)
        done = Event()
        reactor.callLater(0.001, done.set)
        assert done.wait(10)
        much_later.cancel()

    def test_delayed_call_reset(self, reactor: Any) -> None:
        done = Event()
        call = reactor.callLater(LATER, done.set)
        self.let_it_sleep(reactor)
        call.reset(0)
        assert done.wait(10)

    def test_delayed_call_delayed_by_less_than_nothing(self, reactor: Any) -> None:
        done = Event()
        call = reactor.callLater(LATER, done.set)
        self.let_it_sleep(reactor)
        call.delay(-LATER)
        assert done.wait(10)

    def test_delayed_call_cancel(self, reactor: Any) -> None:
        called = []
        call = reactor.callLater(0, called.append, 1)  # the reactor is woken, and has not run yet
        call.cancel()
        done = Event()
        reactor.callLater(0, done.set)
        assert done.wait(10)
        assert called == []

    def test_call_from_thread_in_its_own_thread(self, reactor: Any) -> None:
        done = Event()
        reactor.callFromThread(done.set)
        assert done.wait(10)

    def test_call_from_another_thread(self, reactor: Any) -> None:
        done = Event()
        pool = gevent.get_hub().threadpool
        pool.apply(reactor.callFromThread, (done.set,))
        assert done.wait(10)

    def test_call_when_running(self, reactor: Any) -> None:
        done = Event()
        reactor.callWhenRunning(done.set)
        assert done.wait(10)

    def test_add_and_remove_reader_and_writer(self, reactor: Any) -> None:
        ours, theirs = socket.socketpair()

        class Descriptor:
            def __init__(self) -> None:
                self.read, self.written, self.lost = Event(), Event(), []

            def fileno(self) -> int:
                return ours.fileno()

            def logPrefix(self) -> str:
                return "descriptor"

            def doRead(self) -> None:
                os.read(ours.fileno(), 100)
                self.read.set()

            def doWrite(self) -> None:
                self.written.set()
                reactor.removeWriter(self)

            def connectionLost(self, reason: object) -> None:
                self.lost.append(reason)

        descriptor = Descriptor()
        reactor.addReader(descriptor)
        self.let_it_sleep(reactor)
        os.write(theirs.fileno(), b"x")
        assert descriptor.read.wait(10)
        reactor.addWriter(descriptor)
        assert descriptor.written.wait(10)
        descriptor.read.clear()
        reactor.removeReader(descriptor)
        os.write(theirs.fileno(), b"x")
        self.let_it_sleep(reactor)
        assert not descriptor.read.is_set()
        assert descriptor not in reactor.getReaders() + reactor.getWriters()
        ours.close()
        theirs.close()

    def test_a_regular_file_which_epoll_refuses(self, reactor: Any, tmp_path: Any) -> None:
        file = (tmp_path / "file").open("w+b", buffering=0)
        done = Event()

        class Descriptor:
            fileno = file.fileno

            def logPrefix(self) -> str:
                return "file"

            def doWrite(self) -> None:
                reactor.removeWriter(self)
                done.set()

        reactor.addWriter(Descriptor())
        assert done.wait(10)
        file.close()

    @staticmethod
    def let_it_sleep(reactor: Any) -> None:
        for _ in range(3):
            gevent.sleep(0.001)
        assert reactor.cooperative_wait._parked is not None


def test_stop_and_crash_from_a_greenlet_while_it_sleeps(run_program: Any) -> None:
    for how in "stop", "crash":
        run_program(
            f"""
            import gevent, greendefer
            greendefer.install()
            from twisted.internet import reactor
            gevent.spawn_later(0.05, reactor.{how})
            reactor.run()
            """
        )


class TestFairness:
    """Whoever is busy all the time leaves turns to the others. Turns are counted, not timed."""

    def test_a_busy_reactor_does_not_starve_greenlets(self, reactor: Any) -> None:
        turns = {"reactor": 0, "greenlet": 0, "io": 0}
        ours, theirs = gevent.socket.socketpair()
        busy = True

        def spin() -> None:
            turns["reactor"] += 1
            if busy:
                reactor.callLater(0, spin)

        def give_way() -> None:
            while busy:
                turns["greenlet"] += 1
                gevent.sleep(0)

        def ping_pong(sock: Any) -> None:
            while busy:
                sock.recv(1)
                turns["io"] += 1
                sock.send(b"x")

        reactor.callLater(0, spin)
        greenlets = [gevent.spawn(give_way)]
        greenlets += [gevent.spawn(ping_pong, sock) for sock in (ours, theirs)]
        ours.send(b"x")
        while turns["reactor"] < 1000 or turns["io"] < 100:
            gevent.sleep(0)
        busy = False
        gevent.joinall(greenlets, timeout=10)
        # libuv has no priorities, and greenlets may have more of the turns.
        assert 1 / 20 <= turns["greenlet"] / turns["reactor"] <= (200 if ON_LIBUV else 20)

    def test_busy_greenlets_do_not_starve_the_reactor(self, reactor: Any) -> None:
        turns = {"timer": 0, "io": 0, "greenlet": 0}
        busy = True

        def tick() -> None:
            turns["timer"] += 1
            if busy:
                reactor.callLater(0.001, tick)

        def spin() -> None:
            while busy:
                turns["greenlet"] += 1
                gevent.sleep(0)

        class Echo(Protocol):
            def dataReceived(self, data: bytes) -> None:
                turns["io"] += 1
                self.transport.write(data)

        factory = ServerFactory()
        factory.protocol = Echo
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")

        def client() -> None:
            sock = gevent.socket.create_connection(("127.0.0.1", port.getHost().port))
            while busy:
                sock.sendall(b"x")
                sock.recv(1)
            sock.close()

        greenlets = [gevent.spawn(spin) for _ in range(100)] + [gevent.spawn(client)]
        tick()
        while turns["timer"] < 100 or turns["io"] < 20:
            gevent.sleep(0)
        busy = False
        gevent.joinall(greenlets, timeout=10)
        greendefer.wait_for_deferred(port.stopListening())
        # Each of the greenlets had at most a few rounds between two turns of the reactor's.
        assert turns["greenlet"] / (turns["timer"] + turns["io"]) < 100 * 50

    @pytest.mark.skipif(
        ON_LIBUV,
        reason="libuv has no priorities: see docs/limits.md",
    )
    def test_greenlets_that_one_poll_found_ready_let_the_reactor_in(
        self, reactor: Any, stats: Any
    ) -> None:
        """200 calls that become ready together, each busy for a millisecond: the reactor has its
        turns among them, and not only when all have run."""
        pool = greendefer.GreenPool(200)
        pairs = [gevent.socket.socketpair() for _ in range(200)]
        ran: list[str] = []

        def call(sock: Any) -> None:
            sock.recv(1)
            ran.append("call")
            until = time.monotonic() + 0.001
            while time.monotonic() < until:
                pass
            sock.close()

        def tick() -> None:
            ran.append("tick")
            if len(ran) < 10_000 and ran.count("call") < 200:
                reactor.callLater(0.001, tick)

        calls = [pool.submit(call, ours) for ours, _ in pairs]
        while pool.stats().running < 200 or reactor.cooperative_wait._parked is None:
            gevent.sleep(0)
        gevent.sleep(0.01)
        tick()
        for _, theirs in pairs:
            os.write(theirs.fileno(), b"x")
        for d in calls:
            greendefer.wait_for_deferred(d)
        for _, theirs in pairs:
            theirs.close()
        longest = max(len(run) for run in "".join(kind[0] for kind in ran).split("t"))
        assert longest <= 5, ran
        assert stats(pool).completed == 200


class TestInstall:
    def test_twice(self) -> None:
        with pytest.raises(
            error.ReactorAlreadyInstalledError, match=r"greendefer's own reactor .* Leave this"
        ):
            greendefer.install()

    def test_unknown_kind(self) -> None:
        with pytest.raises(ValueError, match="'native', 'poll', 'select', 'asyncio'"):
            greendefer.install("quantum")

    def test_patched_afterwards(self, run_program: Any) -> None:
        """It keeps working when the program is patched only after it was installed."""
        run_program(
            """
            import greendefer
            greendefer.install()
            from gevent import monkey
            monkey.patch_all()
            import time
            from twisted.internet import reactor
            d = greendefer.defer_to_greenlet(time.sleep, 0.01)
            d.addBoth(lambda _: reactor.stop())
            reactor.run()
            """
        )

    def test_it_is_twisteds_epoll_reactor(self, reactor: Any) -> None:
        from twisted.internet.epollreactor import EPollReactor

        assert isinstance(reactor, EPollReactor)

    def test_select_is_left_as_it_was(self, run_program: Any) -> None:
        run_program(
            """
            import select
            before = set(vars(select))
            import greendefer
            greendefer.install()
            assert set(vars(select)) == before
            """
        )


class TestLifeCycle:
    def test_run_in_a_greenlet_or_in_main_and_from_a_thread(self, run_program: Any) -> None:
        run_program(
            """
            import _thread, greendefer
            from gevent import monkey
            start = monkey.get_original("_thread", "start_new_thread")
            lock = monkey.get_original("_thread", "allocate_lock")()
            greendefer.install()
            from twisted.internet import reactor
            reactor.callLater(0.01, reactor.stop)
            lock.acquire()
            def run():
                reactor.run(installSignalHandlers=False)
                lock.release()
            start(run, ())
            assert lock.acquire(timeout=10)
            """
        )

    def test_iterate_from_a_greenlet_while_the_reactor_runs(self, reactor: Any) -> None:
        done = Event()
        reactor.callLater(0, done.set)
        while not done.is_set():
            reactor.iterate(0)
        assert reactor.cooperative_wait.greenlet is not gevent.getcurrent()

    def test_an_idle_reactor_sleeps(self, reactor: Any) -> None:
        """No turn without a reason: none in the time that a hundred wait for something else."""
        turns = []
        original = reactor.runUntilCurrent
        gevent.sleep(0.05)
        for _ in range(2000):
            if reactor.cooperative_wait._alarm_at > time.monotonic() + 5:
                break
            gevent.sleep(0.01)  # an alarm of an earlier test will ring: a turn each, and once
        reactor.runUntilCurrent = lambda: (turns.append(1), original())
        try:
            for _ in range(100):
                gevent.sleep(0.001)
        finally:
            del reactor.runUntilCurrent
        assert len(turns) <= 1


def test_what_the_reactor_starts_between_two_greenlets_starts_at_once(
    reactor: Any, in_reactor: Any
) -> None:
    """A greenlet that held the loop makes way for the reactor; gevent must not fall asleep over
    what that does then."""
    pool = greendefer.GreenPool(2)
    done = Event()

    def hold_the_loop(until: float) -> bool:
        while time.monotonic() < until:
            pass
        return done.wait(5)

    def start() -> Any:
        due = time.monotonic() + 0.01
        reactor.callLater(0.01, pool.submit, done.set)
        return pool.submit(hold_the_loop, due + 0.01)

    assert in_reactor(start)


@pytest.mark.parametrize("loop", ["libev-cext", "libuv"])
def test_the_poller_waits_by_itself_only_where_nothing_else_can_run(
    loop: str, run_program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A greenlet and the reactor take turns, thousands of times: somebody is always ready, and the
    poller must not wait meanwhile, for all that its own descriptors have nothing to say."""
    monkeypatch.setenv("GEVENT_LOOP", loop)
    run_program(
        """
        import greendefer
        greendefer.install()
        from twisted.internet import reactor
        from twisted.internet.defer import Deferred
        from greendefer._reactor.wait import SLICE
        wait = reactor.cooperative_wait
        patience, asked = wait.patience, []
        def asks(timeout):
            asked.append(patience(timeout))
            return asked[-1]
        wait.patience = asks
        def soon():
            d = Deferred()
            reactor.callLater(0, d.callback, None)
            return d
        def run():
            for _ in range(3000):
                greendefer.wait_for_deferred(soon())
            # (Less: it waits for a timer, due by now or nearly.)
            assert len(asked) >= 3000 and SLICE not in asked, asked.count(SLICE)
            reactor.stop()
        greendefer.defer_to_greenlet(run).addErrback(
            lambda failure: (failure.printTraceback(), reactor.crash()))
        reactor.run()
        assert SLICE not in asked
        """
    )


@pytest.mark.parametrize("kind", ["native", "select"])
@pytest.mark.parametrize("loop", ["libev-cext", "libuv"])
def test_times_of_less_than_a_millisecond(
    loop: str, kind: str, run_program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libuv warns of each, and rings early by what is more than whole milliseconds."""
    monkeypatch.setenv("GEVENT_LOOP", loop)
    run_program(
        f"""
        import warnings
        warnings.simplefilter("error")
        import gevent, greendefer
        greendefer.install({kind!r})
        from twisted.internet import reactor, task

        async def main(reactor):
            for seconds in 0.0001, 0.0009, 0.0015:
                await task.deferLater(reactor, seconds)
                slow = greendefer.green_deferred(timeout=seconds)(gevent.sleep)
                try:
                    await slow(60)
                except greendefer.CallTimeout:
                    continue
                raise AssertionError("no timeout")

        task.react(main)
        """
    )


def test_a_timeout_that_is_put_off_again_and_again_costs_one_turn(run_program: Any) -> None:
    run_program(
        """
        import gevent, greendefer
        greendefer.install()
        from time import monotonic
        from twisted.internet import reactor
        from twisted.internet.defer import Deferred
        from twisted.internet.task import deferLater

        wait = reactor.cooperative_wait

        def main():
            began = monotonic()
            fired = Deferred()
            call = reactor.callLater(2, fired.callback, None)
            for _ in range(50):
                gevent.sleep(0.005)
                reset_at = monotonic()
                call.reset(2)
            turns = wait.turns
            greendefer.wait_for_deferred(fired)
            assert monotonic() - reset_at > 1.99
            assert wait.turns - turns < 8, wait.turns - turns
            for delay in (0.02, 0.001, 0.01, 0):  # later, sooner, and at once
                began = monotonic()
                greendefer.wait_for_deferred(deferLater(reactor, delay))
                assert monotonic() - began >= delay - 0.001

        go(lambda: greendefer.defer_to_greenlet(main))
        """
    )


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


def test_a_keyboard_interrupt_as_it_is_asked_for_its_prefix() -> None:
    class Interrupted:
        def logPrefix(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_with_logger(Interrupted(), int)


@pytest.mark.parametrize(
    ("has", "kind"), [("epoll", "epoll"), ("kqueue", "kqueue"), ("", "select")]
)
def test_the_native_poller(has: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def original(module: str, name: str) -> Any:
        if name != has:
            raise AttributeError(name)

    monkeypatch.setattr("greendefer._reactor.stock.original", original)
    assert native_kind() == kind


def test_a_module_that_does_not_name_the_poller() -> None:
    """As Twisted's for kqueue: it has nothing to be given back."""
    before = dict(vars(select))
    stock = stock_module("twisted.internet.selectreactor", "poll")
    assert not hasattr(stock, "poll")
    assert vars(select) == before


def test_a_wait_for_nothing_and_for_what_is_closed() -> None:
    wait = CooperativeWait()
    wait.watch_each(list)
    wait.wait(0.001)
    wait.watch_each(lambda: [(-1, READ)])
    wait.wait(None)
    assert wait.turns == 2


class ServerOf:
    """A factory of one protocol."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol

    def buildProtocol(self, _: object) -> Protocol:
        return self.protocol

    def doStart(self) -> None:
        pass

    doStop = doStart


def test_one_connection_closes_another_that_is_ready_too(
    in_reactor: Callable[..., Any], wait_a_turn: Any
) -> None:
    from twisted.internet import reactor as this_reactor

    reactor: Any = this_reactor
    pairs = [socket.socketpair() for _ in range(2)]
    got: list[bytes] = []

    class Mine(Protocol):
        def dataReceived(self, data: bytes) -> None:
            got.append(data)
            for each in mine:
                if each is not self:
                    each.transport.abortConnection()  # type: ignore[union-attr]

    mine: list[Mine] = []

    def adopt() -> None:
        for ours, _ in pairs:
            protocol = Mine()
            mine.append(protocol)
            reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, ServerOf(protocol))
            ours.close()
        for _, theirs in pairs:
            theirs.send(b"x")

    in_reactor(adopt)
    deadline = time.monotonic() + 20
    while not got and time.monotonic() < deadline:
        gevent.sleep(0)
    in_reactor(wait_a_turn)
    assert got == [b"x"]
    for protocol in mine:
        in_reactor(protocol.transport.abortConnection)  # type: ignore[union-attr]
    for _, theirs in pairs:
        theirs.close()


def test_a_write_that_closes_another_connection_which_has_something_to_write(
    in_reactor: Callable[..., Any],
    wait_a_turn: Any,
) -> None:
    from twisted.internet import reactor as this_reactor

    reactor: Any = this_reactor
    pairs = [socket.socketpair() for _ in range(2)]
    transports: list[Any] = []

    def write() -> None:
        for ours, _ in pairs:
            protocol = Protocol()
            reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, ServerOf(protocol))
            ours.close()
            transports.append(protocol.transport)
        first, second = transports
        do_write = first.doWrite

        def write_and_close() -> Any:
            second.abortConnection()
            return do_write()

        first.doWrite = write_and_close
        first.write(b"first")
        second.write(b"second")

    in_reactor(write)
    in_reactor(wait_a_turn)
    theirs = [theirs for _, theirs in pairs]
    for each in theirs:
        each.settimeout(20)
    assert theirs[0].recv(100) == b"first"
    with contextlib.suppress(ConnectionResetError):
        assert theirs[1].recv(100) == b""
    in_reactor(transports[0].abortConnection)
    in_reactor(wait_a_turn)
    for each in theirs:
        each.close()


def test_a_module_without_a_file_that_has_the_reactor(monkeypatch: pytest.MonkeyPatch) -> None:
    from twisted.internet import reactor

    module = types.ModuleType("made_up")
    module.reactor = reactor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up", module)
    assert "made_up" in installed._modules_with(reactor)
