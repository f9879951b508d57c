"""Paired measurements: each side in a process of its own, side by side in one run.

Absolute times mean little on a machine that is shared. So the processes of all sides live at the
same time, and take turns: a round of each, in alternating order, again and again. What is reported
is the median, over the rounds, of the ratio within a round. While it is not its turn a side is
parked in a read, and uses no time at all.

A benchmark is a script: its sides are functions, which run in child processes (``child.py``), and
its ``main`` function measures them. Everything that is measured is a cost: the lower the better.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

HERE = Path(__file__).resolve().parent
SECONDS_A_ROUND = 120.0
"""How long a round may take, before it counts as stuck."""

Round = dict[str, float]
Samples = dict[str, list[Round]]
"""By the name of a side: what its rounds have measured."""


@dataclass(frozen=True)
class Side:
    """One way to do a thing, and the process that it runs in.

    :ivar name: for people.
    :ivar function: a function of the benchmark's script. It gets the options, and returns a round:
        a function that measures something and returns costs by name. That is a coroutine function
        where a loop runs.
    :ivar loop: what runs there: ``"green"`` and ``"green-asyncio"`` are greendefer's reactors,
        ``"epoll"``, ``"poll"`` and ``"stock-asyncio"`` Twisted's own, ``"asyncio"`` no reactor.
        ``None``: a round is a plain function.
    :ivar patched: under ``gevent.monkey.patch_all()``.
    :ivar options: keyword arguments of the function.
    :ivar env: environment variables.
    """

    name: str
    function: str
    loop: str | None = None
    patched: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    :ivar what: what was measured, and `against` what. (``""``: it is an absolute number.)
    :ivar ours: our cost and `theirs`, medians, in `unit`.
    :ivar ratio: the median of the ratios of all rounds: theirs to ours where `better` is
        ``"at least"``, else ours to theirs. The absolute number, where there is no peer.
    :ivar quartiles: the lower and the upper one of the same.
    :ivar cpu_ratio: the same ratio of processor time, where a round is all there is to a side.
    :ivar target: what it should be; ``None`` where a peer is only there to be seen.
    """

    what: str
    against: str
    unit: str
    ours: float
    theirs: float | None
    ratio: float
    quartiles: tuple[float, float]
    cpu_ratio: float | None
    better: str
    target: float | None

    @property
    def is_met(self) -> bool | None:
        if self.target is None:
            return None
        return self.ratio >= self.target if self.better == "at least" else self.ratio <= self.target

    def __str__(self) -> str:
        if self.theirs is None:
            text = f"{self.what}: {number(self.ours)} {self.unit}"
        else:
            text = (
                f"{self.what}, against {self.against}: {number(self.ours)} to "
                f"{number(self.theirs)} {self.unit}, ratio {number(self.ratio)}x "
                f"({number(self.quartiles[0])} to {number(self.quartiles[1])})"
            )
            if self.cpu_ratio is not None:
                text += f", by processor time {number(self.cpu_ratio)}x"
        if self.target is not None:
            text += f"; {self.better} {self.target:g}: {'met' if self.is_met else 'MISSED'}"
        return text


def number(x: float) -> str:
    """Three digits that count."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


class Missing(Exception):
    """Something that is not Python's must be installed first; it says what, and how."""


