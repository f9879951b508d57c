"""``python -m greendefer`` and ``python -m greendefer.doctor``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import LIMIT

from greendefer import doctor

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run ``python`` in an empty folder."""

    def run(*args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-W", "error", *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


# A Twisted program that knows nothing of greendefer: two calls that block wait together.
PROGRAM = """
import sys, threading, time
from threading import Barrier
from twisted.internet import reactor
import helper
from wrapt import synchronized
try:
    from wrapt.synchronization import Lock
except ImportError:  # before wrapt 2
    from wrapt.decorators import Lock

assert Lock is threading.Lock
together = Barrier(2)

def main():
    together.wait(20)
    return threading.current_thread() is not threading.main_thread()

ended = []

def done(result):
    ended.append(result)
    if len(ended) == 2:
        print(type(reactor).__name__, __name__, *sys.argv[1:], *ended)
        reactor.stop()

for _ in range(2):
    reactor.deferToGreenlet(main).addBoth(done)
reactor.run()
"""


class TestMain:
    def test_a_script(self, run: Run, tmp_path: Path) -> None:
        """What is beside it can be imported, wherever it is run from."""
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        (folder / "helper.py").write_text("")
        (folder / "program.py").write_text(PROGRAM)
        done = run("-m", "greendefer", "elsewhere/program.py", "--reactor", "x")
        assert done.stdout == f"{_native()} __main__ --reactor x True True\n"
        assert done.stderr == ""

    @pytest.mark.parametrize("option", [["--reactor", "asyncio"], ["--reactor=asyncio"]])
    def test_a_module(self, option: list[str], run: Run, tmp_path: Path) -> None:
        """From the current folder."""
        (tmp_path / "helper.py").write_text("")
        (tmp_path / "program.py").write_text(PROGRAM)
        done = run("-m", "greendefer", *option, "-m", "program", "-h")
        assert done.stdout == "GeventAsyncioReactor __main__ -h True True\n"

    def test_a_programs_exit_status(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text("import sys; sys.exit(3)")
        run("-m", "greendefer", "program.py", code=3)
        (tmp_path / "program.py").write_text("1 // 0")
        assert "ZeroDivisionError" in run("-m", "greendefer", "program.py", code=1).stderr

    def test_help(self, run: Run) -> None:
        assert run("-m", "greendefer", "--help").stdout.startswith("usage: python -m greendefer")

    @pytest.mark.parametrize(
        ("args", "why"),
        [
            ([], "which program?"),
            (["-m"], "which program?"),
            (["nowhere.py"], "can't open file 'nowhere.py'"),
            (["--reactor"], "--reactor which?"),
            (["--reactor", "bad", "x"], "--reactor must be one of native, poll,"),
            (["--what", "x"], "unknown option --what"),
        ],
    )
    def test_it_is_refused(self, args: list[str], why: str, run: Run) -> None:
        done = run("-m", "greendefer", *args, code=2)
        assert why in done.stderr
        assert "usage:" in done.stderr


def _native() -> str:
    from twisted.internet import reactor

    return type(reactor).__name__


class TestDoctor:
    def test_of_an_unpatched_process(self, run: Run) -> None:
        done = run("-m", "greendefer.doctor", code=1)
        assert "BLOCKS  monkey.patch_all(): Nothing is patched" in done.stdout
        assert "`python -m greendefer SCRIPT`" in done.stdout
        assert "BLOCKS  requests" in done.stdout
        assert "note    reactor: None is installed yet." in done.stdout

    def test_of_a_program_run_by_greendefer(self, run: Run) -> None:
        """Nothing that greendefer itself brings is in the way. (Drivers may be.)"""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "greendefer", "-m", "greendefer.doctor"],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert "ok      monkey.patch_all()" in done.stdout, done.stderr
        assert "waits in gevent's hub" in done.stdout
        assert "ok      requests" in done.stdout
        assert "note    sqlite3" in done.stdout
        assert "BLOCKS  import" not in done.stdout

    def test_help(self, run: Run) -> None:
        done = run("-m", "greendefer.doctor", "--help")
        assert "print(greendefer.doctor.report())" in done.stdout
        assert "BLOCKS" not in done.stdout

    def test_it_does_not_look_at_a_script(self, run: Run) -> None:
        """And does not look as if it had."""
        done = run("-m", "greendefer.doctor", "service.py", code=2)
        assert "takes no arguments, not 'service.py'" in done.stderr
        assert "have that print(greendefer.doctor.report())" in done.stderr
        assert done.stdout == ""

    def test_it_installs_no_reactor(self, run: Run) -> None:
        run("-c", "import sys, greendefer.doctor as d; d.report(); "
            "assert 'twisted.internet.reactor' not in sys.modules")  # fmt: skip

    @pytest.mark.parametrize(
        ("program", "finding"),
        [
            (
                "from twisted.internet import reactor",
                "BLOCKS  reactor: twisted.internet.epollreactor.EPollReactor does not run on",
            ),
            (
                "import greendefer; greendefer.install(threads='green')",
                "note    reactor.getThreadPool(): Greenlets.",
            ),
            (
                "from gevent import monkey; monkey.patch_all(thread=False)",
                "BLOCKS  monkey.patch_all(): Patched, but not threading",
            ),
            (
                "import requests.sessions; from gevent import monkey; monkey.patch_all()",
                "BLOCKS  import ",
            ),
            (
                "import os; os.environ['GEVENT_RESOLVER'] = 'block'\n"
                "from gevent import monkey; monkey.patch_all()",
                "BLOCKS  socket.getaddrinfo: GEVENT_RESOLVER is",
            ),
            (
                "import os; os.environ['GEVENT_RESOLVER'] = 'ares'\n"
                "from gevent import monkey; monkey.patch_all()",
                "ok      socket.getaddrinfo: gevent.resolver.ares",
            ),
        ],
    )
    def test_of_a_program(self, program: str, finding: str, run: Run) -> None:
        done = run(
            "-W", "ignore", "-c", f"{program}\nimport greendefer.doctor as d\nprint(d.report())"
        )
        assert finding in done.stdout


def test_a_module_that_was_patched_too_late(tmp_path: Path, run: Run) -> None:
    """It is named, with what it has kept; the standard library and Twisted are not."""
    (tmp_path / "early.py").write_text("from socket import create_connection as c, socket\n")
    done = run(
        "-W",
        "ignore",
        "-c",
        "import early; from gevent import monkey; monkey.patch_all()\n"
        "import greendefer.doctor as d; print(d.report())",
    )
    lines = [line for line in done.stdout.splitlines() if "BLOCKS  import" in line]
    assert lines == [
        "BLOCKS  import early: It was imported before the patch, and keeps "
        "socket.create_connection, socket.socket."
    ]


def test_the_doctor_where_no_driver_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda module: False)
    assert list(doctor._in_c()) == []


def test_the_doctor_where_a_folder_has_a_drivers_name(tmp_path: Path, run: Run) -> None:
    """To Python that is a package, too; a program may have its examples for Django in there."""
    for name in "django", "redis", "no_such_driver":
        (tmp_path / name).mkdir()
    done = run(
        "-c",
        "from greendefer import doctor; print(doctor.report()); "
        "print(doctor._installed('no_such_driver'))",
    )
    assert "redis ?" not in done.stdout
    assert done.stdout.endswith("False\n")
