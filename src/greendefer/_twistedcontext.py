"""Twisted's log context, one for each greenlet."""

from __future__ import annotations

from typing import Any

from twisted.python import context


def make_greenlet_local() -> None:
    """Keep ``twisted.python.context`` apart for each greenlet, as it is for each thread.

    Twisted keeps the stack of contexts in a ``threading.local``. All greenlets of a thread share
    that unless gevent's patch was there first, and pop each other's entries.
    """
    from gevent.local import local

    tracker: Any = context.theContextTracker
    storage = getattr(tracker, "storage", None)
    if storage is None or isinstance(storage, local):
        return  # a tracker of somebody else's (installContextTracker), or done before
    mine = local()
    if hasattr(storage, "ct"):
        mine.ct = storage.ct  # installed from within a context: it stays this greenlet's
    tracker.storage = mine


def current() -> dict[Any, Any] | None:
    """The caller's context as one dict; ``None`` where nothing was ever put on the default."""
    contexts = context.theContextTracker.currentContext().contexts
    if len(contexts) == 1:
        return None
    merged: dict[Any, Any] = {}
    for each in contexts:
        merged.update(each)
    return merged
