"""twisted.web says hello: requests from wrk, over 50 connections that are kept open."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable

from harness import Bench, Missing, Round, Side, middle, run

_LATENCY = re.compile(r"^ +(50|99)%\s+([\d.]+)(us|ms|s)$", re.MULTILINE)
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def costs(said: str) -> Round:
    """What wrk has measured, from what it says."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)$", said, re.MULTILINE)
    if rate is None or "Socket errors" in said or "Non-2xx" in said:
        raise RuntimeError(said)
    latency = {
        f"p{percent} ms": float(value) * _MILLISECONDS[unit]
        for percent, value, unit in _LATENCY.findall(said)
    }
    return {"us": 1e6 / float(rate[1]), "p50 ms": latency["p50 ms"], "p99 ms": latency["p99 ms"]}


def server(wrk: str, connections: int, seconds: int) -> Callable[[], Awaitable[Round]]:
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.protocol import ProcessProtocol
    from twisted.web.resource import Resource
    from twisted.web.server import Site

    class Hello(Resource):
        isLeaf = True

        def render_GET(self, request: object) -> bytes:
            return b"Hello, world\n"

    class Output(ProcessProtocol):
        def __init__(self) -> None:
            self.said = b""
            self.ended: Deferred[str] = Deferred()

        def outReceived(self, data: bytes) -> None:
            self.said += data

        def processEnded(self, reason: object) -> None:
            self.ended.callback(self.said.decode())

    port = reactor.listenTCP(0, Site(Hello()), interface="127.0.0.1")
    url = f"http://127.0.0.1:{port.getHost().port}/"
    command = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", url]

    async def round() -> Round:
        output = Output()
        reactor.spawnProcess(output, wrk, command)
        return costs(await output.ended)

    return round


def main(bench: Bench) -> None:
    wrk = shutil.which("wrk")
    if wrk is None:
        raise Missing("wrk is not there: apt-get install wrk")
    version = subprocess.run([wrk, "-v"], capture_output=True, text=True).stdout
    bench.series["wrk"] = version.split("Copyright")[0].strip()
    options = {"wrk": wrk, "connections": bench.size(50, 2), "seconds": bench.size(2, 1)}
    samples = bench.measure(
        [
            Side("epoll", "server", "epoll", options=options),
            Side("native", "server", "green", options=options),
            Side("native, patched", "server", "green", True, options),
            Side("poll, patched", "server", "poll", True, options),
            Side("epoll, once more", "server", "epoll", options=options),
        ],
        rounds=11,
        warm_up=1,
    )
    for ours in ("native", "native, patched"):
        for cost, unit in (("us", "us a request"), ("p50 ms", "ms, p50"), ("p99 ms", "ms, p99")):
            what = f"twisted.web, {unit}: {ours}"
            row = (what, samples, ours, "epoll", cost, unit.split(",")[0].split(" ")[0])
            bench.row(*row, at_least=1.0, cpu=False)
    bench.row("twisted.web: native, patched", samples, ours, "poll, patched", "us", "us", cpu=False)
    # What two processes of the same kind differ by is what this can't tell.
    row = ("twisted.web, ms, p99: epoll, once more", samples, "epoll, once more", "epoll")
    bench.row(*row, "p99 ms", "ms", cpu=False)
    bench.series["web_server"] = {
        side: {cost: middle(samples, side, cost) for cost in ("us", "p50 ms", "p99 ms")}
        for side in samples
    }


if __name__ == "__main__":
    run(__file__, main)
