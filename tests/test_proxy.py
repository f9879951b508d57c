"""green_proxy: methods, streams, blocks and plain things of a whole client object."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import enum
import json
import pickle
import sqlite3
import types
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    ensureDeferred,
    gatherResults,
    inlineCallbacks,
)

import greendefer
from greendefer import (
    CallTimeout,
    GreenIterator,
    GreenPool,
    NativeThreadPool,
    PoolClosed,
    PoolFull,
    Timeouts,
    blocking_from_greenlet,
    defer_to_greenlet,
    green_proxy,
    wait_for_deferred,
    with_options,
)
from greendefer._proxycalls import ProxyCall


class ClientError(Exception):
    pass


class Color(enum.Enum):
    RED = 1


class Session:
    """Live: a context manager, tied to the greenlet that made it."""

    def __init__(self, log: list[Any], fails: str = "") -> None:
        self.log = log
        self.fails = fails
        self.greenlets = {gevent.getcurrent()}
        self.blocked = Event()
        self.go = Event()

    def _step(self, name: str) -> None:
        self.greenlets.add(gevent.getcurrent())
        gevent.sleep(0)
        self.log.append(name)
        if self.fails == name:
            raise ClientError(name)

    def __enter__(self) -> Session:
        self._step("enter")
        return self

    def __exit__(self, kind: Any, exc: Any, tb: Any) -> bool:
        self._step(f"exit {kind.__name__}" if kind else "exit")
        return isinstance(exc, StopAsyncIteration)

    def execute(self, sql: str) -> str:
        self._step(sql)
        return sql.upper()

    def block(self) -> str:
        self.greenlets.add(gevent.getcurrent())
        self.blocked.set()
        try:
            self.go.wait()
        except gevent.GreenletExit:
            self.log.append("killed")
            raise
        return "through"

    def rows(self, n: int) -> Iterator[int]:
        for i in range(n):
            self._step(f"row {i}")
            yield i

    @contextlib.contextmanager
    def nested(self) -> Iterator[Session]:
        self._step("nested in")
        try:
            yield self
        except BaseException as e:
            self._step(f"nested {type(e).__name__}")
            raise
        else:
            self._step("nested out")


class SubClient:
    def __init__(self, name: str) -> None:
        self.name = name

    def hello(self) -> str:
        gevent.sleep(0)
        return f"hello {self.name}"


class Client:
    """A client."""

    version = "1.0"
    Error = ClientError

    def __init__(self, name: str = "client", log: Any = None) -> None:
        self.name = name
        self.log = [] if log is None else log
        self.users = SubClient("users")
        self.gate = Event()
        self.started = Event()

    def __repr__(self) -> str:
        return f"Client({self.name!r})"

    def __reduce__(self) -> Any:
        return Client, (self.name,)

    def __deepcopy__(self, memo: Any) -> Client:
        return Client(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Client) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: str) -> str:
        return key

    @classmethod
    def from_url(cls, url: str) -> Client:
        return cls(url)

    @staticmethod
    def static(x: int) -> int:
        return x + 1

    def get(self, key: str, *, default: int = 0) -> tuple[str, int, Any]:
        """Gets."""
        gevent.sleep(0)
        return key, default, gevent.getcurrent()

    def note(self, x: Any) -> None:
        self.log.append(x)

    def fail(self) -> None:
        raise ClientError("failed")

    def block(self) -> str:
        self.started.set()
        self.gate.wait()
        return "through"

    def session(self, fails: str = "") -> Session:
        gevent.sleep(0)
        return Session(self.log, fails)

    def pages(self, n: int) -> Iterator[int]:
        try:
            for i in range(n):
                gevent.sleep(0)
                yield i
        finally:
            self.log.append("closed")

    def sub(self, name: str) -> SubClient:
        return SubClient(name)

    def subs(self) -> list[SubClient]:
        return [SubClient("a"), SubClient("b")]

    def presign(self) -> str:
        return "https://"

    async def already(self) -> str:
        return "async"

    @property
    def size(self) -> int:
        gevent.sleep(0)
        return 42


@pytest.fixture
def pool(stats: Any) -> Iterator[GreenPool]:
    pool = GreenPool(2)
    yield pool
    while pool.stats().running or pool.stats().lingering:
        gevent.sleep(0)
    assert stats(pool).queued == 0


@pytest.fixture
def client(pool: GreenPool) -> Any:
    return green_proxy(Client(), pool=pool)


async def collect(it: Any) -> list[Any]:
    return [item async for item in it]


class TestMethods:
    def test_they_return_deferreds(self, client: Any, pool: GreenPool, reactor: Any) -> None:
        d = client.get("k", default=2)
        assert isinstance(d, Deferred)
        key, default, where = wait_for_deferred(d)
        assert (key, default) == ("k", 2)
        assert where is not reactor.cooperative_wait.greenlet
        assert pool.stats().completed == 1
        assert client.get.__name__ == "get"
        assert client.get.__doc__ == "Gets."

    def test_awaited(self, client: Any, in_reactor: Any) -> None:
        async def main() -> Any:
            return await client.static(1), await client.get("k")

        one, two = in_reactor(main)
        assert (one, two[0]) == (2, "k")

    def test_one_that_nobody_waits_for_runs(self, client: Any, in_reactor: Any) -> None:
        async def main() -> None:
            client.note(1)
            client.note(2)
            await client.note(3)

        in_reactor(main)
        assert client.log == [1, 2, 3]
        wait = Event()
        green_proxy(types.SimpleNamespace(set=wait.set)).set()
        assert wait.wait(10)

    def test_in_the_order_of_the_calls(self, in_reactor: Any) -> None:
        p = green_proxy(Client(), pool=GreenPool(1))

        async def main() -> None:
            first = p.note("first")
            second = p.note("second")
            await second
            await first

        in_reactor(main)
        assert p.log == ["first", "second"]

    def test_errors(self, client: Any) -> None:
        with pytest.raises(ClientError, match="failed"):
            wait_for_deferred(client.fail())
        with pytest.raises(TypeError):
            wait_for_deferred(client.get())
        with pytest.raises(AttributeError, match="nothing"):
            client.nothing  # noqa: B018

    def test_options(self, pool: GreenPool, gate: Any, result: Any) -> None:
        other = GreenPool(1)
        p = green_proxy(
            Client(),
            pool=pool,
            timeout=20,
            methods={"block": {"timeout": 0.01}, "static": {"pool": other}},
        )
        assert result(p.block()).error() is CallTimeout
        assert wait_for_deferred(p.static(1)) == 2
        assert other.stats().completed == 1
        assert result(with_options(green_proxy(Client()).block, timeout=0.01)()).error() is (
            CallTimeout
        )
        with pytest.raises(TypeError, match="has no option"):
            with_options(p.block, tiemout=1)  # type: ignore[call-overload]

    def test_a_pool_for_each_instance(self) -> None:
        class Pooled(Client):
            def __init__(self) -> None:
                super().__init__()
                self.pool = GreenPool(1)

        p = green_proxy(Pooled(), pool=lambda self: self.pool)
        wait_for_deferred(p.get("k"))
        assert p.pool.stats().completed == 1
        assert wait_for_deferred(ensureDeferred(collect(p.pages(2)))) == [0, 1]
        assert p.pool.stats().completed == 2

    def test_cancel_before_it_began_and_after(self, client: Any, pool: Any, result: Any) -> None:
        d = client.note("never")
        heard = result(d)
        d.cancel()
        assert heard.error() is CancelledError
        assert pool.stats().submitted == 0
        d = client.block()
        heard = result(d)
        assert client.started.wait(10)
        d.cancel()
        assert heard.error() is CancelledError
        assert client.log == []
        assert pool.stats().cancelled == 1

    def test_one_that_is_refused_when_somebody_else_has_it_begin(
        self, gate: Any, in_reactor: Any, reactor: Any, result: Any
    ) -> None:
        """It fires in the reactor's greenlet all the same."""
        pool = GreenPool(1, max_queued=0)
        p = green_proxy(Client(), pool=pool)
        blocker = pool.submit(gate)
        assert gate.entered.wait(10)
        other = green_proxy(Client(), pool=GreenPool(1))
        heard = result(p.get("k"))

        async def have_all_begin() -> None:
            await other.get("k")

        wait_for_deferred(Deferred.fromCoroutine(have_all_begin()))
        assert heard.error() is PoolFull
        assert heard.greenlets == in_reactor(lambda: [gevent.getcurrent()])
        gate.opened.set()
        wait_for_deferred(blocker)

    def test_blocking_code_waits_for_one(self, client: Any) -> None:
        """It is an async context manager as well, which nobody has asked for."""

        @blocking_from_greenlet
        def get(k: str) -> Any:
            return client.get(k)

        expected = wait_for_deferred(client.get("k"))
        assert get("k") == expected
        assert blocking_from_greenlet(client.get)("k") == expected
        assert wait_for_deferred(NativeThreadPool(1).submit(get, "k")) == expected

    def test_cancelling_one_that_was_entered_or_iterated_over(
        self, client: Any, in_reactor: Any
    ) -> None:
        async def main() -> None:
            call = client.session()
            async with call:
                call.cancel()
            call = client.pages(2)
            async for _ in call:
                call.cancel()
            assert not call.called

        in_reactor(main)

    @pytest.mark.parametrize("kind", ["green", "stock"])
    def test_those_that_are_made_as_the_reactor_stops(self, kind: str, run_program: Any) -> None:
        """They fire, as all others do: also those that wait for a turn that never comes."""
        run_program(
            """
            import sys, time
            import gevent, greendefer
            from greendefer.shutdown import set_shutdown_grace
            if sys.argv[1] == "green":
                greendefer.install()
                sleep = gevent.sleep
            else:
                # Unpatched, in native threads: gevent's hub must not be in use in these as Python
                # ends, on libuv.
                sleep = time.sleep
            from twisted.internet import reactor
            from twisted.internet.defer import Deferred
            set_shutdown_grace(0.01, 0.01)
            client = greendefer.green_proxy([1, 2], pool=greendefer.GreenPool(1))
            blocks = greendefer.GreenPool(2)
            fired, errors = [], []
            def call(_=None):
                client.count(1).addBoth(lambda r: fired.append(getattr(r, "type", r)))
            def block():
                # As it is ended it is out of the reactor's turns.
                d = blocks.submit(sleep, 3600)
                d.addErrback(lambda f: errors.append(f.type)).addCallback(call)
            def last():
                block()
                hold = Deferred()
                reactor.callLater(0.05, hold.callback, None)
                return hold
            def start():
                block()
                reactor.addSystemEventTrigger("before", "shutdown", last)
                reactor.addSystemEventTrigger("during", "shutdown", call)
                reactor.addSystemEventTrigger("after", "shutdown", call)
                reactor.stop()
            reactor.callWhenRunning(start)
            reactor.run()
            assert errors == [greendefer.PoolClosed] * 2, errors
            assert len(fired) == 4, fired
            assert fired[1:] == [greendefer.PoolClosed] * 3, fired
            """,
            args=[kind],
        )

    def test_a_full_pool_and_a_closed_one(self, gate: Any, in_reactor: Any) -> None:
        pool = GreenPool(1, max_queued=0)
        p = green_proxy(Client(), pool=pool)
        blocker = pool.submit(gate)

        async def main() -> None:
            for use in (
                lambda: p.get("k"),
                lambda: collect(p.pages(3)),
                lambda: p.session().__aenter__(),
            ):
                with pytest.raises(error):
                    await use()

        error: type[Exception] = PoolFull
        in_reactor(main)
        gate.opened.set()
        wait_for_deferred(blocker)
        wait_for_deferred(pool.close())
        error = PoolClosed
        in_reactor(main)

    def test_a_call_that_waits_for_one_lends_it_its_slot(self) -> None:
        pool = GreenPool(1)
        p = green_proxy(Client(), pool=pool)
        assert wait_for_deferred(pool.submit(lambda: wait_for_deferred(p.static(1)))) == 2

    def test_two_hundred_at_once(self, in_reactor: Any) -> None:
        p = green_proxy(Client(), pool=GreenPool(50))

        async def main() -> Any:
            return await gatherResults([p.get(str(n)) for n in range(200)])

        assert [each[0] for each in in_reactor(main)] == [str(n) for n in range(200)]


