"""What an installation has, besides the modules."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from programs import LIMIT

import greendefer

# Root may write everywhere, unless that is taken away.
AS_ANYBODY = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
PREFIX = AS_ANYBODY if os.environ.get("GREENDEFER_TEST_READ_ONLY") and os.getuid() == 0 else []


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        [*PREFIX, sys.executable, *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_version_is_in_one_place() -> None:
    assert metadata.version("greendefer") == greendefer.__version__


def test_types_come_with_it() -> None:
    assert (Path(greendefer.__file__).parent / "py.typed").exists()


def test_it_needs_three_packages() -> None:
    required = metadata.requires("greendefer") or []
    names = {re.split(r"[^\w-]", each)[0] for each in required if "extra ==" not in each}
    assert names == {"twisted", "gevent", "wrapt"}


@pytest.mark.parametrize("reactor", ["gevent", "gevent-asyncio"])
def test_twisted_has_the_reactor_by_its_name(reactor: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from twisted.trial.unittest import TestCase\n"
        "from twisted.internet import reactor\n"
        "import greendefer\n"
        "class Tests(TestCase):\n"
        "    def test_it(self):\n"
        "        print(type(reactor).__name__)\n"
        "        return greendefer.defer_to_greenlet(int, '7')\n"
    )
    said = run("-B", "-m", "twisted.trial", f"--reactor={reactor}", "test_it", cwd=tmp_path)
    assert "PASSED (successes=1)" in said
    assert "Gevent" in said


def test_the_reactors_are_listed(tmp_path: Path) -> None:
    listed = run("-B", "-m", "twisted.trial", "--help-reactors", cwd=tmp_path)
    assert "gevent-asyncio" in listed
    assert "Traceback" not in listed


@pytest.mark.skipif(
    "GREENDEFER_TEST_READ_ONLY" not in os.environ, reason="nox -s package makes it read-only"
)
def test_nothing_was_written_into_a_read_only_installation(tmp_path: Path) -> None:
    plugins = Path(greendefer.__file__).parent.parent / "twisted" / "plugins"
    assert (plugins / "greendefer_reactors.py").exists()
    probe = f"open({str(plugins / 'probe')!r}, 'w')"
    with pytest.raises(AssertionError, match="PermissionError"):
        run("-c", probe, cwd=tmp_path)
    before = sorted(plugins.iterdir())
    run("-B", "-m", "twisted.trial", "--help-reactors", cwd=tmp_path)
    assert sorted(plugins.iterdir()) == before
