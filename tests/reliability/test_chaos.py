"""Chaos in short: see ``chaos.py``, which has 1,000,000 calls in the long form."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from programs import PATCHED, run_python


@pytest.mark.skipif(sys.platform != "linux", reason="it counts what is left in /proc")
def test_every_call_is_accounted_for_and_nothing_is_left() -> None:
    chaos = Path(__file__).with_name("chaos.py")
    patched = ["patched"] if PATCHED else []
    done = run_python(chaos, "3000", *patched)
    assert not done.stderr
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert sum(report["outcomes"].values()) == 3000
    assert report["resident (MB)"]["after"] - report["resident (MB)"]["before"] < 5
    # What is to be found wrong has happened at all.
    for outcome in "CancelledError", "CallTimeout", "ConnectionResetError", "ConnectionLost":
        assert report["outcomes"][outcome] > 0
    for how in "answer", "delay", "reset", "half", "stall":
        assert report["treated"][how] > 0