class TestPlainThings:
    def test_attributes(self, client: Any) -> None:
        assert (client.name, client.version) == ("client", "1.0")
        client.name = "renamed"
        assert client.__wrapped__.name == "renamed"
        assert client.size == 42
        assert client.Error is ClientError
        assert isinstance(client.users, SubClient)
        assert client.users.hello() == "hello users"  # not asked for: plain

    def test_it_looks_like_it(self, client: Any) -> None:
        assert repr(client) == "<green_proxy of Client('client')>"
        assert str(client) == "Client('client')"
        assert isinstance(client, Client)
        assert client == Client()
        assert Client() == client
        assert client == green_proxy(Client())
        assert hash(client) == hash(Client())
        assert dir(client) == dir(client.__wrapped__)
        assert len(client) == 3
        assert client["k"] == "k"
        assert bool(client)
        assert not callable(client)

    def test_pickling_and_copies(self, client: Any) -> None:
        p = green_proxy(Client("p"), timeout=20, pool=pool_of_the_module, plain={"presign"})
        for again in pickle.loads(pickle.dumps(p)), copy.copy(p), copy.deepcopy(p):
            assert again == p
            assert again.__wrapped__ is not p.__wrapped__
            assert again.presign() == "https://"
            assert wait_for_deferred(again.static(1)) == 2
        with pytest.raises(TypeError, match="can't be pickled"):
            pickle.dumps(client)
        module = pickle.loads(pickle.dumps(green_proxy(json)))
        assert wait_for_deferred(module.loads("[1]")) == [1]
        factory = pickle.loads(pickle.dumps(green_proxy(Client)))
        assert repr(wait_for_deferred(factory("x"))) == "<green_proxy of Client('x')>"

    def test_properties_that_do_io(self) -> None:
        p = green_proxy(Client(), properties=["size"])
        assert wait_for_deferred(p.size) == 42
        assert p.name == "client"

    def test_what_is_left_alone(self) -> None:
        p = green_proxy(Client(), plain=["presign", Session])
        assert p.presign() == "https://"
        assert type(wait_for_deferred(p.session())) is Session
        coroutine = p.already()
        assert wait_for_deferred(ensureDeferred(coroutine)) == "async"

    def test_plain_for_and_with_are_refused(self, client: Any) -> None:
        p = green_proxy(Session([]))
        with pytest.raises(TypeError, match="use `async with`"), p:
            pass
        with pytest.raises(TypeError, match="use `async for`"):
            list(p)
        with pytest.raises(TypeError, match="use `async for`"):
            next(p)

    def test_a_forgotten_await_is_told(self, client: Any) -> None:
        """A call is a Deferred, and says so, whatever else it is taken for."""
        says = r"A call of Client\.get is a Deferred: await it"
        call = client.get("k")
        with pytest.raises(AttributeError, match=rf"{says}.* no attribute 'keys'"):
            call.keys()
        with pytest.raises(TypeError, match=f"{says}.* no items"):
            call["key"]
        with pytest.raises(TypeError, match=f"{says}.* a plain `with`"), call:
            pass
        with pytest.raises(TypeError, match=f"{says}.* a plain `for`"):
            list(call)  # of a Deferred, this would never end
        assert not hasattr(ProxyCall.__new__(ProxyCall), "keys")  # as copying asks
        assert wait_for_deferred(call)[0] == "k"

    def test_yield_from(self, client: Any, in_reactor: Any) -> None:
        @inlineCallbacks
        def main() -> Any:
            got = yield from client.get("k")
            with pytest.raises(ClientError):
                yield from client.fail()
            return got

        assert wait_for_deferred(main())[0] == "k"

    def test_what_is_a_proxy_already_stays_as_it_is(self, in_reactor: Any) -> None:
        sub = green_proxy(SubClient("sub"))

        class Owner:
            attribute = sub

            def method(self) -> Any:
                return sub

            def __enter__(self) -> Any:
                return sub

            def __exit__(self, *exc_info: object) -> None:
                pass

        owner = green_proxy(Owner())

        async def main() -> None:
            assert owner.attribute is sub
            assert await owner.method() is sub
            async with owner as entered:
                assert entered is sub

        in_reactor(main)

    def test_a_proxy_of_a_proxy(self, client: Any) -> None:
        p = green_proxy(client, timeout=5)
        assert p.__wrapped__ is client.__wrapped__


