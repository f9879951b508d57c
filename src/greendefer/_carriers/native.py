"""The operating system's own threads, also where ``gevent.monkey`` has put greenlets in their
place.

Timeouts are on a monotonic clock (from Python 3.11: 3.10 waits by the wall clock where the platform
has no other way).
"""

from __future__ import annotations

import sys
import threading
from _queue import Empty
from collections import deque
from collections.abc import Callable
from time import monotonic
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


class Mailbox:
    """What one thread takes, and any thread puts there.

    Not a ``SimpleQueue``: until Python 3.13, a signal in whose course its timeout runs out has
    ``get()`` go on with what is left, which is less than nothing, and so for ever. Locks look at
    that (``acquire_timed()`` in Modules/_threadmodule.c, and ``_queue_SimpleQueue_get_impl()`` in
    Modules/_queuemodule.c).
    """

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._awake = allocate_lock()  # it is free if there may be something
        self._awake.acquire()

    def put(self, item: Any) -> None:
        self._items.append(item)
        # If it is free, whoever takes is about to look, and has not done so since.
        try:
            self._awake.release()
        except RuntimeError:
            pass

    def get(self, timeout: float | None = None) -> Any:
        """Take the next item, and wait for it as long as `timeout` seconds.

        :raises Empty: there is none.
        """
        items = self._items
        until = None if timeout is None else monotonic() + timeout
        while not items:
            if until is None:
                self._awake.acquire()
            elif not self._awake.acquire(timeout=max(0.0, until - monotonic())) and not items:
                raise Empty
        return items.popleft()


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
            del hub  # whoever has waited for this thread finds nothing of it
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
