"""What the source promises whoever reads it: one reason for each module, and no circles."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from programs import LIMIT

import greendefer

FOLDER = Path(greendefer.__file__).parent
ROOT = Path(__file__).parent.parent
PRINCIPLE = ROOT / "docs" / "principle.md"
WORKFLOW = ROOT / ".github" / "workflows" / "tests.yml"


def _name(path: Path) -> str:
    parts = path.relative_to(FOLDER.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(FOLDER.rglob("*.py"))}


def imported(tree: ast.AST, package: list[str]) -> set[str]:
    """What it imports wherever it runs, in functions, too; but not for types alone."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for each in node.orelse:
                found |= imported(each, package)
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        found |= imported(node, package)
    return found


def imports_of(name: str) -> set[str]:
    path = MODULES[name]
    package = name.split(".")
    if path.name != "__init__.py":
        package.pop()
    found = imported(ast.parse(path.read_text()), package) & MODULES.keys()
    # A package, for one of its modules, is only where that is.
    return {each for each in found if each != name and not _is_a_way_to(each, found)}


def _is_a_way_to(package: str, others: set[str]) -> bool:
    return any(each.startswith(f"{package}.") for each in others)


def test_no_module_imports_itself_in_a_circle() -> None:
    left = {name: imports_of(name) for name in MODULES}
    assert "greendefer._runtime" in left["greendefer._admission"]
    assert "greendefer._carriers.greenlets" in set().union(*left.values())
    while ends := [name for name, imports in left.items() if not imports & left.keys()]:
        for name in ends:
            del left[name]
    assert not left, f"in a circle, or above one: {left}"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_for_in_its_first_line(name: str) -> None:
    text = MODULES[name].read_text()
    assert text.startswith('"""')
    assert ast.get_docstring(ast.parse(text))


def test_names_that_are_imported_when_they_are_asked_for() -> None:
    program = """
        import sys
        import greendefer

        later = ("BlockingIterator", "GreenIterator", "PoolStats", "green_proxy", "in_order")
        assert not {*later, "start_reactor"} & vars(greendefer).keys()
        assert set(greendefer.__all__) <= set(dir(greendefer))
        modules = {f"greendefer.{name}" for name in ("_blocking", "_crossing", "_proxy", "_stream")}
        assert not modules & sys.modules.keys()
        assert not hasattr(greendefer, "no_such_name")

        from greendefer import *
        assert set(greendefer.__all__) <= globals().keys()
        assert green_proxy is greendefer.green_proxy
        assert green_proxy.__module__ == "greendefer._proxy"
        assert greendefer.GreenPool(1).stats().__class__ is PoolStats
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=LIMIT)


def test_what_is_patched_is_asked_of_gevent_where_a_program_has_its_patcher() -> None:
    program = """
        import sys
        import time
        import gevent

        before = {name for name in sys.modules if name.startswith("gevent.monkey")}
        sleep = time.sleep
        import greendefer
        from greendefer._patched import is_patched, original, patched_modules

        assert {name for name in sys.modules if name.startswith("gevent.monkey")} == before
        assert not is_patched("time") and not is_patched("time", "sleep") and not patched_modules()
        assert original("time", "sleep") is sleep

        from gevent import monkey
        monkey.patch_time()
        assert is_patched("time") and is_patched("time", "sleep") and not is_patched("time", "time")
        assert patched_modules() == {"time"}
        assert original("time", "sleep") is sleep is not time.sleep
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=LIMIT)


def test_the_path_of_a_call() -> None:
    """What docs/principle.md says of it: which files a decorated call goes through, to its end."""
    program = """
        import sys
        from pathlib import Path

        import greendefer

        greendefer.install()
        from twisted.internet import reactor

        folder = Path(greendefer.__file__).parent
        files = set()

        def trace(frame, event, arg):
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(folder):
                files.add(path.relative_to(folder).as_posix())

        @greendefer.green_deferred
        def function():
            sys.setprofile(trace)  # its greenlet may have a profiler of its own

        def call():
            function().addCallback(lambda _: call_again())  # the pool is there now

        def call_again():
            sys.setprofile(trace)
            function().addCallback(lambda _: done())

        def done():
            sys.setprofile(None)
            reactor.stop()

        reactor.callWhenRunning(call)
        reactor.run()
        print(*files)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=LIMIT)
    # Not what the reactor does of its own (who watches it may be asleep, and is woken then by a
    # native lock), nor the log context.
    others = {"_holdups.py", "_carriers/native.py", "_twistedcontext.py"}
    (row,) = [
        line for line in PRINCIPLE.read_text().splitlines() if "a decorated function?" in line
    ]
    files = {each for each in done.stdout.split() if not each.startswith("_reactor/")} - others
    assert files == set(re.findall(r"`(\S+\.py)`", row))


def test_ci_runs_every_session() -> None:
    """The audit of the dependencies among them."""
    if not WORKFLOW.exists():
        pytest.skip("an sdist has no workflows")
    sessions = [
        node.name
        for node in ast.parse((ROOT / "noxfile.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
        and any("nox.session" in ast.unparse(each) for each in node.decorator_list)
    ]
    assert "audit" in sessions
    # What is measured is for a quiet machine; `reliability` is a part of the tests, or is long.
    not_there = {"benchmarks", "benchmarks_small", "reliability"}
    text = WORKFLOW.read_text()
    missing = [name for name in sessions if not re.search(rf"(- |nox -s \"?){name}\b", text)]
    assert set(missing) == not_there