def pool_of_the_module(instance: Any) -> GreenPool:
    return the_pool


the_pool = GreenPool(2)


class TestResults:
    def test_data_is_as_it_is(self, client: Any) -> None:
        assert type(wait_for_deferred(client.subs())) is list
        assert type(wait_for_deferred(client.sub("x"))) is SubClient

    def test_those_that_were_asked_for(self) -> None:
        for rule in SubClient, (SubClient, set), lambda r: isinstance(r, SubClient):
            p = green_proxy(Client(), results=rule)  # type: ignore[arg-type]
            sub = wait_for_deferred(p.sub("x"))
            assert wait_for_deferred(sub.hello()) == "hello x"
            assert wait_for_deferred(p.users.hello()) == "hello users"
            assert repr(wait_for_deferred(p.session())).startswith("<green_proxy")

    def test_items(self, in_reactor: Any) -> None:
        p = green_proxy(Client(), results=SubClient)

        async def main() -> list[str]:
            return [await sub.hello() async for sub in p.subs()]

        assert in_reactor(main) == ["hello a", "hello b"]

    def test_live_ones(self, client: Any, in_reactor: Any) -> None:
        async def main() -> None:
            pages = await client.pages(3)
            assert isinstance(pages, GreenIterator)
            assert await collect(pages) == [0, 1, 2]
            async with await client.session() as session:
                assert await session.execute("one") == "ONE"
            assert client.log == ["closed", "enter", "one", "exit"]

        in_reactor(main)


