"""Compare Twisted's own tests on our reactors with the same tests on the stock ones.

    python tests/conformance/compare.py [--variant VARIANT ...] [--jobs N] [TEST ...]

A variant is a kind of reactor (native, asyncio, poll, select), or KIND+patched: ours under
``gevent.monkey.patch_all()``, compared with the stock reactor of that kind, unpatched. All run now,
on this machine. Exit status 0: no test that passes on the stock reactor ends otherwise on ours, but
for those listed in known.txt; each of those does, or is listed as a race; and the proof that is
given there for it holds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from suite import REACTORS, known

SUITE = Path(__file__).with_name("suite.py")
VARIANTS = ["native", "native+patched", "asyncio", "asyncio+patched"]

Outcomes = dict[str, list[str]]


def run(variant: str, tests: list[str], *options: str) -> Outcomes:
    """Run the tests in a process of their own."""
    kind, _, patched = variant.partition("+")
    options = (f"--{patched}", *options) if patched else options
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "outcomes")
        python = [sys.executable, "-X", "faulthandler"]
        command = [*python, str(SUITE), kind, "--out", str(out), *options, *tests]
        with Path(folder, "output").open("w+") as output:
            # Unbuffered: so that a traceback is what comes last.
            env = {**os.environ, "PYTHONUNBUFFERED": "1"}
            done = subprocess.run(command, stdout=output, stderr=output, cwd=folder, env=env)
            if done.returncode or not out.exists():
                output.seek(0)
                status = f"{command} failed with status {done.returncode}"
                last = Path(f"{out}.log").read_text().splitlines()[-1:]
                raise SystemExit(
                    f"{status}:\n{output.read()[-5000:]}\n"
                    f"{variant}: FAILS TO END: status {done.returncode}, last test: {last}"
                )
        outcomes: Outcomes = json.loads(out.read_text())
    counts = {what: sum(o[0] == what for o in outcomes.values()) for what in ("passed", "skipped")}
    print(f"{variant:16} {len(outcomes)} tests {' '.join(options)}: {counts}", flush=True)
    return outcomes


def differences(stock: Outcomes, ours: Outcomes) -> dict[str, str]:
    """The tests that pass on the stock reactor, and how they end on ours if not so."""
    return {
        name: ours.get(name, ["missing", "missing"])[1]
        for name, (outcome, _) in stock.items()
        if outcome == "passed" and ours.get(name, ["missing"])[0] != "passed"
    }


def module_of(test: str) -> str:
    return test.rpartition(".")[0].rpartition(".")[0]


def good(variant: str, stock: Outcomes, ours: Outcomes) -> bool:
    """Is all as it should be with one variant of ours?"""
    expected = {test: entry for test, entry in known("fail", variant).items() if test in stock}
    races = {test: entry for test, entry in known("race", variant).items() if test in stock}
    different = differences(stock, ours)
    for test in races:  # as they like
        different.pop(test, None)
    surprises = [*(different.keys() - expected.keys()), *(expected.keys() - different.keys())]
    if surprises:
        # Some of Twisted's tests go by the clock. Those that differ get a second chance, on both
        # reactors, by themselves: a difference of ours shows again.
        modules = sorted({module_of(test) for test in surprises})
        kind = variant.partition("+")[0]
        again = differences(run(kind, modules, "--stock"), run(variant, modules))
        for test in surprises:
            different.pop(test, None)
        different.update({test: again[test] for test in surprises if test in again})
    for test in different.keys() - expected.keys():
        print(f"\n{variant}: FAILS ON OURS ONLY: {test}\n{different[test]}")
    for test in expected.keys() - different.keys():
        print(f"\n{variant}: IN known.txt, BUT PASSES: {test}")
    to_prove = expected | races
    proofs = sorted({entry[0] for entry in to_prove.values()})
    proven = [proved(variant, proof, to_prove) for proof in proofs]
    return expected.keys() == different.keys() and all(proven)


def proved(variant: str, proof: str, expected: dict[str, list[str]]) -> bool:
    """Do those that fail, or may, pass with the option that is said to prove why?"""
    tests = [test for test, entry in expected.items() if entry[0] == proof]
    outcomes = run(variant, sorted({module_of(test) for test in tests}), proof)
    wrong = [test for test in tests if outcomes.get(test, ["missing"])[0] != "passed"]
    for test in wrong:
        print(f"\n{variant}: NOT PROVED BY {proof}: {test}")
    return not wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = [*REACTORS, *(f"{kind}+patched" for kind in REACTORS)]
    parser.add_argument("--variant", action="append", choices=choices)
    parser.add_argument("--jobs", type=int, default=2, help="how many run side by side")
    parser.add_argument("tests", nargs="*", default=["twisted"])
    options = parser.parse_intermixed_args()
    variants = options.variant or VARIANTS
    kinds = dict.fromkeys(variant.partition("+")[0] for variant in variants)
    with ThreadPoolExecutor(options.jobs) as jobs:
        stock = {kind: jobs.submit(run, kind, options.tests, "--stock") for kind in kinds}
        ours = {variant: jobs.submit(run, variant, options.tests) for variant in variants}
    results = [
        good(variant, stock[variant.partition("+")[0]].result(), ours[variant].result())
        for variant in variants
    ]
    print(f"variants compared: {sum(results)} as they should be, {results.count(False)} not")
    return not all(results)


if __name__ == "__main__":
    sys.exit(main())
