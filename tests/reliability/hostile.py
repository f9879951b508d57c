"""A server that delays, resets, half-answers and stalls: ``python hostile.py``.

It prints its port and ends when its standard input does. The client says in a line how it is to
be treated: ``answer``, ``delay MILLISECONDS``, ``reset``, ``half`` or ``stall``.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys


async def treat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        how, *rest = (await reader.readline()).split() or [b"nothing"]
        if how == b"delay":
            await asyncio.sleep(int(rest[0]) / 1000)
        if how in (b"answer", b"delay"):
            writer.write(b"ok\n")
        elif how == b"half":
            writer.write(b"o")
        elif how == b"reset":
            # By itself, abort() is an end like any other to the client.
            linger = struct.pack("ii", 1, 0)
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            return
        elif how == b"stall":
            await reader.read()  # until the client gives up
        writer.close()
        await writer.wait_closed()
    except OSError:
        writer.transport.abort()


async def main() -> None:
    # On all addresses: a client that uses many of 127.0.0.0/8 does not run out of ports.
    server = await asyncio.start_server(treat, "0.0.0.0", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