class TestIterating:
    def test_a_method(self, client: Any, pool: GreenPool, in_reactor: Any, stats: Any) -> None:
        async def main() -> list[int]:
            return await collect(client.pages(100))

        assert in_reactor(main) == list(range(100))
        s = stats(pool)
        assert (s.submitted, s.completed) == (1, 1)
        assert client.log == ["closed"]

    def test_stop_half_way(self, client: Any, in_reactor: Any) -> None:
        async def main() -> None:
            async for n in client.pages(100):
                if n == 3:
                    break

        in_reactor(main)
        while not client.log:
            gevent.sleep(0)

    def test_prefetch(self, in_reactor: Any) -> None:
        obj = Client()
        p = green_proxy(obj, methods={"pages": {"prefetch": 10}})

        async def main() -> None:
            async with contextlib.aclosing(aiter(p.pages(1000))) as pages:
                await anext(pages)
                assert pages._stream._prefetch == 10

        in_reactor(main)

    @pytest.mark.parametrize("prefetch", [0, 10])
    def test_in_a_block(self, pool: GreenPool, prefetch: int, in_reactor: Any, stats: Any) -> None:
        """A generator is no context manager, but its iteration is: it is closed at the end."""
        obj = Client()
        p = green_proxy(obj, pool=pool, methods={"pages": {"prefetch": prefetch}})

        async def main() -> None:
            async with p.pages(1000) as pages:
                assert isinstance(pages, GreenIterator)
                async for n in pages:
                    if n == 3:
                        break
                assert obj.log == []
            assert obj.log == ["closed"]
            assert stats(pool).running == 0

        in_reactor(main)

    @pytest.mark.parametrize("nested", [False, True])
    def test_leaving_the_block_ends_a_step(
        self, client: Any, nested: bool, in_reactor: Any
    ) -> None:
        blocked = Event()
        log: list[str] = []

        def listen() -> Iterator[int]:
            try:
                yield 1
                blocked.set()
                Event().wait()
            finally:
                log.append("closed")

        async def stop_in(p: Any) -> None:
            with contextlib.suppress(CancelledError):
                async with p.listen() as messages:
                    assert await messages.__anext__() == 1
                    step = ensureDeferred(messages.__anext__())
                    await defer_to_greenlet(blocked.wait)
            with pytest.raises(CancelledError):
                await step

        async def main() -> None:
            p = green_proxy(types.SimpleNamespace(listen=listen, session=lambda: Session(log)))
            if nested:
                live = types.SimpleNamespace(listen=listen)
                manager = contextlib.nullcontext(live)
                outer = green_proxy(types.SimpleNamespace(open=lambda: manager))
                async with outer.open() as inner:
                    await stop_in(inner)
            else:
                await stop_in(p)

        in_reactor(main)
        assert log == ["closed"]

    def test_an_iterator_of_another_kind_in_a_block(self, in_reactor: Any) -> None:
        class Tail:
            closed = 0

            def __iter__(self) -> Tail:
                return self

            def __next__(self) -> int:
                return 5

            def close(self) -> None:
                self.closed += 1

        made = Tail()
        p = green_proxy(types.SimpleNamespace(tail=lambda: made))

        async def main() -> None:
            async with p.tail() as tail:
                async for n in tail:
                    assert n == 5
                    break

        in_reactor(main)
        assert made.closed == 1

    def test_the_object_itself(self, in_reactor: Any) -> None:
        """It belongs to somebody else: it is not closed."""

        class Cursor:
            closed = False

            def __init__(self) -> None:
                self.rows = list(range(5))

            def __iter__(self) -> Cursor:
                return self

            def __next__(self) -> int:
                if not self.rows:
                    raise StopIteration
                return self.rows.pop(0)

            def close(self) -> None:
                self.closed = True

        p = green_proxy(Cursor())

        async def main() -> list[int]:
            async for row in p:
                if row == 1:
                    break
            return await collect(p)

        assert in_reactor(main) == [2, 3, 4]
        assert not p.closed

    def test_a_call_that_has_begun(self, client: Any, in_reactor: Any) -> None:
        async def main() -> None:
            call = client.pages(3)
            await client.get("k")
            assert await collect(call) == [0, 1, 2]
            call = client.subs()
            await client.get("k")
            assert len(await collect(call)) == 2

        in_reactor(main)

    def test_a_misspelt_option_of_a_method(self) -> None:
        with pytest.raises(
            TypeError, match="no option 'timout'; there are pool, timeout, on_cancel"
        ):
            green_proxy(Client(), methods={"subs": {"timout": 1}})

    def test_items_of_a_call_that_has_begun(self, in_reactor: Any, stats: Any) -> None:
        """They are fetched on the method's pool, with its options, and proxied as others are."""
        pool = GreenPool(1)
        options = {"pool": pool, "prefetch": 1}
        p = green_proxy(Client(), results=SubClient, methods={"subs": options, "pages": options})

        async def main() -> None:
            call = p.subs()
            await p.get("k")
            assert [await sub.hello() async for sub in call] == ["hello a", "hello b"]
            assert stats(pool).submitted == 2
            pages = await p.pages(3)
            assert await anext(pages) == 0
            assert stats(pool).running == 1
            assert pages._stream._prefetch == 1
            await pages.aclose()

        in_reactor(main)


