"""greendefer's own errors, and how their messages show values."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor

from twisted.internet import defer
from twisted.python.failure import Failure
from twisted.python.reflect import safe_repr

_LONGEST_SHOWN = 300

# A traceback shows the name that these are imported by.
_MODULE = "greendefer"


class GreendeferError(Exception):
    """The base of greendefer's own errors.

    Raised as it is where a call can't be made at all: no reactor is installed, it has stopped, or
    the calling thread is not the reactor's.
    """

    __module__ = _MODULE


class PoolFull(GreendeferError):
    """The pool runs as many calls as it may, and as many wait as ``max_queued`` allows.

    It is the result of the call's Deferred, which has fired when the call returns.
    """

    __module__ = _MODULE


class PoolClosed(GreendeferError):
    """The pool takes no more calls: ``close()`` was called, or the reactor has stopped.

    It is the result of the Deferred of a call made after that, of one that was still queued then,
    and of one that was killed when the grace of ``close(grace=...)`` was over.
    """

    __module__ = _MODULE


class ExecutorFailed(GreendeferError, BrokenExecutor):
    """An :class:`ExecutorPool`'s executor did not do its part: a worker process died, or it was
    shut down. The call may have run in part, or not at all.

    It is also :class:`concurrent.futures.BrokenExecutor`; what happened is its ``__cause__``.
    """

    __module__ = _MODULE


class CallTimeout(GreendeferError, defer.TimeoutError, TimeoutError):
    """A call, or a wait, took longer than its timeout.

    It is also Twisted's :class:`twisted.internet.defer.TimeoutError` and the builtin
    :class:`TimeoutError`. The latter is an :class:`OSError`, so ``except OSError`` catches it.
    """

    __module__ = _MODULE


class WouldDeadlock(GreendeferError):
    """A wait that could never end: only whoever is about to wait could fire what it waits for.

    The message says what to write instead.
    """

    __module__ = _MODULE


def failed_with(error: BaseException) -> Failure:
    """A Failure with `error`, and its traceback: whatever asking that for its class does, which
    Twisted's Failure asks it for."""
    try:
        return Failure(error, type(error))
    except BaseException:
        name = type(error).__qualname__
        return Failure(GreendeferError(f"{name} was raised, which can't be asked for its class"))


def shown(value: object) -> str:
    """`value` as an error message shows it: whatever its ``__repr__`` does, and not at length."""
    text: str = safe_repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
