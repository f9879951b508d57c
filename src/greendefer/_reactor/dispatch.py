"""What the reactor does with a descriptor that is ready, in fewer steps than stock Twisted.

The results are the same: ``twisted.python.log.callWithLogger`` is what most of a read event costs
there (it copies the log context, and passes it through three more functions).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.python import context, log

_Contexts = list[dict[Any, Any]]


def call_with_logger(selectable: Any, f: Callable[..., Any], *args: Any) -> Any:
    """``callWithLogger(selectable, f, *args)``: with its prefix in the log context, and whatever
    it raises logged."""
    contexts, log_context = contexts_here()
    return call_in(contexts, log_context, selectable, f, *args)


def contexts_here() -> tuple[_Contexts, dict[str, Any]]:
    """The stack of contexts of this greenlet, and the log context that it has now. The stack is
    the same one for as long as the greenlet lives."""
    tracker: Any = context.theContextTracker
    try:
        contexts: _Contexts = tracker.currentContext().contexts
    except AttributeError:  # somebody else's (context.installContextTracker)
        contexts = []
    return contexts, context.get(log.ILogContext)


def call_in(
    contexts: _Contexts,
    log_context: dict[str, Any],
    selectable: Any,
    f: Callable[..., Any],
    *args: Any,
) -> Any:
    """The same, for one who calls many: with what :func:`contexts_here` returned."""
    if not contexts:
        return log.callWithLogger(selectable, f, *args)
    try:
        prefix = selectable.logPrefix()
    except KeyboardInterrupt:
        raise
    except BaseException:
        prefix = "(buggy logPrefix method)"
        log.err(system=prefix)
    try:
        contexts.append({log.ILogContext: {**log_context, "system": prefix}})
        try:
            return f(*args)
        finally:
            contexts.pop()
    except KeyboardInterrupt:
        raise
    except BaseException:
        log.err(system=prefix)
