"""The operating system's own threads, also where ``gevent.monkey`` has put greenlets in their
place.

The mailbox of a thread is ``_queue.SimpleQueue``: in C, on the platform's locks, and not the name
that gevent patches, which is that of the module above it. Its timeouts are on a monotonic clock
(from Python 3.11: 3.10 waits by the wall clock where the platform has no other way).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from gevent._hub_local import get_hub_if_exists

from .._patched import is_patched, original

IDLE_SECONDS = 10.0
"""How long a thread waits for more to do before it ends."""

allocate_lock: Callable[[], Any] = original("_thread", "allocate_lock")

native_sleep: Callable[[float], None] = original("time", "sleep")

_start: Callable[[Callable[[], None], tuple[()]], object] = original("_thread", "start_new_thread")


ENDING_SECONDS = 1.0
"""How long the reactor, when it stops, waits for threads that have nothing left to do."""


def start_thread(f: Callable[[], None], name: str) -> Callable[[float], object]:
    """Run `f` in a new thread, which does not keep the process alive.

    :param name: what debuggers show, where ``threading`` is not patched.
    :returns: ``join(seconds)``, which waits until the thread has ended. Call it after telling the
        thread to end: it would crash if it destroyed its hub while the interpreter shuts down.
    :raises RuntimeError: the operating system has no more threads.
    """

    alive = allocate_lock()
    alive.acquire()

    def run() -> None:
        try:
            f()
        finally:
            # A call may have used gevent in here: its hub holds descriptors.
            hub: Any = get_hub_if_exists()
            if hub is not None:
                hub.destroy(destroy_loop=True)
                # It has raised LoopExit here, and waits there for what nobody sends: as it would
                # for ever, with all that its stack has, once the thread is gone.
                hub.throw()
            alive.release()

    def run_seen() -> None:  # pragma: no cover - it begins before anything can see it
        # What threading.Thread does: debuggers, profilers and coverage would miss the calls.
        sys.setprofile(threading.getprofile())
        sys.settrace(threading.gettrace())
        run()

    if is_patched("threading"):
        _start(run_seen, ())
    else:
        threading.Thread(target=run, name=name, daemon=True).start()

    def join(timeout: float) -> None:
        if alive.acquire(timeout=timeout):
            alive.release()

    return join
