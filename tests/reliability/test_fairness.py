"""Neither side starves the other: see ``fairness.py`` for the loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import ON_LIBUV, PATCHED, run_python

BOUND = 250
"""Milliseconds, of our own making: what docs/reliability.md promises."""
BOUNDS = {"later_calls": (1000, 1000), "sleepers": (BOUND, 5000)}
"""Where it promises something else: of the reactor, and of a greenlet."""
if ON_LIBUV:  # where nothing comes between timers that are due at once
    BOUNDS |= {"hub_timers": (5000, 5000), "sleepers": (5000, 5000)}


ALIVE = ["ready_at_once", "timeouts", "sleepers", "idle_workers"]
"""Those with many objects."""
LOADS = [*ALIVE, "giving_way", "later_calls", "hub_timers", "storm"]


def are_in_time(load: str, *arguments: str) -> None:
    program = Path(__file__).with_name("fairness.py")
    patched = ["patched"] if PATCHED else []
    done = run_python(program, *arguments, *patched)
    report = json.loads(done.stdout)
    reactor, greenlet = BOUNDS.get(load, (BOUND, BOUND))
    assert report["reactor"] < reactor, done.stdout  # pytest would not show all of it
    assert report["greenlet"] < greenlet, done.stdout


@pytest.mark.parametrize("kind", ["native", "asyncio"])
@pytest.mark.parametrize("load", LOADS)
def test_both_sides_are_in_time(kind: str, load: str) -> None:
    are_in_time(load, kind, load)


@pytest.mark.parametrize("load", ALIVE)
def test_with_the_collector_on(load: str) -> None:
    """Its pauses are all that comes on top."""
    are_in_time(load, "native", load, "collected")
