"""What ``chaos.py`` has worker processes do: they import this module, and little else."""

from __future__ import annotations

import os
import socket
import time
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)


def by_chaos(e: E, by: str) -> E:
    """`e`, to be known again from any other of its type. It is pickled with that."""
    e.by_chaos = by  # type: ignore[attr-defined]
    return e


class HalfAnswer(ConnectionError):
    """The server has closed without having said all."""


class TakesTwo(Exception):
    """It is pickled with one of its arguments, and so can't be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


class Unsendable(Exception):
    """Raised where a result is pickled."""


class CannotBeSent:
    def __reduce__(self) -> str:
        raise Unsendable


def converse(connection: Any, how: bytes = b"answer") -> bytes:
    """Have ``hostile.py`` treat one like that, over a socket of gevent's or any other."""
    with connection:
        connection.sendall(how + b"\n")
        got = b""
        while chunk := connection.recv(100):
            got += chunk
        if got != b"ok\n":
            raise HalfAnswer(got)
        return got


def fetches(address: tuple[str, int]) -> bytes:
    return converse(socket.create_connection(address, timeout=5))


def fails(address: object) -> None:
    raise by_chaos(ValueError("as usual"), "in_a_process")


def exits(address: object) -> None:
    raise by_chaos(SystemExit(3), "in_a_process")


def fails_oddly(address: object) -> None:
    raise TakesTwo("one", "two")


def returns_what_cannot_be_sent(address: object) -> object:
    return CannotBeSent()


def sleeps(address: object) -> None:
    time.sleep(0.02)


def dies(address: object) -> None:
    """Its process does: so do the others of that executor."""
    os._exit(1)
