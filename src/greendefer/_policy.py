"""What a call is allowed: options as plain data, checked where they are given."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from contextlib import ContextDecorator
from dataclasses import dataclass
from typing import Literal, get_args

from ._errors import shown

OnCancel = Literal["kill", "abandon"]
"""What becomes of a running call that nobody waits for any more."""

_ON_CANCEL = get_args(OnCancel)


@dataclass(frozen=True)
class Timeouts:
    """How long a call may take, in seconds on a monotonic clock; ``None`` is no limit.

    Whichever limit is over first makes the Deferred errback with :class:`CallTimeout`, in the
    reactor's greenlet.

    :param total: from the call to its result.
    :param queued: from the call to its start, while the pool has no slot for it.
    :param running: from its start to its result.
    :param on_expiry: what becomes of a call that runs when its time is over. ``"kill"`` ends its
        greenlet: its ``finally`` blocks run. ``"abandon"`` lets it finish unheard: a late result
        or exception is dropped. ``None``: the strongest that its carrier can do. Either way it
        holds its slot until it has really ended. A Deferred that the function has returned is
        cancelled, unless with ``"abandon"``.
    :raises TypeError: a limit is not a number.
    :raises ValueError: a limit is negative or not a number (NaN), or `on_expiry` is unknown.
    """

    total: float | None = None
    queued: float | None = None
    running: float | None = None
    on_expiry: OnCancel | None = None

    def __post_init__(self) -> None:
        for name in ("total", "queued", "running"):
            check_seconds(f"Timeouts({name}=...)", getattr(self, name))
        if self.on_expiry is not None and not is_one_of(_ON_CANCEL, self.on_expiry):
            raise ValueError(
                "Timeouts(on_expiry=...) must be 'kill', 'abandon' or None, not "
                f"{shown(self.on_expiry)}"
            )


def is_one_of(names: Iterable[str], value: object) -> bool:
    """Is `value` one of these strings? Whatever it does where it is compared with one."""
    return isinstance(value, str) and value in names


def check_is_callable(what: str, f: object) -> None:
    """Refuse what nobody can call.

    :raises TypeError: `f` is not callable.
    """
    if not callable(f):
        raise TypeError(
            f"{what} needs something to call, not {shown(f)}; it calls that itself: pass f and x "
            "to it, not f(x)"
        )


def check_around(what: str, around: object) -> None:
    """Refuse what makes no context managers.

    :raises TypeError: `around` is neither callable nor ``None``, or is one itself: what
        ``@contextmanager`` makes is callable, too, and is entered once only.
    """
    if around is not None and (not callable(around) or isinstance(around, ContextDecorator)):
        hint = "; it is called for each call: around=f, not around=f()"
        raise TypeError(
            f"{what} must be a callable that returns a context manager, or None, "
            f"not {shown(around)}{hint if hasattr(around, '__enter__') else ''}"
        )


def check_seconds(what: str, value: float | None, *, needed: bool = False) -> None:
    """Refuse anything that is not a length of time.

    :param needed: is there to be a limit? Then it is a finite one, and not ``None``.
    :raises TypeError: `value` is not a number.
    :raises ValueError: `value` is negative or NaN.
    """
    if value is None and not needed:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        kinds = "a number of seconds" if needed else "a number of seconds or None"
        raise TypeError(f"{what} must be {kinds}, not {shown(value)}")
    try:
        seconds = float(value)
    except OverflowError:  # an int that no float can hold, so that no time can be added to it
        few = "a smaller number" if needed else "a smaller number; None is no limit"
        raise ValueError(f"{what} must be {few}, not the too large {shown(value)}") from None
    is_allowed = 0 <= seconds < math.inf if needed else seconds >= 0
    if not is_allowed:
        limit = ", and finite," if needed else ", or None for no limit,"
        raise ValueError(f"{what} must be 0 or more seconds{limit} not {shown(value)}")


def as_timeouts(what: str, value: float | Timeouts | None) -> Timeouts | None:
    """Read a ``timeout=`` option: ``5`` means ``Timeouts(total=5)``.

    :raises TypeError: `value` is neither a number nor a :class:`Timeouts`.
    :raises ValueError: `value` is negative or NaN.
    """
    if value is None or isinstance(value, Timeouts):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be seconds, a Timeouts or None, not {shown(value)}")
    check_seconds(what, value)
    return Timeouts(total=value)


def refuse_to_kill(what: str, why: str, timeouts: Timeouts | None) -> None:
    """Reject ``on_expiry="kill"`` where a running call can't be killed.

    :raises ValueError: `timeouts` says ``on_expiry="kill"``.
    """
    if timeouts is not None and timeouts.on_expiry == "kill":
        raise ValueError(
            f"Timeouts(on_expiry='kill') can't be had on a {what}: {why}. Use 'abandon', or None."
        )


def check_on_cancel(what: str, value: OnCancel) -> None:
    """Refuse an unknown ``on_cancel=``.

    :raises ValueError: `value` is neither ``"kill"`` nor ``"abandon"``.
    """
    if not is_one_of(_ON_CANCEL, value):
        raise ValueError(f"{what} must be 'kill' or 'abandon', not {shown(value)}")


def check_count(what: str, value: int | None, least: int, none: str | None = None) -> None:
    """Refuse anything that is not a whole number of at least `least`, or ``None``, if that means
    something: `none`.

    :raises TypeError: `value` is not an int.
    :raises ValueError: `value` is too small, or no number that a machine counts to.
    """
    if value is None and none is not None:
        return
    or_none = "," if none is None else f", or None for {none},"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be a whole number{or_none} not {shown(value)}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}{or_none} not {shown(value)}")
    if value > sys.maxsize:
        raise ValueError(
            f"{what} must be at least {least} and a machine's number, at most "
            f"{sys.maxsize}{or_none} not {shown(value)}"
        )


def check_name(what: str, name: object) -> None:
    """Refuse a name that is no string.

    :raises TypeError: `name` is neither a string nor ``None``.
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"{what} must be a string or None, not {shown(name)}")
