"""redis-py on Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from servers import Redis

from .clients import AT_ONCE, Client, ClientTests
from .conftest import needs

redis = needs("redis")


class RedisClient:
    errors: tuple[type[Exception], ...] = (redis.exceptions.ConnectionError,)

    def __init__(self, server_port: int, port: int) -> None:
        self._control = _connect(server_port)
        self._redis = _connect(port, AT_ONCE)

    def ask(self, n: int) -> int:
        return int(self._redis.echo(f"{n:3000}"))

    def nap(self, seconds: float) -> object:
        return self._redis.blpop("nothing comes here", timeout=seconds)

    def wait(self) -> object:
        return self._redis.blpop("gate")

    def waiting(self) -> int:
        return int(self._control.info("clients")["blocked_clients"])

    def release(self) -> None:
        if n := self.waiting():
            self._control.rpush("gate", *range(n))

    def close(self) -> None:
        self._control.delete("gate")
        self._redis.close()
        self._control.close()


def _connect(port: int, connections: int = 1) -> redis.Redis:
    retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)  # errors are to be seen here
    pool = redis.BlockingConnectionPool(
        max_connections=connections, timeout=20, host="127.0.0.1", port=port, retry=retry
    )
    return redis.Redis(connection_pool=pool)


@pytest.fixture
def server(redis_server: Redis) -> Redis:
    return redis_server


@pytest.fixture
def server_port(server: Redis) -> int:
    return server.port


@pytest.fixture
def make_client(server: Redis) -> Iterator[Callable[[int], Client]]:
    return lambda port: RedisClient(server.port, port)


class TestRedis(ClientTests):
    pass
