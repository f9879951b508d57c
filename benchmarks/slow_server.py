"""A web server in a process of its own, for the benchmarks to call."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType

_SERVER = r"""
import asyncio, sys

ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 19\r\n\r\n"
    b"slow, but worth it\n"
)

class Slow(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.request = b""

    def data_received(self, data):
        self.request += data
        while b"\r\n\r\n" in self.request:
            self.request = self.request.partition(b"\r\n\r\n")[2]
            loop.call_later(float(sys.argv[1]), self.transport.write, ANSWER)

async def main():
    global loop
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Slow, "127.0.0.1", 0, backlog=5000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


class SlowServer:
    """A web server whose every page takes so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(seconds)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}/"

    def __enter__(self) -> SlowServer:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
