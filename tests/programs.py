"""The programs that tests run in processes of their own: how they start, and what they share."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
from gevent import monkey

PATCHED = monkey.is_module_patched("socket")
"""Whether these tests are patched; then their programs are, too."""
PATCH = "from gevent import monkey; monkey.patch_all()\n" if PATCHED else ""
ON_LIBUV = gevent.config.loop.__module__.startswith("gevent.libuv")
# (gevent.version_info is that of 20.0 in all that have come since.)
_GEVENT = tuple(int(part) for part in gevent.__version__.split(".")[:2])
MISSES_ENDS_PATCHED = ON_LIBUV and _GEVENT < (25, 5)
MISSES_ENDS = MISSES_ENDS_PATCHED and PATCHED
"""gevent's poll() does not tell there that a worker process has gone: see docs/limits.md."""
NO_FORK_SERVER = PATCHED and sys.version_info >= (3, 14)
"""gevent's sockets don't suit how it is asked since: see docs/limits.md."""
EXAMPLES = Path(__file__).parent.parent / "examples"
LIMIT = 120
"""Seconds after which a program is killed: one that hangs is, and a slow one is not."""

GO = """
    # Run the reactor for as long as an async function, or until the Deferred of a plain one fires.
    # Returns, or raises, what came of it.
    def go(main, **options):
        from twisted.internet import reactor
        from twisted.internet.defer import ensureDeferred
        from twisted.python.failure import Failure

        ends = []

        def end(result):
            ends.append(result)
            reactor.stop()

        # Not callWhenRunning: that is before asyncio's loop runs, on the stock reactor too.
        reactor.callLater(0, lambda: ensureDeferred(main()).addBoth(end))
        reactor.run(**options)
        (result,) = ends
        if isinstance(result, Failure):
            result.raiseException()
        return result

    # What a Deferred fails with; else what it fires with.
    async def error_of(d):
        try:
            return await d
        except Exception as e:
            return e
"""
"""What every program of ``run_program`` may use, once its reactor is installed."""


def joined(*parts: str) -> str:
    """One program of several pieces of text, each of which may be indented as a whole."""
    return "".join(map(textwrap.dedent, parts))


def run_python(
    *arguments: str | Path, check: bool = True, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, until it ends: well, if that is to be checked. One that
    hangs is killed: only that. It says first where its threads were."""
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        try:
            out, err = process.communicate(timeout=20)
        except subprocess.TimeoutExpired as e:
            # A child of its own holds its output; what is there says where it hung.
            out, err = ((each or b"").decode(errors="replace") for each in (e.output, e.stderr))
        raise AssertionError(f"It hung.\n{out}{err}") from None
    finally:
        process.kill()
    if check:
        assert process.returncode == 0, f"It ended with {process.returncode}.\n{out}{err}"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_twistd(folder: Path, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run twistd in a folder, patched if these tests are, until it ends or is a daemon. Its log is
    in ``log``."""
    twistd = Path(sys.executable).with_name("twistd")
    patch = ["-m", "gevent.monkey"] if PATCHED else []
    return run_python(*patch, twistd, *options, "--logfile=log", check=check, cwd=folder)


@contextmanager
def gunicorn(
    folder: Path, app: str, workers: int = 1, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """gunicorn with gevent's workers, for an app in that folder; and the port. It is killed at the
    end, if it has not ended by then."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        port = listening.getsockname()[1]
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", str(workers)),
                *("--no-control-socket", "--timeout", str(LIMIT)),
                *("--bind", f"fd://{listening.fileno()}", app),
            ],
            pass_fds=[listening.fileno()],
            cwd=folder,
            env={**os.environ, **environment},
        )
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()
