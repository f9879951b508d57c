"""Run Python while its processes are stopped and continued at random: ``jitter.py -m pytest ...``

What a busy machine does to a program now and then, this does all the time: any process of it, and
any two, may stand still for up to 30 ms wherever they are, while clocks and the others go on, and
parents hear of it by SIGCHLD. Whoever counts on being in time, or on who comes first, is found out
in one run of the suite instead of in a hundred. On Linux: /proc tells the processes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

MOMENTS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.03)
LOOK_AGAIN = 5
"""After how many stops it looks which processes there are."""


def parents() -> dict[int, tuple[int, str]]:
    """Parent and name of each process."""
    found = {}
    for each in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (each / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:  # it has ended
            continue
        found[int(each.name)] = int(rest.split()[1]), name
    return found


def interpreters(root: int) -> list[int]:
    """`root`, and what runs Python below it. Servers are not ours to test."""
    found, below = parents(), {root}
    for pid in sorted(found):
        if found[pid][0] in below:
            below.add(pid)
    return [pid for pid in below if pid == root or found[pid][1].startswith("python")]


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def main(arguments: list[str]) -> int:
    process = subprocess.Popen([sys.executable, *arguments])
    stops, pids = 0, [process.pid]
    try:
        while process.poll() is None:
            if stops % LOOK_AGAIN == 0:
                pids = interpreters(process.pid)
            stops += 1
            stopped = random.sample(pids, min(len(pids), random.choice((1, 1, 2, 3))))
            send(stopped, signal.SIGSTOP)
            try:
                time.sleep(random.choice(MOMENTS))
            finally:
                send(stopped, signal.SIGCONT)
            time.sleep(random.choice(MOMENTS))
    except KeyboardInterrupt:
        process.wait()
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
