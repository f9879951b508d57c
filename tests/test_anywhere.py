"""One table of behaviours: every carrier on every kind of reactor. See ``anywhere.py``."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import anywhere
import pytest
from programs import LIMIT, PATCHED

REACTORS = ("green-native", "green-asyncio", "stock-epoll", "stock-asyncio")


@functools.cache
def outcomes_or_error(kind: str) -> dict[tuple[str, str], str] | Exception:
    """One process runs the whole table for one reactor, once."""
    try:
        return outcomes(kind)
    except Exception as e:
        return e


def outcomes(kind: str) -> dict[tuple[str, str], str]:
    """What went wrong in each cell."""
    done = subprocess.run(
        [sys.executable, anywhere.__file__, kind, *(["patched"] if PATCHED else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
        cwd=Path(anywhere.__file__).parent,
    )
    lines = done.stdout.splitlines()
    cells = [json.loads(line) for line in lines if line.startswith("[")]
    left = [line for line in lines if not line.startswith("[")]
    assert done.returncode == 0, done.stdout[-3000:]
    assert not left, left  # an unhandled error in a Deferred, say
    return {(carrier, behaviour): error for carrier, behaviour, error in cells}


@pytest.mark.parametrize("behaviour", anywhere.BEHAVIOURS)
@pytest.mark.parametrize("carrier", anywhere.CARRIERS)
@pytest.mark.parametrize("kind", REACTORS)
def test_behaviour(kind: str, carrier: str, behaviour: str) -> None:
    if why := anywhere.lacks(kind, carrier):
        pytest.skip(why)
    got = outcomes_or_error(kind)
    if isinstance(got, Exception):
        raise got
    assert not got[carrier, behaviour], got[carrier, behaviour]
