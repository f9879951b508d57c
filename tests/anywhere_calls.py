"""What the calls of the table in ``anywhere.py`` do: in a module, so that processes find it."""

from __future__ import annotations

import contextvars
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import gevent.socket
from twisted.python import context as twisted_context

import greendefer

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def gate(port: int, name: str, result: Any = "through") -> Any:
    """Block until the test opens it, and have it notice when this ends."""
    with gevent.socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(name.encode() + b"\n")
        connection.recv(1)
    if isinstance(result, BaseException):
        raise result
    return result


def raises() -> None:
    raise KeyError("from the call")


def contexts() -> tuple[str, Any]:
    variable.set(variable.get() + ", and changed")
    return variable.get(), twisted_context.get("request")


_steps_around: list[str] = []


@contextmanager
def around() -> Iterator[None]:
    """What a pool has around its calls; what happened around them this process knows."""
    _steps_around.append("entered")
    try:
        yield
    except BaseException as e:
        _steps_around.append(type(e).__mro__[0 if isinstance(e, Exception) else 1].__name__)
        raise
    finally:
        _steps_around.append("left")


@contextmanager
def around_badly() -> Iterator[None]:
    yield
    raise LookupError("could not clean up")


def around_swallowing() -> AbstractContextManager[None]:
    return suppress(KeyError)


def steps_around() -> list[str]:
    """Those that were not asked for before."""
    steps = _steps_around[:]
    _steps_around.clear()
    return steps


def process_id() -> int:
    return os.getpid()


def dies() -> None:
    os._exit(3)


def exits() -> None:
    raise SystemExit(7)


_pool: Any = None


@greendefer.green_deferred(pool=lambda _: _pool)
def plus_one(n: int) -> int:
    return n + 1


def decorated_on(pool: Any) -> Any:
    """A decorated function, which travels as what it decorates."""
    global _pool
    _pool = pool
    return plus_one
