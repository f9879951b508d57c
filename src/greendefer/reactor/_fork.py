"""After ``os.fork()``: the child's hub and its reactors are its own.

``twistd`` forks when it becomes a daemon, servers fork workers, and the program may fork by hand.
An epoll and a waker's pipe are then shared with the parent: what one of the two adds, removes or
reads there, the other would notice. gevent's own ``fork`` reinitialises the hub
(gevent.os.fork_gevent); ``os.fork``, unpatched, does not.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import gevent

if TYPE_CHECKING:
    from .green import GreenReactor

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
    if any(each.spawning for each in here):  # pragma: no cover - with the child goes its record
        return  # the child is about to execute another program
    gevent.reinit()
    for reactor in here:
        reactor.forked()
