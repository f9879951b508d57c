"""Run Python while its processes are stopped and continued at random: ``jitter.py -m pytest ...``

What a busy machine does to a program now and then, this does all the time: any process of it, and
up to three at once, may stand still for up to 30 ms wherever they are, while clocks and the others
go on, and parents hear of it by SIGCHLD. Whoever counts on being in time, or on who comes first, is
found out in one run of the suite instead of in a hundred.
"""

from __future__ import annotations

import random
import sys
import time
from contextlib import suppress

import psutil

MOMENTS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.03)
AT_ONCE = (1, 1, 2, 3)
LOOK_AGAIN = 5
"""After how many stops it looks which processes there are."""


def interpreters(root: psutil.Process) -> list[psutil.Process]:
    """`root`, and what runs Python below it. Servers are not ours to test."""
    found = [root]
    for each in root.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if each.name().startswith("python"):
                found.append(each)
    return found


def stop_for_a_moment(processes: list[psutil.Process]) -> None:
    try:
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                each.suspend()
        time.sleep(random.choice(MOMENTS))
    finally:
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                each.resume()


def main(arguments: list[str]) -> int:
    root = psutil.Popen([sys.executable, *arguments])
    stops, processes = 0, [root]
    try:
        while root.poll() is None:
            if stops % LOOK_AGAIN == 0:
                processes = interpreters(root)
            stops += 1
            stop_for_a_moment(random.sample(processes, min(len(processes), random.choice(AT_ONCE))))
            time.sleep(random.choice(MOMENTS))
    except KeyboardInterrupt:
        root.wait()
    return int(root.returncode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