class Child:
    """The process of one side."""

    def __init__(self, script: Path, side: Side) -> None:
        task = {**asdict(side), "script": str(script)}
        self.side = side
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "child.py"), json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **side.env},
        )
        self._listen()

    def _listen(self) -> Any:
        """What it says next."""
        process = self._process
        stuck = threading.Timer(SECONDS_A_ROUND, process.kill)
        stuck.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
        finally:
            stuck.cancel()
        if not line:
            raise RuntimeError(f"{self.side.name!r} ended with status {process.wait()}")
        return json.loads(line)

    def round(self) -> Round:
        """Have it measure once."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        costs: Round = self._listen()
        for name, cost in costs.items():
            if not math.isfinite(cost) or cost < 0:
                raise RuntimeError(f"{self.side.name!r} measured {name} = {cost!r}")
        return costs

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Bench:
    """One run of one benchmark: what it has measured so far.

    :ivar small: only see whether it works.
    :ivar rows: lines of the table.
    :ivar series: what plots are made of.
    """

    def __init__(self, script: str, small: bool, rounds: int | None) -> None:
        self.script = Path(script).resolve()
        self.small = small
        self.rows: list[Row] = []
        self.series: dict[str, Any] = {}
        self._rounds = rounds

    def size(self, full: int, small: int) -> int:
        return small if self.small else full

    def rounds(self, full: int) -> int:
        return 1 if self.small or full == 1 else self._rounds or full

    def measure(
        self, sides: Sequence[Side], *, rounds: int = 21, warm_up: int = 2, fresh: bool = False
    ) -> Samples:
        """Let the sides take turns.

        :param rounds: how many of each are counted (one, if it is a small run).
        :param warm_up: how many come before, uncounted.
        :param fresh: a new process for each round, as where memory is measured.
        """
        samples: Samples = {side.name: [] for side in sides}
        assert len(samples) == len(sides), "two sides have one name"
        with ExitStack() as running:

            def child(side: Side) -> Child:
                child = Child(self.script, side)
                running.callback(child.close)
                return child

            children = [] if fresh else [child(side) for side in sides]
            if not (self.small or fresh):
                for each in children:
                    for _ in range(warm_up):
                        each.round()
            for i in range(self.rounds(rounds)):
                # Forth and back: so none is always the one after the same other one.
                turns = children or list(sides)
                for turn in turns if i % 2 == 0 else reversed(turns):
                    if isinstance(turn, Side):
                        fresh_child = child(turn)
                        samples[turn.name].append(fresh_child.round())
                        running.pop_all().close()
                    else:
                        samples[turn.side.name].append(turn.round())
        return samples

    def row(
        self,
        what: str,
        samples: Samples,
        ours: str,
        theirs: str,
        cost: str,
        unit: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        cpu: bool = True,
        grows: bool = False,
    ) -> Row:
        """Add a line: how our cost compares with theirs.

        :param cost: the name of what is compared, in what the rounds have measured.
        :param at_least: how many times cheaper we should be.
        :param at_most: how many times their cost ours may be.
        :param grows: report ours to theirs although there is no target.
        :param cpu: is the processor time of a round a fair measure of the same thing?
        """
        better = "at most" if at_most is not None or grows else "at least"
        rounds = list(zip(samples[ours], samples[theirs], strict=True))

        def ratios_of(cost: str) -> list[float]:
            pairs = [(a[cost], b[cost]) for a, b in rounds]
            return [a / b if better == "at most" else b / a for a, b in pairs]

        ratios = ratios_of(cost)
        return self._add(
            Row(
                what,
                theirs,
                unit,
                median(a[cost] for a, _ in rounds),
                median(b[cost] for _, b in rounds),
                median(ratios),
                quartiles(ratios),
                median(ratios_of("cpu")) if cpu else None,
                better,
                at_least if at_most is None else at_most,
            )
        )

    def value(
        self, what: str, costs: Sequence[float], unit: str, *, at_most: float | None = None
    ) -> Row:
        """Add a line for an absolute number."""
        middle = median(costs)
        return self._add(
            Row(what, "", unit, middle, None, middle, quartiles(costs), None, "at most", at_most)
        )

    def _add(self, row: Row) -> Row:
        print(f"  {row}", flush=True)
        self.rows.append(row)
        return row


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def middle(samples: Samples, side: str, cost: str) -> float:
    """The median of what a side has measured."""
    return median(each[cost] for each in samples[side])


def run(script: str, main: Callable[[Bench], None]) -> None:
    """What a benchmark does when it is run as a script."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--small", action="store_true", help="only see whether it works")
    parser.add_argument("--rounds", type=int, help="how often each side has its turn")
    parser.add_argument("--json", type=Path, help="where to write what was measured")
    options = parser.parse_args()
    bench = Bench(script, options.small, options.rounds)
    print(f"{bench.script.stem}, in a machine with a load of {os.getloadavg()[0]:.1f}", flush=True)
    began, load = time.time(), os.getloadavg()[0]
    try:
        main(bench)
    except Missing as e:
        raise SystemExit(f"{bench.script.name} can't run: {e}") from None
    if options.json is not None:
        result = {
            "name": bench.script.stem,
            "rows": [asdict(row) for row in bench.rows],
            "series": bench.series,
            "load": load,
            "began": began,
            "seconds": time.time() - began,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
