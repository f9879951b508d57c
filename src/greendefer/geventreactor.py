"""Drop-in for the historical module of that name (Jiang Yio, 2011-2013, Python 2).

The ten public names mean what they meant there; new code finds the same, with timeouts and
cancellation, in :mod:`greendefer` itself. What differs:

- The reactor is Twisted's own, and passes Twisted's own tests. A greenlet is no longer spawned for
  each descriptor: a protocol method that blocks holds the reactor's greenlet, and so all other
  protocols, until it returns. Hand it to a greenlet: ``deferToGreenlet(f, ...)``.
- ``reactor.getGreenletPool()`` is a :class:`greendefer.GreenPool` of 100, which can be resized, and
  no longer a group without a bound. It is not the pool of ``deferToThread``, which has threads.
- ``callFromGreenlet(f)`` runs `f` in the reactor's greenlet, and returns ``None``.
- ``waitForDeferred(d)`` leaves the result in `d` for whoever comes later, and refuses to wait in
  the reactor's greenlet (:class:`greendefer.WouldDeadlock`) instead of hanging.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import gevent
from gevent.socket import gethostbyname
from twisted.internet.base import ThreadedResolver
from twisted.internet.defer import Deferred
from twisted.internet.main import installReactor

from .admission import Pool
from .bridge import call_and_wait, wait_for_deferred, wait_for_greenlet
from .decorators import defer_to_greenlet
from .home import installed_reactor
from .pool import GreenPool
from .reactor._stock import native_kind
from .reactor.interfaces import IReactorGreenlets

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
    from .reactor.select import GreenSelectReactor as _NativeReactor
else:
    _NativeReactor = importlib.import_module(f"greendefer.reactor.{native_kind()}").Reactor


class GeventReactor(_NativeReactor):
    """The native green reactor, under its historical name."""


class GeventResolver(ThreadedResolver):
    """Looks names up through gevent, in greenlets of a pool of its own, which nothing else fills.

    :meth:`getHostByName` returns a Deferred of an IPv4 address. It fails with Twisted's
    ``DNSLookupError``, also when the sum of its timeouts, in seconds, is over.
    """

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self._pool = GreenPool(1000, name="resolver")

    def getHostByName(self, name: str, timeout: Any = (1, 3, 11, 45)) -> Deferred[str]:
        user_deferred: Deferred[str] = Deferred()
        lookup = self._pool.submit(gethostbyname, name)
        cancel_call: Any = self.reactor.callLater(
            sum(timeout) if timeout else 60, self._cleanup, name, lookup
        )
        self._runningQueries[lookup] = (user_deferred, cancel_call)
        lookup.addBoth(self._checkTimeout, name, lookup)
        return user_deferred


def deferToGreenletPool(
    reactor: Any, greenletpool: Pool, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> Deferred[T]:
    """Run ``f(*args, **kwargs)`` in a greenlet of `greenletpool`.

    :returns: a Deferred of its result, which fires in the reactor's greenlet.
    """
    return greenletpool.submit(f, *args, **kwargs)


def deferToGreenlet(f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    """Run ``f(*args, **kwargs)`` in a greenlet of the default pool.

    :returns: a Deferred of its result, which fires in the reactor's greenlet.
    """
    return defer_to_greenlet(f, *args, **kwargs)


def callMultipleInGreenlet(
    tupleList: Iterable[tuple[Callable[..., object], Iterable[Any], dict[str, Any]]],
) -> None:
    """Call each ``(f, args, kwargs)`` of the list, one after the other, in one greenlet.

    An exception is logged, and ends the list, as in ``twisted.internet.threads``.
    """
    reactor = installed_reactor()

    def run() -> None:
        for f, args, kwargs in tupleList:
            f(*args, **kwargs)

    reactor.callInGreenlet(run)


def waitForGreenlet(g: gevent.Greenlet[..., T]) -> Deferred[T]:
    """A Deferred for a greenlet: see :func:`greendefer.wait_for_greenlet`."""
    return wait_for_greenlet(g)


def waitForDeferred(d: Deferred[T], result: Any = None) -> T:
    """Wait in this greenlet until `d` fires: see :func:`greendefer.wait_for_deferred`.

    :param result: ignored; it was the historical function's own way to call itself.
    """
    return wait_for_deferred(d)


def blockingCallFromGreenlet(reactor: Any, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `f`, and wait in this greenlet, or thread, for the Deferred that it returns.

    :returns: its result.
    :raises WouldDeadlock: this is the reactor's own greenlet.
    """
    return call_and_wait(lambda: f(*args, **kwargs), None)


def install() -> None:
    """Install :class:`GeventReactor` as Twisted's reactor.

    :raises twisted.internet.error.ReactorAlreadyInstalledError: a reactor is there already.
    """
    installReactor(GeventReactor())
