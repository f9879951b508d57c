"""One table of behaviours, for one reactor: ``python anywhere.py REACTOR [patched]``.

``test_anywhere.py`` runs it for each. Every carrier goes through every behaviour; each result is
a line of JSON. A call is stopped and released over a socket that the reactor serves, which works
from greenlets, threads and processes alike, and nothing here waits for time to pass.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any


def install(kind: str, patched: bool) -> None:
    from gevent import monkey

    green, name = kind.split("-")
    if kind == "stock-epoll":  # there is no select.epoll after the patch
        from twisted.internet import epollreactor

        epollreactor.install()
    if patched:
        monkey.patch_all()
    if green == "green":
        import greendefer

        greendefer.install(name)
    elif kind == "stock-asyncio":
        from twisted.internet import asyncioreactor

        asyncioreactor.install()


if __name__ == "__main__":
    install(sys.argv[1], "patched" in sys.argv)

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from inspect import iscoroutinefunction

import anywhere_calls as calls
import pytest
from programs import MISSES_ENDS, PATCHED
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python import context as twisted_context
from twisted.python.failure import Failure

import greendefer
from greendefer import (
    CallTimeout,
    ExecutorFailed,
    GreendeferError,
    PoolClosed,
    PoolFull,
    Timeouts,
    WouldDeadlock,
    blocking_from_greenlet,
    green_deferred,
    green_iterator,
    with_options,
)
from greendefer._admission import Pool


class Gates:
    """The other end of :func:`anywhere_calls.gate`."""

    def __init__(self, reactor: Any) -> None:
        self.open: dict[str, Any] = {}
        self._events: dict[tuple[str, str], Deferred[None]] = {}
        gates = self

        class Gate(LineOnlyReceiver):
            delimiter = b"\n"
            name = ""

            def lineReceived(self, line: bytes) -> None:
                self.name = line.decode()
                gates.open[self.name] = lambda: self.transport.write(b"x")
                gates._event(self.name, "entered").callback(None)

            def connectionLost(self, reason: Any = None) -> None:
                gates._event(self.name, "ended").callback(None)

        self.listening = reactor.listenTCP(0, Factory.forProtocol(Gate), interface="127.0.0.1")
        self.port = self.listening.getHost().port

    def _event(self, name: str, what: str) -> Deferred[None]:
        return self._events.setdefault((name, what), Deferred())

    async def entered(self, name: str) -> None:
        await self._event(name, "entered")

    async def ended(self, name: str) -> None:
        await self._event(name, "ended")


def adds_up(pool: Pool) -> greendefer.PoolStats:
    s = pool.stats()
    ends = s.completed + s.failed + s.cancelled + s.timed_out + s.rejected
    assert s.submitted == s.running + s.queued + ends, s
    assert s.running + s.lingering <= s.size, s
    assert min(vars(s).values()) >= 0, s
    return s


async def outcome(d: Deferred[Any]) -> Any:
    try:
        return await d
    except BaseException as e:
        return e


class Table:
    """The behaviours. `gates` are new for each; `made` is a function that makes pools."""

    def __init__(self, reactor: Any, carrier: str, pool: Callable[..., Pool]) -> None:
        self.reactor = reactor
        self.carrier = carrier
        self.pool = pool
        self.gates = Gates(reactor)
        self.in_processes = carrier == "processes"

    def gate(self, pool: Pool, name: str, result: Any = "through", **options: Any) -> Any:
        return green_deferred(pool=pool, **options)(calls.gate)(self.gates.port, name, result)

    @property
    def can_kill(self) -> bool:
        """Greenlets can be killed; on a stock reactor they are there only where it is patched."""
        return self.carrier == "green" and (
            sys.argv[1].startswith("green") or "patched" in sys.argv
        )

    async def settled(self, pool: Pool) -> greendefer.PoolStats:
        """When nothing of it lingers: closing waits for that."""
        await pool.close()
        s = adds_up(pool)
        assert s.running == s.lingering == s.queued == 0, s
        return s

    # The behaviours.

    async def result(self) -> None:
        pool = self.pool(2)
        thread = threading.current_thread()
        fired_in: list[Any] = []
        d = pool.submit(divmod, 7, 2)
        d.addCallback(lambda value: fired_in.append(threading.current_thread()) or value)
        assert await d == (3, 1)
        assert fired_in == [thread], fired_in
        assert (await self.settled(pool)).completed == 1

    async def where(self) -> None:
        pool = self.pool(1)
        pid = await pool.submit(calls.process_id)
        assert (pid != calls.process_id()) == self.in_processes
        if self.carrier != "processes":
            assert ("thread" in repr(pool) or "Thread" in repr(pool)) != (
                self.carrier == "green" and sys.argv[1].startswith("green")
            ), repr(pool)

    async def exception(self) -> None:
        pool = self.pool(2)
        error = await outcome(pool.submit(calls.raises))
        assert type(error) is KeyError, error
        text = "".join(traceback.format_exception(error))
        assert "in raises" in text, text
        error = await outcome(pool.submit(calls.exits))
        assert type(error) is SystemExit, error
        assert await pool.submit(len, "four") == 4
        s = await self.settled(pool)
        assert (s.failed, s.completed) == (2, 1), s

    async def timeout_running(self) -> None:
        pool = self.pool(1)
        d = self.gate(pool, "a", timeout=Timeouts(running=0.05))
        error = await outcome(d)
        assert type(error) is CallTimeout, error
        s = adds_up(pool)
        assert s.timed_out == 1, s
        if not self.can_kill and not self.in_processes:
            assert s.lingering == 1, s
        if s.lingering and not self.can_kill:  # else it was withdrawn: a process has not begun it
            await self.gates.entered("a")
            self.gates.open["a"]()
        assert await pool.submit(len, "four") == 4  # in the same slot, so it has ended
        await self.settled(pool)

    async def timeout_queued(self) -> None:
        pool = self.pool(1)
        first = self.gate(pool, "a")
        await self.gates.entered("a")
        error = await outcome(self.gate(pool, "b", timeout=Timeouts(queued=0.01)))
        assert type(error) is CallTimeout, error
        assert "waited for a slot" in str(error), error
        self.gates.open["a"]()
        assert await first == "through"
        s = await self.settled(pool)
        assert (s.timed_out, s.completed) == (1, 1), s
        assert "b" not in self.gates.open

    async def in_time(self) -> None:
        pool = self.pool(1)
        assert await with_options(green_deferred(pool=pool)(len), timeout=3600)("four") == 4
        await self.settled(pool)

    async def cancel_running(self) -> None:
        pool = self.pool(1)
        d = self.gate(pool, "a")
        await self.gates.entered("a")
        d.cancel()
        assert type(await outcome(d)) is CancelledError
        if self.can_kill:
            await self.gates.ended("a")
        else:
            assert adds_up(pool).lingering == 1
            self.gates.open["a"]()
        assert await pool.submit(len, "four") == 4
        s = await self.settled(pool)
        assert (s.cancelled, s.completed) == (1, 1), s

    async def cancel_abandons(self) -> None:
        pool = self.pool(1)
        d = self.gate(pool, "a", on_cancel="abandon")
        await self.gates.entered("a")
        d.cancel()
        assert type(await outcome(d)) is CancelledError
        assert adds_up(pool).lingering == 1
        self.gates.open["a"]()
        await self.settled(pool)

    async def cancel_queued(self) -> None:
        pool = self.pool(1)
        first, second = self.gate(pool, "a"), self.gate(pool, "b")
        third = pool.submit(len, "four")
        await self.gates.entered("a")
        second.cancel()
        assert type(await outcome(second)) is CancelledError
        self.gates.open["a"]()
        assert await third == 4
        assert await first == "through"
        assert "b" not in self.gates.open
        assert (await self.settled(pool)).cancelled == 1

    async def cancel_at_once(self) -> None:
        pool = self.pool(3)
        for _ in range(20):
            d = self.gate(pool, "never", on_cancel="kill")
            d.cancel()
            assert type(await outcome(d)) is CancelledError
            adds_up(pool)
        if not self.can_kill and "never" in self.gates.open:
            self.gates.open["never"]()
        for name in list(self.gates.open):
            self.gates.open[name]()

    async def context(self) -> None:
        pool = self.pool(1)
        calls.variable.set("set")
        d = twisted_context.call({"request": 5}, pool.submit, calls.contexts)
        got = await d
        expected = ("unset, and changed", None) if self.in_processes else ("set, and changed", 5)
        assert tuple(got) == expected, got
        assert calls.variable.get() == "set"
        again = await pool.submit(calls.contexts)  # on the same worker: the same
        assert again[0] == expected[0], again

    async def around(self) -> None:
        """Where the call runs; its errors are the call's, and it may swallow the call's."""
        pool = self.pool(1, around=calls.around)
        assert (await pool.submit(calls.steps_around))[-1:] == ["entered"]
        if not self.in_processes:  # they are several, so who knows which one is next
            assert calls.steps_around() == ["left"]
            assert type(await outcome(pool.submit(calls.raises))) is KeyError
            assert calls.steps_around() == ["entered", "KeyError", "left"]
        pool.around = calls.around_badly
        error = await outcome(pool.submit(len, "four"))
        assert type(error) is LookupError, error
        pool.around = calls.around_swallowing
        assert await pool.submit(calls.raises) is None
        assert await pool.submit(len, "four") == 4
        pool.around = lambda: calls.around_swallowing()
        if self.in_processes:
            error = await outcome(pool.submit(len, "four"))
            assert type(error) is GreendeferError, error
            assert "`around`" in str(error), error
        else:
            assert await pool.submit(calls.raises) is None
        await self.settled(pool)

    async def around_given_up(self) -> None:
        """What is around a call is left when that has ended, however it was given up."""
        if self.in_processes:
            return
        pool = self.pool(1, around=calls.around)
        d = self.gate(pool, "a")
        await self.gates.entered("a")
        d.cancel()
        assert type(await outcome(d)) is CancelledError
        if self.can_kill:
            await self.settled(pool)
            assert calls.steps_around() == ["entered", "GreenletExit", "left"]
        else:
            assert calls.steps_around() == ["entered"]
            self.gates.open["a"]()
            await self.settled(pool)
            assert calls.steps_around() == ["left"]

    async def around_a_worker(self) -> None:
        """Once, in the thread or greenlet that its calls are in."""
        if not hasattr(self.pool(1), "worker"):
            return
        entered_in = []

        @contextmanager
        def around() -> Iterator[None]:
            with calls.around():
                entered_in.append(threading.get_ident())
                yield

        pool = self.pool(1, around=around)
        async with pool.worker() as w:
            assert await w.submit(threading.get_ident) == entered_in[0]
            assert type(await outcome(w.submit(calls.raises))) is KeyError
            assert calls.steps_around() == ["entered"]
        assert calls.steps_around() == ["left"]
        assert len(entered_in) == 1
        await self.settled(pool)

    async def limits(self) -> None:
        pool = self.pool(2, max_queued=1)
        a, b, c = (self.gate(pool, name) for name in "abc")
        rejected = pool.submit(len, "")
        assert rejected.called
        assert type(await outcome(rejected)) is PoolFull
        await gatherResults([Deferred.fromCoroutine(self.gates.entered(name)) for name in "ab"])
        s = adds_up(pool)
        assert (s.running, s.queued, s.rejected) == (2, 1, 1), s
        assert "c" not in self.gates.open
        self.gates.open["a"]()
        assert await a == "through"
        await self.gates.entered("c")
        for name in "bc":
            self.gates.open[name]()
        assert await gatherResults([b, c]) == ["through"] * 2
        assert (await self.settled(pool)).completed == 3

    async def resize(self) -> None:
        pool = self.pool(1)
        a, b = self.gate(pool, "a"), self.gate(pool, "b")
        await self.gates.entered("a")
        pool.resize(2)
        await self.gates.entered("b")
        for name in "ab":
            self.gates.open[name]()
        assert await gatherResults([a, b]) == ["through"] * 2
        await self.settled(pool)

    async def close(self) -> None:
        pool = self.pool(1)
        running, queued = self.gate(pool, "a"), pool.submit(len, "")
        await self.gates.entered("a")
        closed = pool.close()
        assert type(await outcome(queued)) is PoolClosed
        assert type(await outcome(pool.submit(len, ""))) is PoolClosed
        assert not closed.called
        self.gates.open["a"]()
        assert await running == "through"
        await closed
        s = adds_up(pool)
        assert (s.completed, s.rejected) == (1, 2), s

    async def close_with_grace(self) -> None:
        pool = self.pool(1)
        running = self.gate(pool, "a")
        await self.gates.entered("a")
        closed = pool.close(grace=0)
        assert type(await outcome(running)) is PoolClosed
        await closed
        if self.can_kill:
            await self.gates.ended("a")
        else:
            self.gates.open["a"]()
        assert adds_up(pool).cancelled == 1

    async def many(self) -> None:
        pool = self.pool(4)
        n = 100 if self.in_processes else 1000
        results = await gatherResults([pool.submit(divmod, each, 7) for each in range(n)])
        assert results == [divmod(each, 7) for each in range(n)]
        assert (await self.settled(pool)).completed == n

    async def waits_inside(self) -> None:
        """A call that waits for one that is queued on the same full pool."""
        if self.in_processes:
            return  # there is no reactor there
        pool = self.pool(1)
        ran: list[str] = []
        inner = green_deferred(pool=pool)(lambda: ran.append("inner") or "inner")

        def waits() -> str:
            result = blocking_from_greenlet(inner)()
            ran.append("outer")
            return str(result)

        d = pool.submit(waits)
        if self.carrier == "executor threads":  # which has no other thread for it
            error = await outcome(d)
            assert type(error) is WouldDeadlock, error
            assert "executor" in str(error).lower(), error
        else:
            assert await d == "inner"
            assert ran == ["inner", "outer"], ran
        await self.settled(pool)

    async def waits_for_a_failure(self) -> None:
        if self.in_processes:
            return
        pool, other = self.pool(1), greendefer.GreenPool(1)

        def waits() -> Any:
            try:
                blocking_from_greenlet(other.submit)(calls.raises)
            except KeyError as e:
                return [frame.name for frame in traceback.extract_tb(e.__traceback__)]

        names = await pool.submit(waits)
        assert "raises" in names, names
        assert "waits" in names, names

    async def waits_with_a_timeout(self) -> None:
        if self.in_processes:
            return
        pool = self.pool(1)
        cancelled: list[Any] = []
        never: Deferred[Any] = Deferred(cancelled.append)
        error = await outcome(pool.submit(blocking_from_greenlet(timeout=0.01)(lambda: never)))
        assert type(error) is CallTimeout, error
        if not cancelled:  # it is told in its own time
            await outcome(never)
        assert cancelled == [never]

    async def worker(self) -> None:
        pool: Any = self.pool(2)
        if not hasattr(pool, "worker"):
            return
        async with pool.worker() as w:
            first = await w.submit(threading.get_ident)
            assert adds_up(pool).running == 1
            assert await gatherResults([w.submit(threading.get_ident) for _ in range(20)]) == (
                [first] * 20
            )
            error = await outcome(w.submit(calls.raises))
            assert type(error) is KeyError
            d = green_deferred(pool=w)(calls.gate)(self.gates.port, "a")
            await self.gates.entered("a")
            d.cancel()
            if not self.can_kill:
                self.gates.open["a"]()
            assert type(await outcome(d)) is CancelledError
            assert await w.submit(threading.get_ident) == first
        assert (await self.settled(pool)).completed == 1

    async def items(self) -> None:
        """An iteration: on one worker, in one context, its items one at a time or ahead."""
        pool: Any = self.pool(1)
        if not hasattr(pool, "worker"):
            return

        def source() -> Iterator[Any]:
            try:
                for _ in range(5):
                    yield threading.get_ident(), *calls.contexts()
            finally:
                closed_in.append(threading.get_ident())

        for prefetch in 0, 2, 100:
            closed_in: list[int] = []
            calls.variable.set("set")
            iterate = green_iterator(pool=pool, prefetch=prefetch)(source)()
            first = twisted_context.call(
                {"request": 5}, Deferred.fromCoroutine, iterate.__anext__()
            )
            got = [await first]
            got += [item async for item in iterate]
            assert closed_in == [got[0][0]], (closed_in, got)
            assert {item[0] for item in got} == {got[0][0]}, got
            texts = ["set" + ", and changed" * n for n in range(1, 6)]
            assert [item[1] for item in got] == texts, got
            assert {item[2] for item in got} == {5}, got
        assert (await self.settled(pool)).completed == 3

    async def item_given_up(self) -> None:
        pool: Any = self.pool(1)
        if not hasattr(pool, "worker"):
            return
        closed: list[str] = []

        @green_iterator(pool=pool)
        def source() -> Iterator[str]:
            try:
                yield "first"
                yield calls.gate(self.gates.port, "a")
            finally:
                closed.append("closed")

        iterate = source()
        assert await anext(iterate) == "first"
        d = Deferred.fromCoroutine(iterate.__anext__())
        await self.gates.entered("a")
        d.cancel()
        assert type(await outcome(d)) is CancelledError
        if not self.can_kill:
            assert not closed
            self.gates.open["a"]()
        await iterate.aclose()
        assert closed == ["closed"]
        assert [item async for item in iterate] == []
        assert await pool.submit(len, "four") == 4
        await self.settled(pool)

    async def item_of_a_closed_pool(self) -> None:
        """Who waits for it hears of that at once, also where the step can't be ended."""
        pool: Any = self.pool(1)
        if not hasattr(pool, "worker"):
            return
        closed: Deferred[None] = Deferred()

        @green_iterator(pool=pool)
        def source() -> Iterator[str]:
            try:
                yield calls.gate(self.gates.port, "a")
            finally:
                self.reactor.callFromThread(closed.callback, None)

        iterate = source()
        d = Deferred.fromCoroutine(iterate.__anext__())
        await self.gates.entered("a")
        await pool.close(grace=0)
        error = await outcome(d)
        assert type(error) is PoolClosed, error
        assert [item async for item in iterate] == []
        if not self.can_kill:
            assert not closed.called
            self.gates.open["a"]()
        await closed
        idle = source()
        assert type(await outcome(Deferred.fromCoroutine(idle.__anext__()))) is PoolClosed

    async def item_that_waits_inside(self) -> None:
        """A step that waits for a call that is queued on the same full pool."""
        pool: Any = self.pool(1)
        if not hasattr(pool, "worker"):
            return

        @green_iterator(pool=pool)
        def source() -> Iterator[int]:
            for text in "x", "xy":
                yield blocking_from_greenlet(pool.submit)(len, text)

        assert [item async for item in source()] == [1, 2]
        await self.settled(pool)

    async def items_among_calls(self) -> None:
        """On a worker that has other calls, a step has its turn among them."""
        pool: Any = self.pool(1)
        if not hasattr(pool, "worker"):
            return
        done: list[str] = []

        def source() -> Iterator[str]:
            for name in "cd":
                done.append(name)
                yield name

        async with pool.worker() as w:
            gate = green_deferred(pool=w)(calls.gate)(self.gates.port, "gate")
            first = w.submit(done.append, "a")
            second = w.submit(done.append, "b")
            iterate = green_iterator(pool=w)(source)()
            item = Deferred.fromCoroutine(iterate.__anext__())
            await self.gates.entered("gate")
            self.gates.open["gate"]()
            await gatherResults([gate, first, second])
            assert await item == "c"
            assert await anext(iterate) == "d"
            await iterate.aclose()
        assert done == ["a", "b", "c", "d"], done
        await self.settled(pool)

    async def on_expiry_kill(self) -> None:
        pool = self.pool(1)
        if isinstance(pool, greendefer.GreenPool):
            return
        for give in (
            lambda: green_deferred(pool=pool, timeout=Timeouts(1, on_expiry="kill")),
            lambda: green_deferred(pool=lambda _: pool, timeout=Timeouts(1, on_expiry="kill"))(len)(
                ""
            ),
            lambda: with_options(
                green_deferred(pool=pool)(len), timeout=Timeouts(1, on_expiry="kill")
            ),
        ):
            with pytest.raises(ValueError, match="kill"):
                give()

    async def dies(self) -> None:
        if not self.in_processes:
            return
        pool = self.pool(2)
        error = await outcome(pool.submit(calls.dies))
        assert type(error) is ExecutorFailed, error
        assert await pool.submit(len, "four") == 4
        s = await self.settled(pool)
        assert (s.failed, s.completed) == (1, 1), s

    async def unpicklable(self) -> None:
        if not self.in_processes:
            return
        pool = self.pool(1)
        for d in (pool.submit(lambda: 1), pool.submit(len, threading.Lock())):
            error = await outcome(d)
            assert type(error) is GreendeferError, error
            assert "can't be sent" in str(error), error
        error = await outcome(pool.submit(threading.Lock))  # a result that can't be
        assert isinstance(error, (TypeError, AttributeError, greendefer.GreendeferError)), error
        assert await pool.submit(len, "four") == 4
        await self.settled(pool)


