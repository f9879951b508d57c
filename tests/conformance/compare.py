"""Compare Twisted's own tests on our reactors with the same tests on the stock ones.

    python tests/conformance/compare.py [--kind KIND ...] [TEST ...]

Both run now, on this machine. Exit status 0: no test that passes on the stock reactor ends
otherwise on ours, but for those listed in known.txt; and each of those does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from suite import REACTORS, known

SUITE = Path(__file__).with_name("suite.py")
TESTS = ["twisted.internet.test", "twisted.test"]

Outcomes = dict[str, list[str]]


def run(kind: str, stock: bool, tests: list[str]) -> Outcomes:
    """Run the tests in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "outcomes")
        command = [sys.executable, str(SUITE), kind, "--out", str(out)] + ["--stock"] * stock
        with Path(folder, "output").open("w+") as output:
            done = subprocess.run([*command, *tests], stdout=output, stderr=output, cwd=folder)
            if done.returncode:
                output.seek(0)
                raise SystemExit(f"{command} failed:\n{output.read()[-5000:]}")
        outcomes: Outcomes = json.loads(out.read_text())
    counts = {what: sum(o[0] == what for o in outcomes.values()) for what in ("passed", "skipped")}
    who = "stock" if stock else "ours"
    print(f"{kind:8} {who:6} {len(outcomes)} tests: {counts}", flush=True)
    return outcomes


def differences(kind: str, tests: list[str]) -> dict[str, str]:
    """The tests that pass on the stock reactor, and how they end on ours if not so."""
    stock = run(kind, True, tests)
    ours = run(kind, False, tests)
    return {
        name: ours.get(name, ["missing", "missing"])[1]
        for name, (outcome, _) in stock.items()
        if outcome == "passed" and ours.get(name, ["missing"])[0] != "passed"
    }


def compare(kind: str, tests: list[str]) -> bool:
    """Is all as it should be with one kind of reactor?"""
    different = differences(kind, tests)
    if different:
        # Some of Twisted's tests go by the clock. Those that differ get a second chance, on both
        # reactors, by themselves: a difference of ours shows again.
        classes = sorted({name.rpartition(".")[0] for name in different})
        modules = sorted({name.rpartition(".")[0] for name in classes})
        print(f"{kind:8} again: {', '.join(modules)}", flush=True)
        again = differences(kind, modules)
        different = {name: again[name] for name in different if name in again}
    expected = known("fail", kind)
    for name, how in different.items():
        if name not in expected:
            print(f"\n{kind}: FAILS ON OURS ONLY: {name}\n{how}")
    for name in expected.keys() - different.keys():
        print(f"\n{kind}: IN known.txt, BUT PASSES: {name}")
    return expected.keys() == different.keys()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", action="append", choices=REACTORS)
    parser.add_argument("tests", nargs="*", default=TESTS)
    options = parser.parse_intermixed_args()
    good = [compare(kind, options.tests) for kind in options.kind or ["native", "asyncio"]]
    print(f"reactors compared: {sum(good)} passed, {len(good) - sum(good)} failed")
    return not all(good)


if __name__ == "__main__":
    sys.exit(main())
