"""Compare Twisted's own tests on our reactor with the same tests on the stock one.

    python tests/conformance/compare.py [TEST ...]

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

from suite import known

HERE = Path(__file__).parent
TESTS = ["twisted.internet.test", "twisted.test"]

Outcomes = dict[str, list[str]]


def run(reactor: str, out: Path, *tests: str) -> Outcomes:
    """Run the tests in a process of their own."""
    suite = [sys.executable, str(HERE / "suite.py"), reactor, "--out", str(out)]
    with (out.parent / f"{out.name}.output").open("w") as output:
        subprocess.run([*suite, *tests], stdout=output, stderr=output, cwd=out.parent, check=True)
    outcomes: Outcomes = json.loads(out.read_text())
    count = {kind: sum(o[0] == kind for o in outcomes.values()) for kind in ("passed", "skipped")}
    print(f"{reactor:8} {len(outcomes)} tests: {count}", flush=True)
    return outcomes


def differences(stock: Outcomes, ours: Outcomes) -> list[str]:
    """The tests that pass on the stock reactor, and do not pass on ours."""
    return sorted(
        name
        for name, (outcome, _) in stock.items()
        if outcome == "passed" and ours.get(name, ["missing"])[0] != "passed"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*", default=TESTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        stock = run("stock", folder / "stock", *options.tests)
        ours = run("green", folder / "green", *options.tests)
        different = differences(stock, ours)
        if different:
            # Some of Twisted's tests go by the clock. Those that differ get a second chance, on
            # both reactors, by themselves: a difference of ours shows again.
            print(f"again: {len(different)} tests", flush=True)
            names = sorted({name.rpartition(".")[0].rpartition(".")[0] for name in different})
            stock_again = run("stock", folder / "stock2", *names)
            ours_again = run("green", folder / "green2", *names)
            confirmed = set(differences(stock_again, ours_again))
            different = [name for name in different if name in confirmed]
            for name in different:
                print(f"\n{name}\n{ours_again.get(name, ['', 'missing'])[1]}")
    expected = known("fail")
    new = [name for name in different if name not in expected]
    unneeded = [name for name in expected if name not in different]
    for name in new:
        print(f"FAILS ON OURS ONLY: {name}")
    for name in unneeded:
        print(f"IN known.txt, BUT PASSES: {name}")
    passed = sum(outcome == "passed" for outcome, _ in ours.values())
    print(f"conformance: {passed} passed, {len(new) + len(unneeded)} failed")
    return bool(new or unneeded)


if __name__ == "__main__":
    sys.exit(main())
