"""How Linux has let a thread run: Documentation/scheduler/sched-stats of the kernel."""

from __future__ import annotations

from pathlib import Path


def run_delay(of: str = "/proc/thread-self") -> float:
    """Seconds that a thread could have run, and was not let: by default this one."""
    try:
        return int(Path(of, "schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
