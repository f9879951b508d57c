"""After ``os.fork()``: the child's hub and its reactors are its own.

``twistd`` forks when it becomes a daemon, servers fork workers, and the program may fork by hand.
An epoll and a waker's pipe are then shared with the parent: what one of the two adds, removes or
reads there, the other would notice. gevent's own ``fork`` reinitialises the hub
(gevent.os.fork_gevent); ``os.fork``, unpatched, does not.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import gevent
from gevent.os import fork_and_watch

if TYPE_CHECKING:
    from .green import GreenReactor

#: Where gevent.subprocess forks: "Pass the builtin os.fork function if you do not need to
#: initialize gevent in the child process" (gevent.os.fork_and_watch). Else there is another
#: function between.
_FORK_WITHOUT_GEVENT = fork_and_watch.__code__

_reactors: WeakSet[GreenReactor] | None = None


def renew_in_child(reactor: GreenReactor) -> None:
    """Call ``reactor.forked()`` in every child of this process that is forked from Python."""
    global _reactors
    if _reactors is None:
        _reactors = WeakSet()
        if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows alone has none
            os.register_at_fork(after_in_child=_forked)
    _reactors.add(reactor)


def _forked() -> None:
    reactors: Any = _reactors
    here = [each for each in reactors if each.cooperative_wait.is_this_thread()]
    # The child is about to execute another program. What it would do first takes time, and libuv's
    # loop does not always survive it (uv_loop_fork, from inside of one of its callbacks).
    if any(each.spawning for each in here):  # pragma: no cover - with the child goes its record
        return
    if sys._getframe(1).f_code is _FORK_WITHOUT_GEVENT:  # pragma: no cover - as above
        return
    gevent.reinit()
    for reactor in here:
        reactor.forked()
