"""Every block of code in docs/wrapping-an-sdk.md is run as it stands there."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parent.parent / "docs" / "wrapping-an-sdk.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """All files of the guide."""
    folder: Path = tmp_path_factory.mktemp("guide")
    for language, text in BLOCKS:
        if language == "python":
            name = re.match(r"# file: (\S+)\n", text)
            assert name, f"a block that no test runs: {text}"
            (folder / name[1]).write_text(text)
    return folder


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("one_function.py", "{'key': 'k', 'host': 'example.org'}\nno missing\n"),
        ("txacme_short.py", ""),
        ("streams.py", "1000 keys\nstopped at b10\nphotos/k: 5\n"),
        ("transactions.py", "['one', 'two']\nrolled back ['one', 'two']\n"),
    ],
)
def test_programs(folder: Path, program: str, says: str) -> None:
    assert run(folder, sys.executable, program) == says


def test_commands(folder: Path) -> None:
    (command,) = [text for language, text in BLOCKS if language == "sh"]
    python, *rest = shlex.split(command)
    assert python == "python"
    assert "PASSED (successes=4)" in run(folder, sys.executable, *rest)


def test_types(folder: Path) -> None:
    if importlib.util.find_spec("mypy") is None:
        assert not os.environ.get("GREENDEFER_TEST_SDKS"), "mypy is not installed"
        pytest.skip("mypy is not installed")
    (folder / "uses.py").write_text(
        "import txacme\n"
        "from twisted.internet.defer import Deferred\n"
        "from typing_extensions import assert_type\n"
        'client = txacme.connect("h")\n'
        'assert_type(client.get("k"), Deferred[dict[str, str]])\n'
        'assert_type(txacme.ByHand("h").get("k"), Deferred[dict[str, str]])\n'
        "client.get(1)  # type: ignore[arg-type]\n"
        'txacme.ByHand("h").scan()  # type: ignore[call-arg]\n'
    )
    (folder / "mypy.ini").write_text("[mypy-acme]\nignore_errors = True\n")
    mypy = ("-m", "mypy", "--strict", "--allow-untyped-calls", "uses.py")
    assert "Success" in run(folder, sys.executable, *mypy)
