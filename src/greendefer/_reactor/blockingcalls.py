"""``blockingCallFromThread`` in a greenlet: it waits as greenlets do.

Twisted's function waits in a Queue that it makes for that. A thread may sleep in one of the
standard library; a greenlet of the reactor's thread would hold the loop, and in one of gevent's no
other thread can wake it safely.
"""

from __future__ import annotations

import sys
from _queue import SimpleQueue  # in C: gevent patches the name in the module above it
from types import SimpleNamespace
from typing import Any

import gevent.queue
from greenlet import getcurrent
from twisted.internet import threads
from twisted.python import threadable

from .._errors import WouldDeadlock


def make_cooperative() -> None:
    """Have ``twisted.internet.threads`` choose its Queue by who waits."""
    vars(threads)["Queue"] = SimpleNamespace(Queue=_queue_of_caller)


def _queue_of_caller() -> Any:
    wait = getattr(sys.modules.get("twisted.internet.reactor"), "cooperative_wait", None)
    if not (threadable.isInIOThread() if wait is None else wait.is_this_thread()):
        return SimpleQueue()
    if wait is not None and wait.greenlet is getcurrent():
        raise WouldDeadlock(
            "blockingCallFromThread() in the reactor's own greenlet would wait for itself: call "
            "the function, and use its Deferred."
        )
    # (Not its SimpleQueue, which was the standard library's until gevent 25.4.)
    return gevent.queue.Queue()
