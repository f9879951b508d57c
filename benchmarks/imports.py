"""import greendefer, and what it needs in any case: each in a new process, all compiled before."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from time import perf_counter

from harness import Bench, Round, Side, run

NEEDED = ["twisted.internet.defer", "gevent", "wrapt"]


def imports(modules: list[str]) -> Callable[[], Round]:
    def round() -> Round:
        began = perf_counter()
        for module in modules:
            __import__(module)
        return {"ms": (perf_counter() - began) * 1e3}

    return round


def main(bench: Bench) -> None:
    theirs = "twisted.internet.defer, gevent and wrapt"
    with tempfile.TemporaryDirectory() as compiled:
        # Where bytecode goes, whoever installed the packages, and whether that may be written.
        env = {"PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        sides = [
            Side("greendefer", "imports", options={"modules": ["greendefer"]}, env=env),
            Side(theirs, "imports", options={"modules": NEEDED}, env=env),
        ]
        bench.measure(sides, rounds=1, fresh=True)
        samples = bench.measure(sides, rounds=101, fresh=True)
    bench.row("import greendefer", samples, "greendefer", theirs, "ms", "ms", at_most=1.1)


if __name__ == "__main__":
    run(__file__, main)
