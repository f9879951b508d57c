"""What has to be done in one way on libev, and in another on libuv."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any


def is_libev(loop: Any) -> bool:
    """Does the loop know priorities? libuv's do not."""
    return bool(loop.MAXPRI > loop.MINPRI)


def for_timer(loop: Any, seconds: float) -> float:
    """What a timer of the loop is to be given so that it never rings early. libuv's counts whole
    milliseconds, cuts off what is more, and warns of less than one (gevent/libuv/watcher.py)."""
    return seconds if is_libev(loop) or not seconds else (ceil(seconds * 1000) + 0.5) / 1000


def ask(loop: Any, f: Callable[..., object], *args: Any) -> None:
    """Call ``f(*args)`` in the hub that runs `loop`, after what was asked before. For any thread.

    gevent has ``run_callback_threadsafe`` for that, which on libuv is not: it starts a handle of
    the loop (``_setup_for_run_callback`` in gevent/libuv/loop.py) while the loop's own thread may
    be about to go through them, and the process crashes, or hangs (gevent's issue 2212). In libuv
    only ``uv_async_send`` is for other threads. It is all that is needed: once it has ended the
    poll, the loop runs what is in its list (``loop.run``), and appending to that is atomic.

    :raises ValueError: the loop is destroyed.
    """
    if is_libev(loop):
        loop.run_callback_threadsafe(f, *args)
        return
    from gevent._ffi.callback import callback  # type: ignore[import-not-found]  # not in its stubs

    try:
        loop._callbacks.append(callback(f, args))
        loop._threadsafe_async.send()
    except AttributeError:  # destroy() takes both away
        raise ValueError("operation on destroyed loop") from None
