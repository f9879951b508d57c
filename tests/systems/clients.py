"""What every client must do, and survive: one set of tests for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pytest
from servers import Proxy
from twisted.internet.defer import CancelledError

import greendefer
from greendefer import CallTimeout, GreenPool

from .conftest import until

AT_ONCE = 20
NAP = 2.0
"""Seconds; no machine that runs tests stands still for as long."""


class Client(Protocol):
    """A driver with a pool of its connections, which are used again."""

    errors: tuple[type[Exception], ...]
    """The driver's own."""

    def ask(self, n: int) -> int:
        """Have the server answer with `n`. Blocks."""

    def nap(self, seconds: float) -> object:
        """Have the server take so long to answer. Blocks."""

    def wait(self) -> object:
        """Wait in the server until `release()`. Blocks."""

    def waiting(self) -> int:
        """How many do so now, as the server says."""

    def release(self) -> None:
        """Let them go."""

    def close(self) -> None:
        """Close all connections, also where the server was restarted meanwhile."""


class Connections:
    """The smallest pool that there can be, for drivers that have none: a connection is used again
    unless its driver says that it is closed."""

    def __init__(self, connect: Callable[[], Any], is_open: Callable[[Any], bool]) -> None:
        self._connect = connect
        self._is_open = is_open
        self._idle: list[Any] = []

    @contextmanager
    def one(self) -> Iterator[Any]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            yield connection
        finally:
            if self._is_open(connection):
                self._idle.append(connection)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


class ClientTests:
    """To be inherited, with a fixture ``make_client(port)``, which the tests call with the port of
    a proxy, and ``server_port``."""

    @pytest.fixture
    def proxy(self, server_port: int) -> Iterator[Proxy]:
        proxy = Proxy(server_port)
        yield proxy
        proxy.close()

    @pytest.fixture
    def client(self, proxy: Proxy, make_client: Callable[[int], Client]) -> Iterator[Client]:
        client = make_client(proxy.port)
        yield client
        try:
            client.release()
        except client.errors:
            pass  # the server was restarted, and its client for asking has not noticed
        client.close()

    @pytest.fixture
    def pool(self, reactor: Any) -> Iterator[GreenPool]:
        pool = GreenPool(AT_ONCE)
        yield pool
        greendefer.wait_for_deferred(pool.close(grace=0))

    def test_calls_wait_together(self, client: Client, pool: GreenPool, together: Any) -> None:
        calls = [pool.submit(client.wait) for _ in range(AT_ONCE)]
        together(calls, client.waiting, client.release)
        self.works(client, pool)

    def test_calls_take_the_time_of_one(
        self, client: Client, pool: GreenPool, in_the_time_of_one: Any
    ) -> None:
        self.works(client, pool)  # the connections are there
        in_the_time_of_one(lambda: [pool.submit(client.nap, NAP) for _ in range(AT_ONCE)], NAP)

    def test_half_an_answer(self, client: Client, pool: GreenPool, proxy: Proxy) -> None:
        self.works(client, pool, 1)
        proxy.break_off_next_answer()
        with pytest.raises(client.errors):
            greendefer.wait_for_deferred(pool.submit(client.ask, 1), 20)
        self.works(client, pool)

    @pytest.mark.parametrize("how", ["cancel", "timeout"])
    def test_given_up_in_the_middle_of_an_answer(
        self, how: str, client: Client, pool: GreenPool, proxy: Proxy, result: Any
    ) -> None:
        """The rest of that answer is never taken for somebody else's."""
        self.works(client, pool, 1)
        proxy.hold_back_next_answer()
        ask = greendefer.green_deferred(pool=pool)(client.ask)
        d = ask(100) if how == "cancel" else greendefer.with_options(ask, timeout=0.2)(100)
        given_up = result(d)
        assert proxy.stalled.wait(20)
        if how == "cancel":
            d.cancel()
        assert given_up.error() is (CancelledError if how == "cancel" else CallTimeout)
        proxy.released.set()
        self.works(client, pool)

    def test_connections_are_refused(self, client: Client, pool: GreenPool, proxy: Proxy) -> None:
        self.works(client, pool)
        proxy.refuse()
        for n in range(3):
            with pytest.raises(client.errors):
                greendefer.wait_for_deferred(pool.submit(client.ask, n), 20)
        proxy.listen()
        self.recovers(client, pool)

    def test_the_connection_goes_while_calls_wait(
        self, client: Client, pool: GreenPool, proxy: Proxy
    ) -> None:
        calls = [pool.submit(client.wait) for _ in range(AT_ONCE)]
        until(lambda: client.waiting() == AT_ONCE)
        proxy.refuse()
        for d in calls:
            with pytest.raises(client.errors):
                greendefer.wait_for_deferred(d, 20)
        client.release()
        proxy.listen()
        self.recovers(client, pool)

    def test_the_server_stops_and_comes_back(
        self, client: Client, pool: GreenPool, server: Any
    ) -> None:
        self.works(client, pool)
        calls = [pool.submit(client.wait) for _ in range(AT_ONCE)]
        until(lambda: client.waiting() == AT_ONCE)
        server.stop()
        try:
            for d in calls:
                with pytest.raises(client.errors):
                    greendefer.wait_for_deferred(d, 20)
            with pytest.raises(client.errors):
                greendefer.wait_for_deferred(pool.submit(client.ask, 1), 20)
        finally:
            server.start()
        self.recovers(client, pool)

    def works(self, client: Client, pool: GreenPool, times: int = 3 * AT_ONCE) -> None:
        """Every call gets its own answer."""
        calls = [pool.submit(client.ask, n) for n in range(times)]
        assert [greendefer.wait_for_deferred(d, 20) for d in calls] == list(range(times))

    def recovers(self, client: Client, pool: GreenPool) -> None:
        """Each connection that had been open may fail once, and with it one call."""
        for _ in range(AT_ONCE):
            try:
                greendefer.wait_for_deferred(pool.submit(client.ask, 1), 20)
                break
            except client.errors:
                pass
        for d in [pool.submit(client.ask, 1) for _ in range(AT_ONCE)]:
            d.addErrback(lambda failure: failure.trap(*client.errors))
            greendefer.wait_for_deferred(d, 20)
        self.works(client, pool)
