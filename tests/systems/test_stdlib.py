"""What the standard library waits for besides sockets: child processes, and names."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.server import DatagramServer
from twisted.internet.defer import CancelledError

import greendefer
from greendefer import GreenPool

from .conftest import until

AT_ONCE = 20


@pytest.fixture
def pool(reactor: Any) -> Iterator[GreenPool]:
    pool = GreenPool(AT_ONCE)
    yield pool
    greendefer.wait_for_deferred(pool.close(grace=0))


class Children:
    """Each says that it runs, by a file of its own, and ends when it can read from a pipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pipe = folder / "pipe"
        os.mkfifo(self.pipe)
        self.command = ["sh", "-c", f"touch {folder}/$$.runs; read line < {self.pipe}; echo $$"]

    def running(self) -> int:
        return len(list(self.folder.glob("*.runs")))

    def release(self) -> None:
        with self.pipe.open("w"):  # opens when they have, and closes: they read the end
            pass


@pytest.fixture
def children(tmp_path: Path) -> Children:
    return Children(tmp_path)


def test_subprocess(children: Children, pool: GreenPool, together: Any) -> None:
    calls = [
        pool.submit(subprocess.check_output, children.command, text=True) for _ in range(AT_ONCE)
    ]
    pids = together(calls, children.running, children.release)
    assert len(set(pids)) == AT_ONCE
    assert {(children.folder / f"{pid.strip()}.runs").exists() for pid in pids} == {True}


def test_subprocess_of_a_call_that_is_killed(
    children: Children, pool: GreenPool, result: Any
) -> None:
    """``subprocess.run`` kills the child, and waits for it, whatever ends the call."""
    d = pool.submit(subprocess.run, children.command)
    cancelled = result(d)
    until(lambda: children.running() == 1)
    (pid,) = (int(path.stem) for path in children.folder.glob("*.runs"))
    d.cancel()
    assert cancelled.error() is CancelledError
    until(lambda: pool.stats().lingering == 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_subprocess_fails(pool: GreenPool) -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        greendefer.wait_for_deferred(
            pool.submit(subprocess.run, [sys.executable, "-c", "exit(3)"], check=True)
        )
    assert raised.value.returncode == 3
    with pytest.raises(FileNotFoundError):
        greendefer.wait_for_deferred(pool.submit(subprocess.run, ["/nonexistent"]))


class NameServer:
    """Answers no query before `gate` is set; then with 127.0.0.N for ``nN.test``."""

    def __init__(self) -> None:
        self.gate = Event()
        self.asked: set[bytes] = set()
        self._server = DatagramServer(("127.0.0.1", 0), self._answer)
        self._server.start()
        self.port = self._server.server_port

    def waiting(self) -> int:
        return 0 if self.gate.is_set() else len(self.asked)

    def close(self) -> None:
        self.gate.set()
        self._server.stop()

    def _answer(self, query: bytes, address: Any) -> None:
        # One question, of type A: RFC 1035, 4.1.
        length = query[12]
        name = query[13 : 13 + length]
        self.asked.add(name)
        self.gate.wait()
        answer = query[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0) + query[12:]
        answer += struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + bytes([127, 0, 0, int(name[1:])])
        self._server.sendto(answer, address)


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    server = NameServer()
    yield server
    server.close()


_KEPT: list[Any] = []


@pytest.fixture
def resolver(name_server: NameServer) -> Iterator[Any]:
    ares = pytest.importorskip("gevent.resolver.ares")
    hub = gevent.get_hub()
    stock = hub.resolver
    hub.resolver = ares.Resolver(
        hub, servers=["127.0.0.1"], udp_port=name_server.port, flags=0, timeout=30
    )
    # Its close() does not close fork_watcher (gevent/resolver/ares.py), and on libuv the loop
    # crashes once that is garbage.
    _KEPT.append(hub.resolver)
    yield
    hub.resolver.close()
    hub.resolver = stock


def test_getaddrinfo(
    resolver: Any, name_server: NameServer, pool: GreenPool, together: Callable[..., Any]
) -> None:
    calls = [
        pool.submit(socket.getaddrinfo, f"n{n}.test", 80, socket.AF_INET, socket.SOCK_STREAM)
        for n in range(AT_ONCE)
    ]
    results = together(calls, name_server.waiting, name_server.gate.set)
    assert [r[0][4] for r in results] == [(f"127.0.0.{n}", 80) for n in range(AT_ONCE)]


def test_getaddrinfo_fails(pool: GreenPool) -> None:
    with pytest.raises(socket.gaierror):
        greendefer.wait_for_deferred(pool.submit(socket.getaddrinfo, "no such name.invalid", 80))