BEHAVIOURS = [
    name for name, f in vars(Table).items() if name != "settled" and iscoroutinefunction(f)
]
CARRIERS = ("green", "threads", "executor threads", "processes")


def lacks(kind: str, carrier: str) -> str:
    """Why a carrier can't work on a reactor; nothing, where it can."""
    # A stock reactor that was installed before the patch blocks its thread, in which the standard
    # library's executors, patched, have their "threads".
    if kind == "stock-epoll" and PATCHED and carrier in ("executor threads", "processes"):
        return "the executor's own threads are greenlets of a thread that never runs them"
    if MISSES_ENDS and carrier == "processes":
        return "Python's executor waits for ever there"
    return ""


def main() -> None:
    from twisted.internet import reactor

    executors: list[Any] = []

    def executor(make: Callable[[], Any]) -> Any:
        executors.append(make())
        return executors[-1]

    spawn = multiprocessing.get_context("spawn")
    shared = executor(lambda: ProcessPoolExecutor(4, mp_context=spawn))
    pools: dict[str, Callable[..., Pool]] = {
        "green": greendefer.GreenPool,
        "threads": greendefer.NativeThreadPool,
        "executor threads": lambda size, **kw: greendefer.ExecutorPool(
            executor(lambda: ThreadPoolExecutor(4)), size, **kw
        ),
        "processes": lambda size, **kw: greendefer.ExecutorPool(shared, size, **kw),
    }

    async def all_of_it() -> None:
        for carrier in CARRIERS:
            if lacks(sys.argv[1], carrier):
                continue
            for behaviour in BEHAVIOURS:
                if behaviour == "dies" and carrier == "processes":
                    broken = executor(lambda: ProcessPoolExecutor(1, mp_context=spawn))
                    table = Table(
                        reactor, carrier, lambda n, b=broken: greendefer.ExecutorPool(b, n)
                    )
                else:
                    table = Table(reactor, carrier, pools[carrier])
                d = Deferred.fromCoroutine(getattr(table, behaviour)())
                d.addTimeout(20, reactor)
                error = ""
                try:
                    await d
                    left = [c for c in reactor.getDelayedCalls() if "anywhere" not in repr(c)]
                    # The asyncio reactor wakes itself by a call of zero seconds.
                    left = [c for c in left if c.getTime() > reactor.seconds()]
                    assert not left, left
                except BaseException:
                    error = Failure().getTraceback()
                await table.gates.listening.stopListening()
                print(json.dumps([carrier, behaviour, error]), flush=True)

    def run() -> None:
        d = Deferred.fromCoroutine(all_of_it())
        d.addErrback(lambda f: print(f.getTraceback(), file=sys.stderr))
        d.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(run)
    reactor.run()
    for each in executors:
        # Python may fail as it wakes those that end while it does: see _join_managers().
        each.shutdown(wait=not PATCHED, cancel_futures=True)


if __name__ == "__main__":
    main()