class TestBlocks:
    def test_one_worker_from_enter_to_exit(
        self, client: Any, pool: GreenPool, in_reactor: Any, stats: Any
    ) -> None:
        async def main() -> Any:
            async with client.session() as session:
                assert stats(pool).running == 1
                assert await session.execute("one") == "ONE"
                others = [client.get("elsewhere"), session.execute("two")]
                await gatherResults(others)
                assert [row async for row in session.rows(2)] == [0, 1]
            assert stats(pool).running == 0
            return session

        session = in_reactor(main)
        assert len(session.greenlets) == 1
        assert session.log == ["enter", "one", "two", "row 0", "row 1", "exit"]
        with pytest.raises(PoolClosed):
            wait_for_deferred(session.execute("late"))

    def test_a_call_that_has_begun(self, client: Any, in_reactor: Any) -> None:
        """It is entered when it is there, as what it returned."""

        async def main() -> None:
            call = client.session()
            await client.get("k")
            async with call as session:
                assert await session.execute("one") == "ONE"

        in_reactor(main)
        assert client.__wrapped__.log == ["enter", "one", "exit"]

    def test_a_plain_one_of_a_call_that_has_begun(self, in_reactor: Any) -> None:
        p = green_proxy(Client(), plain=(Session,))

        async def main() -> None:
            call = p.session()
            await p.get("k")
            async with call as session:
                assert type(session) is Session
            call = p.get("k")
            await p.get("k")
            with pytest.raises(TypeError, match="no context manager: await it"):
                await call.__aenter__()

        in_reactor(main)
        assert p.log == ["enter", "exit"]

    def test_entered_in_one_place_and_left_in_another(
        self, pool: GreenPool, in_reactor: Any
    ) -> None:
        """As test fixtures do."""
        log: list[Any] = []
        session = green_proxy(Session(log), pool=pool)
        in_reactor(session.__aenter__)
        in_reactor(session.__aexit__, None, None, None)
        assert log == ["enter", "exit"]
        assert wait_for_deferred(pool.submit(len, "four")) == 4

    def test_over_two_objects(self, pool: GreenPool, in_reactor: Any) -> None:
        logs: list[list[Any]] = [[], []]

        async def main() -> None:
            first, second = (green_proxy(Session(log), pool=pool) for log in logs)
            async with first, second:
                await first.execute("one")
                await second.execute("two")

        in_reactor(main)
        assert logs == [["enter", "one", "exit"], ["enter", "two", "exit"]]

    def test_one_inside_of_another_that_can_not_be_entered(
        self, pool: GreenPool, in_reactor: Any
    ) -> None:
        class Outer(Session):
            def inner(self) -> Session:
                return Session(self.log, "enter")

        log: list[Any] = []

        async def main() -> None:
            async with green_proxy(Outer(log), pool=pool) as outer:
                with pytest.raises(ClientError):
                    async with outer.inner():
                        raise AssertionError("it was not entered")
                assert await outer.execute("after") == "AFTER"

        in_reactor(main)
        assert log == ["enter", "enter", "after", "exit"]

    def test_over_the_object(self, pool: GreenPool, in_reactor: Any) -> None:
        obj = Session([])
        obj.greenlets.clear()
        p = green_proxy(obj, pool=pool)

        async def main() -> None:
            async with p as entered:
                await entered.execute("one")
                await p.execute("two")  # in here it is on that worker, too
                assert [row async for row in p.rows(1)] == [0]
                async with p.nested() as inner:
                    await inner.execute("three")
            assert len(obj.greenlets) == 1
            await p.execute("after")

        in_reactor(main)
        expected = ["enter", "one", "two", "row 0", "nested in", "three", "nested out", "exit"]
        assert obj.log == [*expected, "after"]

    def test_over_one_object_at_once(self, in_reactor: Any) -> None:
        """A lock, say: each block has its own worker."""
        from gevent.lock import RLock

        lock = RLock()
        p = green_proxy(lock, pool=GreenPool(10))
        inside: list[int] = []

        async def use(n: int) -> None:
            async with p:
                inside.append(n)
                await defer_to_greenlet(gevent.sleep, 0)
                assert inside == [n]
                inside.pop()

        async def main() -> None:
            await gatherResults([ensureDeferred(use(n)) for n in range(10)])

        in_reactor(main)

    def test_nested_on_the_same_worker(self, client: Any, pool: GreenPool, in_reactor: Any) -> None:
        async def main() -> Any:
            async with client.session() as session:
                async with session.nested() as inner:
                    await inner.execute("one")
                    await session.execute("two")
                    assert pool.stats().running == 1
                await session.execute("three")
            return session

        session = in_reactor(main)
        assert len(session.greenlets) == 1
        steps = ["enter", "nested in", "one", "two", "nested out", "three", "exit"]
        assert session.log == steps

    def test_calls_that_nobody_awaited_run_before_the_exit(
        self, client: Any, in_reactor: Any
    ) -> None:
        async def main() -> None:
            async with client.session() as session:
                session.execute("one")
                session.execute("two")

        in_reactor(main)
        assert client.log == ["enter", "one", "two", "exit"]

    def test_exceptions(self, client: Any, in_reactor: Any) -> None:
        async def main(error: BaseException) -> None:
            async with client.session() as session, session.nested():
                raise error

        with pytest.raises(KeyError):
            in_reactor(main, KeyError())
        assert client.log == ["enter", "nested in", "nested KeyError", "exit KeyError"]

        async def swallowed() -> str:
            async with client.session():
                raise StopAsyncIteration
            return "went on"

        assert in_reactor(swallowed) == "went on"

    @pytest.mark.parametrize("where", ["enter", "exit"])
    def test_errors_of_its_own(self, client: Any, where: str, in_reactor: Any) -> None:
        async def main() -> None:
            async with client.session(where):
                pass

        with pytest.raises(ClientError, match=where):
            in_reactor(main)
        assert client.log == (["enter"] if where == "enter" else ["enter", "exit"])

    def test_a_call_is_used_in_one_way(self, client: Any, in_reactor: Any) -> None:
        async def main() -> None:
            call = client.session()
            async with call:
                with pytest.raises(RuntimeError, match=r"Client\.session was entered"):
                    await call

        in_reactor(main)

    def test_what_is_no_context_manager(self, client: Any, in_reactor: Any) -> None:
        async def main() -> None:
            async with client.sub("x"):
                pass

        with pytest.raises(TypeError, match="no context manager"):
            in_reactor(main)

    def test_an_exception_ends_what_still_runs(self, client: Any, in_reactor: Any) -> None:
        async def main() -> None:
            async with client.session() as session:
                running = session.block()
                running.addErrback(lambda failure: failure.trap(PoolClosed))
                await defer_to_greenlet(session.__wrapped__.blocked.wait)
                raise KeyError

        with pytest.raises(KeyError):
            in_reactor(main)
        assert client.log == ["enter", "killed", "exit KeyError"]

    def test_cancelled_inside(self, client: Any, in_reactor: Any) -> None:
        blocked = Event()

        async def block() -> None:
            async with client.session() as session:
                blocked.set()
                await session.block()

        async def main() -> None:
            d = ensureDeferred(block())
            await defer_to_greenlet(blocked.wait)
            await defer_to_greenlet(gevent.sleep, 0)
            d.cancel()
            await d

        with pytest.raises(CancelledError):
            in_reactor(main)
        assert client.log[0] == "enter"
        assert client.log[-1] == "exit CancelledError"

    def test_cancelled_while_it_enters(self, pool: GreenPool, in_reactor: Any) -> None:
        """__enter__ was through, but nobody heard of it: __exit__ runs."""
        log: list[str] = []
        entering = Event()

        class Stubborn:
            def __enter__(self) -> None:
                entering.set()
                try:
                    Event().wait()
                except gevent.GreenletExit:
                    log.append("entered all the same")

            def __exit__(self, kind: Any, exc: Any, tb: Any) -> None:
                log.append(kind.__name__)

        p = green_proxy(types.SimpleNamespace(make=Stubborn, hold=lambda: Stubborn()), pool=pool)

        async def block() -> None:
            async with p.hold():
                raise AssertionError("not reached")

        async def main() -> None:
            d = ensureDeferred(block())
            await defer_to_greenlet(entering.wait)
            d.cancel()
            await d

        with pytest.raises(CancelledError):
            in_reactor(main)
        while len(log) < 2:
            gevent.sleep(0)
        assert log == ["entered all the same", "CancelledError"]

    def test_the_pool_is_closed_meanwhile(self, client: Any, pool: Any, in_reactor: Any) -> None:
        """The block is left on its worker, with PoolClosed; and the program hears of it."""

        async def main() -> None:
            async with client.session() as session:
                await session.execute("one")
                await pool.close(grace=0)

        with pytest.raises(PoolClosed):
            in_reactor(main)
        while len(client.log) < 3:
            gevent.sleep(0)
        assert client.log == ["enter", "one", "exit PoolClosed"]

    def test_timeouts(self, pool: GreenPool, gate: Any, in_reactor: Any) -> None:
        p = green_proxy(
            Client(),
            pool=pool,
            timeout=Timeouts(queued=0.01),
            methods={"block": {"timeout": Timeouts(running=0.05)}},
        )

        async def main() -> None:
            async with p.session() as session:
                await session.block()

        with pytest.raises(CallTimeout):
            in_reactor(main)
        assert p.log == ["enter", "killed", "exit CallTimeout"]
        blockers = [pool.submit(gate), pool.submit(gate)]
        with pytest.raises(CallTimeout, match="slot"):
            in_reactor(main)
        gate.opened.set()
        wait_for_deferred(gatherResults(blockers))

    def test_it_is_not_left_sooner_than_its_calls(self, pool: GreenPool, in_reactor: Any) -> None:
        """Its end has a slot: what it waits for there is a call of the block."""

        class Keeps(Client):
            def session(self, fails: str = "") -> Session:
                self.made = super().session(fails)
                return self.made

        client = Keeps()
        p = green_proxy(client, pool=pool, timeout=Timeouts(queued=0.05))
        blocked: list[Any] = []

        async def main() -> None:
            async with p.session() as session:
                blocked.append(session.block())
                gevent.spawn_later(0.2, client.made.go.set)

        in_reactor(main)
        assert wait_for_deferred(blocked[0]) == "through"
        assert client.log == ["enter", "exit"]

    def test_one_context(self, in_reactor: Any) -> None:
        var = contextvars.ContextVar("var", default="unset")

        @contextlib.contextmanager
        def manage() -> Iterator[str]:
            token = var.set("inside")
            yield var.get()
            var.reset(token)

        p = green_proxy(types.SimpleNamespace(manage=manage))

        async def main() -> None:
            async with p.manage() as value:
                assert value == "inside"
                assert var.get() == "unset"

        in_reactor(main)

    def test_a_thousand_blocks_leave_nothing(self, in_reactor: Any, stats: Any) -> None:
        pool = GreenPool(20)
        p = green_proxy(Client(), pool=pool)
        errors: list[Any] = []

        async def use(n: int) -> None:
            try:
                async with p.session() as session:
                    async for row in session.rows(10):
                        if row == 2 and n % 3 == 0:
                            raise KeyError
                        if row == 2 and n % 3 == 1:
                            break
            except KeyError as e:
                errors.append(e)

        async def main() -> None:
            await gatherResults([ensureDeferred(use(n)) for n in range(1000)])

        in_reactor(main)
        assert len(errors) == 334
        assert p.log.count("enter") == 1000
        assert p.log.count("exit") + p.log.count("exit KeyError") == 1000
        s = stats(pool)
        assert (s.running, s.lingering, s.queued, s.submitted) == (0, 0, 0, 1000)

    def test_sqlite3(self, in_reactor: Any, tmp_path: Any) -> None:
        """A transaction over several calls, with others beside it. (Its calls hold the loop.)"""
        db = green_proxy(sqlite3, pool=GreenPool(5))
        path = str(tmp_path / "db")

        async def main() -> None:
            async with db.connect(path) as connection:
                await connection.execute("create table t (n integer)")
            with contextlib.suppress(KeyError):
                async with db.connect(path) as connection:
                    await connection.execute("insert into t values (1)")
                    raise KeyError
            async with db.connect(path) as connection:
                cursor = await connection.execute("select count(*) from t")
                assert await cursor.fetchone() == (0,)
                await connection.executemany("insert into t values (?)", [(n,) for n in range(9)])
                cursor = await connection.execute("select n from t")
                assert [row async for row in cursor] == [(n,) for n in range(9)]
                assert isinstance(connection, db.Connection)
            with pytest.raises(db.OperationalError):
                async with db.connect(path) as connection:
                    await connection.execute("nonsense")

        in_reactor(main)


