"""Private servers for the tests: each on a free port of the loopback, in a folder of its own.

PostgreSQL and MariaDB refuse to run as root, so root starts them as ``nobody``. No running server
of the machine's is looked for, or touched. (pytest-postgresql, pytest-mysql and pytest-redis don't
fit: they neither change the user nor stop a server in the middle of a query, and the first brings
psycopg 3 into the environment, where Django then prefers it to psycopg2.)
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SECONDS_TO_START = 60.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


class Server:
    """A server that can be stopped, killed and started again, on the same port."""

    package = ""
    """What to install on Debian where it is missing."""
    programs: tuple[str, ...] = ()
    stop_signal = signal.SIGTERM

    def __init__(self) -> None:
        self.paths = {name: self._find(name) for name in self.programs}
        self.folder = Path(tempfile.mkdtemp(prefix="greendefer-"))
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            self._as = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(self.folder, "nobody", "nogroup")
        try:
            self._run(self.prepare())
            self._start_on_a_free_port()
        except BaseException:
            self.remove()
            raise

    def _start_on_a_free_port(self) -> None:
        """One that was free may not be, a moment later."""
        for left in 2, 1, 0:
            self.port = free_port()
            try:
                self.start()
                return
            except RuntimeError:
                if not left:
                    raise
                self.stop()

    def _find(self, name: str) -> str:
        folders = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]
        folders += map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))
        found = shutil.which(name, path=os.pathsep.join(folders))
        if found is None:
            missing = f"{name} is not there: apt-get install {self.package}"
            if os.environ.get("CI"):
                pytest.fail(missing)
            pytest.skip(missing)
        return found

    def prepare(self) -> list[str]:
        """What to run before the first start."""
        return []

    def command(self) -> list[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Does it answer?"""
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def _run(self, command: list[str]) -> None:
        if command:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env={**os.environ, "HOME": str(self.folder), "LC_ALL": "C"},
                capture_output=True,
                check=False,
                timeout=SECONDS_TO_START,
                **self._as,
            )
            assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env={**os.environ, "HOME": str(self.folder), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as,
            )
        deadline = time.monotonic() + SECONDS_TO_START
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.command()}: {(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals | None = None) -> None:
        """Stop it, whatever it is doing; by default in the quickest of its orderly ways."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how or self.stop_signal)
            try:
                process.wait(SECONDS_TO_START)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class PostgreSQL(Server):
    """User and database ``postgres``, no password."""

    package = "postgresql"
    programs = ("initdb", "postgres", "pg_isready")
    stop_signal = signal.SIGINT  # "fast": whoever is connected is thrown out

    def prepare(self) -> list[str]:
        return [
            *(self.paths["initdb"], "-D", str(self.folder / "data"), "-U", "postgres"),
            *("-A", "trust", "-E", "UTF8", "--no-sync", "--no-instructions"),
        ]

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": 200,
            "autovacuum": "off",
        }
        command = [self.paths["postgres"], "-D", str(self.folder / "data")]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    def is_ready(self) -> bool:
        command = [self.paths["pg_isready"], "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0


class MariaDB(Server):
    """User ``root``, no password, database ``test``."""

    package = "mariadb-server"
    programs = ("mariadb-install-db", "mariadbd")

    def prepare(self) -> list[str]:
        return [
            *(self.paths["mariadb-install-db"], "--no-defaults", f"--datadir={self.folder}/data"),
            *("--auth-root-authentication-method=normal", "--skip-name-resolve"),
            f"--tmpdir={self.folder}",  # see command()
        ]

    def command(self) -> list[str]:
        return [
            *(self.paths["mariadbd"], "--no-defaults", f"--datadir={self.folder}/data"),
            *("--bind-address=127.0.0.1", f"--port={self.port}"),
            *(f"--socket={self.folder}/socket", f"--pid-file={self.folder}/pid"),
            # Where it starts by removing whatever another one may have there, in /tmp say.
            f"--tmpdir={self.folder}",
            *("--skip-name-resolve", "--max-connections=200", "--innodb-flush-method=nosync"),
        ]

    def is_ready(self) -> bool:
        # It listens a moment before it says so; a SIGTERM in between is lost.
        return b"ready for connections" in (self.folder / "log").read_bytes()


class Redis(Server):
    package = "redis-server"
    programs = ("redis-server",)

    def command(self) -> list[str]:
        return [
            *(self.paths["redis-server"], "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--save", "", "--appendonly", "no", "--dir", str(self.folder)),
        ]


class Proxy:
    """Stands between a client and a server, and can break off, or hold back, an answer.

    :ivar port: where the clients connect.
    :ivar stalled: is set when an answer is being held back, with its first bytes sent.
    """

    def __init__(self, server_port: int) -> None:
        from gevent.event import Event

        self.server_port = server_port
        self.stalled: Any = Event()
        self.released: Any = Event()
        self.connections = 0
        self._damage: Callable[[Any, bytes], bool] | None = None
        self._pairs: set[Any] = set()
        self._server: Any = None
        self.port = 0
        self.listen()

    def listen(self) -> None:
        """Take connections, as it does from the start; on the same port as before."""
        from gevent.server import StreamServer

        self._server = StreamServer(("127.0.0.1", self.port), self._serve)
        self._server.start()
        self.port = self._server.server_port

    def refuse(self) -> None:
        """Refuse connections, and end those that there are."""
        self._server.close()
        for pair in list(self._pairs):
            for side in pair:
                try:
                    side.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def break_off_next_answer(self, after: int = 1) -> None:
        """Send `after` bytes of the next answer, and close both connections."""

        def damage(client: Any, data: bytes) -> bool:
            client.sendall(data[:after])
            return False

        self._damage = damage

    def hold_back_next_answer(self, after: int = 1) -> None:
        """Send `after` bytes of the next answer, set `stalled`, and wait for `released`."""
        self.stalled.clear()
        self.released.clear()

        def damage(client: Any, data: bytes) -> bool:
            client.sendall(data[:after])
            self.stalled.set()
            self.released.wait()
            try:
                client.sendall(data[after:])
            except OSError:
                return False  # the client has gone, and rightly
            return True

        self._damage = damage

    def close(self) -> None:
        self.released.set()
        self.refuse()

    def _serve(self, client: Any, address: object) -> None:
        import gevent.socket  # which gives way unpatched, too

        self.connections += 1
        try:
            server = gevent.socket.create_connection(("127.0.0.1", self.server_port))
        except OSError:
            client.close()
            return
        pair = (client, server)
        self._pairs.add(pair)
        to_server = gevent.spawn(self._forward, client, server, False)
        try:
            self._forward(server, client, True)
        finally:
            to_server.kill()
            client.close()
            server.close()
            self._pairs.discard(pair)

    def _forward(self, source: Any, sink: Any, answers: bool) -> None:
        try:
            while data := source.recv(65536):
                damage = None
                if answers:
                    damage, self._damage = self._damage, None
                if damage is None:
                    sink.sendall(data)
                elif not damage(sink, data):
                    return
        except OSError:
            pass
        finally:
            try:
                sink.shutdown(socket.SHUT_WR)
            except OSError:
                pass
