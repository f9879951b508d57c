"""The arithmetic and the protocol of benchmarks/; nox -s benchmarks_small runs all of them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from programs import LIMIT

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def harness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("harness", FOLDER / "harness.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["harness"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bench(harness: ModuleType, tmp_path: Path) -> Any:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "def says(path, what, cost):\n"
        "    def round():\n"
        "        with open(path, 'a') as f:\n"
        "            f.write(what)\n"
        "        return {'cost': cost}\n"
        "    return round\n"
        "def fails():\n"
        "    raise RuntimeError('no')\n"
    )
    return harness.Bench(str(script), False, None)


def costs(*values: float) -> list[dict[str, float]]:
    return [{"us": value, "cpu": value * 2} for value in values]


def test_the_ratio_is_the_median_within_rounds(bench: Any) -> None:
    """Not the ratio of medians: a slow moment of the machine hits both of a pair."""
    samples = {"ours": costs(1, 10, 100), "theirs": costs(4, 30, 200)}
    row = bench.row("a call", samples, "ours", "theirs", "us", "us", at_least=2)
    assert (row.ours, row.theirs, row.ratio, row.cpu_ratio) == (10, 30, 3, 3)
    assert row.quartiles == (2.5, 3.5)
    assert row.is_met


def test_at_most_is_our_cost_in_theirs(bench: Any) -> None:
    samples = {"ours": costs(2, 2, 2), "theirs": costs(4, 4, 1)}
    row = bench.row("a call", samples, "ours", "theirs", "us", "us", at_most=0.7)
    assert row.ratio == 0.5
    assert row.is_met
    row = bench.row("a call", samples, "ours", "theirs", "us", "us", at_most=0.4)
    assert not row.is_met
    assert "MISSED" in str(row)
    row = bench.row("a call", samples, "ours", "theirs", "us", "us")
    assert row.ratio == 2
    assert row.is_met is None


def test_sides_take_turns_forth_and_back(harness: ModuleType, bench: Any, tmp_path: Path) -> None:
    """Each in a process of its own, and warmed up first."""
    said = tmp_path / "said"
    sides = [
        harness.Side(what, "says", options={"path": str(said), "what": what, "cost": cost})
        for what, cost in (("a", 1.0), ("b", 2.0))
    ]
    samples = bench.measure(sides, rounds=3, warm_up=2)
    assert said.read_text() == "aabb" + "ab" + "ba" + "ab"
    assert [each["cost"] for each in samples["b"]] == [2.0] * 3
    assert all(each["cpu"] >= 0 for each in samples["a"])
    said.unlink()
    bench.measure(sides, rounds=2, fresh=True)
    assert said.read_text() == "ab" + "ba"


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -1.0])
def test_what_is_no_cost_is_refused(
    harness: ModuleType, bench: Any, tmp_path: Path, cost: float
) -> None:
    options = {"path": str(tmp_path / "said"), "what": "a", "cost": cost}
    with pytest.raises(RuntimeError, match="measured cost"):
        bench.measure([harness.Side("a", "says", options=options)], rounds=1)


def test_a_side_that_ends_early_is_an_error(
    harness: ModuleType, bench: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="'a' ended with status 1"):
        bench.measure([harness.Side("a", "fails")], rounds=1)
    assert "RuntimeError: no" in capfd.readouterr().err


def test_a_benchmark_runs_alone_and_says_its_ratio(tmp_path: Path) -> None:
    """One without servers and peers; the others run in a session of their own."""
    out = tmp_path / "out.json"
    command = [sys.executable, str(FOLDER / "items.py"), "--small", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert "green_iterator, an item, against next() in deferToThread" in done.stdout
    assert '"name": "items"' in out.read_text()


def test_wrk_s_words_are_understood(harness: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import web_server

    said = """
  Latency Distribution
     50%  917.00us
     75%    1.20ms
     99%    1.35s
  9012 requests in 2.00s, 1.23MB read
Requests/sec:   4500.00
Transfer/sec:    628.91KB
"""
    assert web_server.costs(said) == {"us": 1e6 / 4500, "p50 ms": 0.917, "p99 ms": 1350.0}
    with pytest.raises(RuntimeError):
        web_server.costs(said + "  Socket errors: connect 0, read 0, write 0, timeout 3\n")