class TestClassesAndModules:
    def test_a_class(self, in_reactor: Any) -> None:
        Green = green_proxy(Client)

        async def main() -> None:
            client = await Green("made")
            assert repr(client) == "<green_proxy of Client('made')>"
            assert await client.static(1) == 2
            assert isinstance(client, Green)
            assert isinstance(client, Client)
            assert issubclass(Client, Green)
            assert Green.version == "1.0"
            other = await Green.from_url("url")
            assert await other.static(2) == 3

        in_reactor(main)
        assert Green.__name__ == "Client"

    def test_a_class_of_context_managers(self, in_reactor: Any) -> None:
        Green = green_proxy(Session)
        log: list[str] = []

        async def main() -> Any:
            async with Green(log) as session:
                await session.execute("one")
            return session

        assert len(in_reactor(main).greenlets) == 1
        assert log == ["enter", "one", "exit"]

    def test_a_module(self, in_reactor: Any) -> None:
        module = types.ModuleType("sdk")
        vars(module).update(
            connect=lambda name: Client(name),
            Client=Client,
            Color=Color,
            Error=ClientError,
            VERSION="2",
        )
        p = green_proxy(module, results=Client)

        async def main() -> None:
            client = await p.connect("a")
            assert (await client.get("k"))[0] == "k"
            assert (await (await p.Client("b")).get("k"))[0] == "k"
            with pytest.raises(p.Error):
                await client.fail()
            assert p.Color.RED is Color.RED
            assert p.VERSION == "2"

        in_reactor(main)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"pool": 5}, TypeError, "pool"),
            ({"timeout": -1}, ValueError, "timeout"),
            ({"results": 5}, TypeError, "results"),
            ({"properties": [5]}, TypeError, "iterable of names"),
            ({"plain": [5]}, TypeError, "iterable of names"),
            ({"methods": {"get": {"tiemout": 5}}}, TypeError, "get.*tiemout"),
            ({"methods": {"get": {"timeout": "5"}}}, TypeError, "get.*timeout"),
            ({"methods": {"get": {"prefetch": -1}}}, ValueError, "get.*prefetch"),
        ],
    )
    def test_options(self, options: Any, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            green_proxy(Client(), **options)


def test_names() -> None:
    assert greendefer.green_proxy is green_proxy


def test_a_proxy_can_not_be_left_by_a_plain_with() -> None:
    proxy = greendefer.green_proxy(object())
    with pytest.raises(TypeError, match="async with"):
        proxy.__exit__(None, None, None)
