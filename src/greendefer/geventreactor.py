"""Drop-in for the historical module of that name (Jiang Yio, 2011-2013, Python 2).

The ten public names mean what they meant there; new code finds the same, with timeouts and
cancellation, in :mod:`greendefer` itself. What differs:

- The reactor is Twisted's own, and passes Twisted's own tests. A greenlet is no longer spawned for
  each descriptor, which cost a switch for each event: a protocol method that blocks holds the
  reactor's greenlet, and so all other protocols, until it returns. Decorate it with
  :func:`greendefer.in_order`, or hand the work to ``deferToGreenlet(f, ...)``.
- ``deferToThread`` has threads, so that what computes can't stop the loop; it had greenlets there.
  ``greendefer.install(threads="green")`` has them again.
- ``reactor.getGreenletPool()`` is a :class:`greendefer.GreenPool` of 100, which can be resized, and
  no longer a group without a bound. It is not the pool of ``deferToThread``, which has threads.
- ``callFromGreenlet(f)`` runs `f` in the reactor's greenlet, and returns ``None``.
- ``waitForDeferred(d)`` leaves the result in `d` for whoever comes later, and refuses to wait in
  the reactor's greenlet (:class:`greendefer.WouldDeadlock`) instead of hanging.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import gevent
from twisted.internet.defer import Deferred
from twisted.internet.main import installReactor
from twisted.python import log

from ._admission import Pool
from ._bridge import wait_for_deferred, wait_for_greenlet
from ._crossing import call_and_wait
from ._decorators import defer_to_greenlet
from ._errors import shown
from ._policy import check_is_callable
from ._reactor.installed import refuse_if_installed
from ._reactor.interfaces import IReactorGreenlets
from ._reactor.resolver import GeventResolver
from ._reactor.stock import native_kind

P = ParamSpec("P")
T = TypeVar("T")

__all__ = [
    "GeventReactor",
    "GeventResolver",
    "IReactorGreenlets",
    "blockingCallFromGreenlet",
    "callMultipleInGreenlet",
    "deferToGreenlet",
    "deferToGreenletPool",
    "install",
    "waitForDeferred",
    "waitForGreenlet",
]

if TYPE_CHECKING:
    from ._reactor.select import GreenSelectReactor as _NativeReactor
else:
    _NativeReactor = importlib.import_module(f"greendefer._reactor.{native_kind()}").Reactor


class GeventReactor(_NativeReactor):
    """The native green reactor, under its historical name."""


def deferToGreenletPool(
    reactor: Any, greenletpool: Pool, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> Deferred[T]:
    """Run ``f(*args, **kwargs)`` in a greenlet of `greenletpool`.

    :returns: a Deferred of its result, which fires in the reactor's greenlet.
    :raises TypeError: `greenletpool` is not a pool, or `f` is not callable.
    :raises GreendeferError: no reactor is installed, or this is not its thread.
    """
    if not isinstance(greenletpool, Pool):
        raise TypeError(
            "deferToGreenletPool(reactor, greenletpool, f) needs a greendefer.GreenPool for "
            f"greenletpool, not {shown(greenletpool)}"
        )
    return greenletpool.submit(f, *args, **kwargs)


def deferToGreenlet(f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    """Run ``f(*args, **kwargs)`` in a greenlet of the default pool.

    :returns: a Deferred of its result, which fires in the reactor's greenlet.
    :raises TypeError: `f` is not callable.
    :raises GreendeferError: no reactor is installed, or this is not its thread.
    """
    return defer_to_greenlet(f, *args, **kwargs)


def callMultipleInGreenlet(
    tupleList: Iterable[tuple[Callable[..., object], Iterable[Any], dict[str, Any]]],
) -> None:
    """Call each ``(f, args, kwargs)`` of the list, one after the other, in one greenlet.

    An exception is logged, and ends the list, as in ``twisted.internet.threads``.

    :raises TypeError: `tupleList` is something else. Nothing was called then.
    :raises GreendeferError: no reactor is installed, or this is not its thread.
    """
    if not isinstance(tupleList, Iterable):
        raise TypeError(
            "callMultipleInGreenlet(tupleList) needs a list of (f, args, kwargs), not "
            f"{shown(tupleList)}"
        )
    calls = list(tupleList)
    for each in calls:
        if not _is_a_call(each):
            raise TypeError(
                "callMultipleInGreenlet(tupleList) needs (f, args, kwargs) for each call: "
                "something to call, a tuple, and a dict with strings for keys; not "
                f"{shown(each)}"
            )

    def run() -> None:
        for f, args, kwargs in calls:
            f(*args, **kwargs)

    defer_to_greenlet(run).addErrback(lambda failure: log.err(failure))


def _is_a_call(each: Any) -> bool:
    return (
        isinstance(each, (tuple, list))
        and len(each) == 3
        and callable(each[0])
        and isinstance(each[1], Iterable)
        and isinstance(each[2], Mapping)
        and all(isinstance(key, str) for key in each[2])
    )


def waitForGreenlet(g: gevent.Greenlet[..., T]) -> Deferred[T]:
    """A Deferred for a greenlet: see :func:`greendefer.wait_for_greenlet`."""
    return wait_for_greenlet(g)


def waitForDeferred(d: Deferred[T], result: Any = None) -> T:
    """Wait in this greenlet until `d` fires: see :func:`greendefer.wait_for_deferred`.

    :param result: ignored; it was the historical function's own way to call itself.
    :returns: the result of `d`. It raises what that function raises.
    """
    return wait_for_deferred(d)


def blockingCallFromGreenlet(reactor: Any, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `f`, and wait in this greenlet, or thread, for the Deferred that it returns.

    :returns: its result.
    :raises WouldDeadlock: this is the reactor's own greenlet.
    :raises TypeError: `f` is not callable.
    :raises GreendeferError: no reactor is installed, or it has stopped.
    :raises BaseException: whatever `f` raised, or its Deferred failed with.
    """
    check_is_callable("blockingCallFromGreenlet(reactor, f, ...)", f)
    return call_and_wait(lambda: f(*args, **kwargs), None)


def install() -> None:
    """Install :class:`GeventReactor` as Twisted's reactor.

    :raises twisted.internet.error.ReactorAlreadyInstalledError: a reactor is there already.
    """
    refuse_if_installed()
    installReactor(GeventReactor())
