"""Every block of code in README.md and docs/ is run as it stands there: see pages.py."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path
from typing import Any

import pages
import pytest
from programs import LIMIT
from servers import PostgreSQL

STRICT = bool(os.environ.get("GREENDEFER_TEST_DOCS"))
"""Whatever is missing is a failure: so it is in ``nox -s docs``."""
PAGES = [pages.read(path) for path in pages.PAGES]
WITH_FILES = [page for page in PAGES if page.files]
FRAGMENTS = [
    (page, n, block)
    for page in PAGES
    for n, block in enumerate(block for block in page.python if not block.file)
]

pytestmark = pytest.mark.skipif(
    "gevent.monkey" in sys.orig_argv, reason="each program patches by itself"
)


def needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        if STRICT:
            pytest.fail(f"{module} is not installed")
        pytest.skip(f"{module} is not installed")


@pytest.fixture(scope="module")
def postgresql() -> Iterator[dict[str, str]]:
    """Where a private server is, as libpq wants to know it."""
    needs("psycopg")
    server = PostgreSQL()
    yield {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": "postgres"}
    server.remove()


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Unhandled error" not in done.stderr, done.stderr
    return done


def imports_of(text: str) -> Iterator[str]:
    """The packages that a program imports."""
    yield from re.findall(r"^\s*(?:import|from) (\w+)", text, re.M)


def prepare(page: pages.Page, text: str, request: Any) -> dict[str, str]:
    """Skip where something is missing; else the environment that a program needs."""
    for module in imports_of(text):
        if f"{module}.py" not in page.files:
            needs(module)
    environment: dict[str, str] = {}
    if "psycopg" in text:
        environment = request.getfixturevalue("postgresql")
    return environment


@pytest.mark.parametrize("page", WITH_FILES, ids=lambda page: page.name)
def test_files(page: pages.Page, tmp_path: Path, request: Any) -> None:
    for name, text in page.files.items():
        (tmp_path / name).write_text(text)
    for block in page.python:
        name = block.file
        if name is None:
            continue
        if name.startswith("test_"):
            continue  # test_commands
        environment = prepare(page, block.text, request)
        said = run(tmp_path, sys.executable, name, **environment).stdout
        if block.output is not None:
            assert OutputChecker().check_output(block.output, said, ELLIPSIS), (
                f"{page.name}:{block.line} prints:\n{said}\nand not, as it says:\n{block.output}"
            )


@pytest.mark.parametrize(
    ("page", "n", "block"), FRAGMENTS, ids=lambda value: getattr(value, "name", None)
)
def test_fragments(
    page: pages.Page, n: int, block: pages.Block, tmp_path: Path, request: Any
) -> None:
    settings = pages.FRAGMENTS.get(page.name, [])
    assert n < len(settings), (
        f"{page.name}:{block.line}: nobody runs this block. Make it a file of its own (# file: "
        f"NAME), or say in tests/pages.py what is around it:\n{block.text}"
    )
    setting = settings[n]
    program = pages.program(block, setting)
    environment = prepare(page, program, request)
    for name, text in page.files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "fragment.py").write_text(program)
    said = run(tmp_path, sys.executable, "fragment.py", **environment).stdout
    if block.output is not None:
        assert OutputChecker().check_output(block.output, said, ELLIPSIS), said


def test_no_setting_is_left_over() -> None:
    for name, settings in pages.FRAGMENTS.items():
        blocks = [block for page, _, block in FRAGMENTS if page.name == name]
        assert len(settings) == len(blocks), name


@pytest.mark.parametrize("page", WITH_FILES, ids=lambda page: page.name)
def test_commands(page: pages.Page, tmp_path: Path) -> None:
    """What a page has its reader test is tested."""
    tests = [name for name in page.files if name.startswith("test_")]
    commands = [
        shlex.split(line)
        for block in page.blocks
        if block.language == "sh"
        for line in block.text.splitlines()
        if " test_" in line
    ]
    assert {name[:-3] for name in tests} == {
        Path(command[-1]).name.removesuffix(".py") for command in commands
    }
    for name, text in page.files.items():
        (tmp_path / name).write_text(text)
    for python, *rest in commands:
        assert python == "python"
        said = run(tmp_path, sys.executable, *rest)
        assert re.search(r"PASSED|\d passed", said.stdout + said.stderr)


def is_run(path: Path) -> bool:
    """Does any test run this example? A module of a larger one is run with it."""
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    name = path.relative_to(pages.ROOT / "examples").as_posix()
    is_program = "react(" in path.read_text() or "__main__" in path.read_text()
    return (name if is_program else f"{name.partition('/')[0]}/") in tests


def test_every_example_is_run_by_a_test() -> None:
    for path in (pages.ROOT / "examples").rglob("*.py"):
        assert is_run(path), path


def test_included_files_are_examples() -> None:
    included = {path for page in PAGES for path in page.included}
    assert included
    for path in included:
        assert path.exists()
        assert pages.ROOT / "examples" in path.parents


def test_the_guide_has_types(tmp_path: Path) -> None:
    if importlib.util.find_spec("mypy") is None:
        assert not os.environ.get("GREENDEFER_TEST_SDKS"), "mypy is not installed"
        pytest.skip("mypy is not installed")
    (guide,) = (page for page in PAGES if page.path.name == "wrapping-an-sdk.md")
    for name, text in guide.files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "uses.py").write_text(
        "import txacme\n"
        "from twisted.internet.defer import Deferred\n"
        "from typing_extensions import assert_type\n"
        'client = txacme.connect("h")\n'
        'assert_type(client.get("k"), Deferred[dict[str, str]])\n'
        'assert_type(txacme.ByHand("h").get("k"), Deferred[dict[str, str]])\n'
        "client.get(1)  # type: ignore[arg-type]\n"
        'txacme.ByHand("h").scan()  # type: ignore[call-arg]\n'
    )
    (tmp_path / "mypy.ini").write_text("[mypy-acme]\nignore_errors = True\n")
    mypy = ("-m", "mypy", "--strict", "--allow-untyped-calls", "uses.py")
    assert "Success" in run(tmp_path, sys.executable, *mypy).stdout


def test_links_to_the_repository_lead_to_its_files() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.path.read_text()):
            _, blob, path = link.partition("https://github.com/greendefer/greendefer/blob/main/")
            if blob:
                assert (pages.ROOT / path).exists(), f"{page.name}: {link}"
            elif "://" not in link and not link.startswith("mailto:"):
                there = page.path.parent / link
                assert there.exists(), f"{page.name}: {link}"
