"""What has to be done in one way on libev, and in another on libuv."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from math import ceil
from typing import Any


def is_libev(loop: Any) -> bool:
    """Does the loop know priorities? libuv's do not."""
    return bool(loop.MAXPRI > loop.MINPRI)


def is_destroyed(loop: Any) -> bool:
    """Is the loop gone, and with it all its watchers? Nobody may close these again."""
    return not loop.ptr


def for_timer(loop: Any, seconds: float) -> float:
    """What a timer of the loop is to be given so that it never rings early. libuv's counts whole
    milliseconds, cuts off what is more, and warns of less than one (gevent/libuv/watcher.py)."""
    return seconds if is_libev(loop) or not seconds else (ceil(seconds * 1000) + 0.5) / 1000


def in_next_round(loop: Any, f: Callable[..., object], *args: Any) -> None:
    """Call ``f(*args)`` in the loop, once that has polled: a callback would run before. From the
    loop's own thread.

    The timer is closed as it rings: whoever asked may be forgotten, and libuv has a pointer to
    what is not closed.
    """
    timer = loop.timer(0.0)

    def ring() -> None:
        timer.close()
        f(*args)

    timer.start(ring, update=True)


class LoopInbox:
    """What other threads want a hub to call.

    gevent has ``loop.run_callback_threadsafe`` for that, which is not. On libev it counts the
    callback among what is alive (``ev_ref`` in gevent/libev/corecext.pyx) while the loop's own
    thread, which has no GIL as it polls, counts its timers there, without a lock: of a thousand
    times one is lost, and in the end a hub that is waited in finds nothing alive (LoopExit). On
    libuv it starts a handle while that thread may be about to go through them, and the process
    crashes, or hangs (gevent's issue 2212). Of both libraries, only what an async watcher's
    ``send()`` calls is for other threads (ev_async_send, uv_async_send).

    It is made, and closed, in the loop's own thread.

    :param ref: does it keep the loop alive, until it is closed?
    """

    def __init__(self, loop: Any, *, ref: bool) -> None:
        self._loop = loop
        self._asked: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._bell: Any = loop.async_(ref=ref)
        self._bell.start(self._answer)
        self._closed = False

    def ask(self, f: Callable[..., object], *args: Any) -> bool:
        """Call ``f(*args)`` in the hub, after what was asked before. For any thread.

        :returns: ``False`` if nobody will, since this is closed, or the loop is destroyed.
        """
        if self._closed:
            return False
        self._asked.append((f, args))
        try:
            self._bell.send()
        except Exception:  # ValueError on libev; on libuv, AssertionError and others
            return False
        return True

    def _answer(self) -> None:
        asked = self._asked
        for _ in range(len(asked)):
            f, args = asked.popleft()
            try:
                f(*args)
            except BaseException:
                # To whoever hears of errors in the hub. On libuv a watcher that raised one would
                # be stopped (gevent/_ffi/loop.py, python_handle_error).
                self._loop.handle_error(f, *sys.exc_info())

    def close(self) -> None:
        """Nobody answers any more."""
        self._closed = True
        self._bell.close()
