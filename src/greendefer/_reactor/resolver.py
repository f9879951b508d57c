"""Host names, looked up through gevent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from socket import EAI_AGAIN, gaierror
from typing import Any

import gevent
from gevent.resolver import thread
from gevent.threadpool import ThreadPool
from twisted.internet._resolver import GAIResolver
from twisted.internet.defer import Deferred
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IHostnameResolver, IResolverSimple
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from zope.interface import implementer

from .._errors import shown
from .._policy import check_seconds

THREADS = 50
"""How many lookups gevent's default resolver makes at once, where it is the one in use."""

TIMEOUT = (1, 3, 11, 45)
"""Twisted's own default (IResolverSimple.getHostByName): their sum, in seconds, is the limit."""


@implementer(IResolverSimple, IHostnameResolver)
class GeventResolver:
    """Looks names up with the resolver that gevent is configured for (``GEVENT_RESOLVER``), in
    greenlets of its own: no pool that calls can fill is in its way.

    gevent's default one needs threads. It gets some of its own, and shares neither the reactor's
    nor those of ``gevent.get_hub().threadpool``.

    A green reactor has one installed. It fails as Twisted's resolvers do, with ``DNSLookupError``.

    :param reactor: where the results are delivered.
    :raises TypeError: it is no reactor.
    """

    def __init__(self, reactor: Any) -> None:
        if not callable(getattr(reactor, "callFromThread", None)):
            raise TypeError(
                "GeventResolver(reactor) needs a reactor that can be called from threads, not "
                f"{shown(reactor)}"
            )
        self._reactor = reactor
        self._hub: Any = None
        self._resolver: Any = None
        self._greenlets: Any = _Greenlets()
        getaddrinfo: Any = self._getaddrinfo
        self._all_addresses = GAIResolver(reactor, lambda: self._greenlets, getaddrinfo)

    def resolveHostName(
        self, resolutionReceiver: Any, hostName: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Look up all addresses of a name: see ``IHostnameResolver``. After 60 seconds there are
        none.

        :returns: an ``IHostResolution``.
        """
        return self._all_addresses.resolveHostName(resolutionReceiver, hostName, *args, **kwargs)

    def getHostByName(self, name: str, timeout: Sequence[float] | None = TIMEOUT) -> Deferred[str]:
        """Look up an IPv4 address.

        :param timeout: a sequence of seconds; the sum of them is the limit. Where it is empty, or
            ``None``, that is Twisted's own.
        :returns: a Deferred of the address. It fails with ``DNSLookupError``, also when the time
            is over.
        :raises TypeError: `timeout` is not a sequence of numbers.
        :raises ValueError: a number in `timeout` is negative, NaN or infinite, or their sum is.
        """
        seconds = _sum_of(timeout)
        d: Deferred[str] = deferToThreadPool(
            self._reactor,
            self._greenlets,
            partial(self._look_up, "gethostbyname", seconds),
            name,
        )
        return d.addErrback(_not_found, name)

    def _getaddrinfo(self, *args: Any) -> Any:
        return self._look_up("getaddrinfo", sum(TIMEOUT), *args)

    def _look_up(self, how: str, seconds: float, *args: Any) -> Any:
        """Call a method of the resolver, in a greenlet.

        :raises OSError: there is no such name, or the time is over.
        """
        with gevent.Timeout(seconds, gaierror(EAI_AGAIN, f"no answer within {seconds} s")):
            return getattr(self._of_this_hub(), how)(*args)

    def _of_this_hub(self) -> Any:
        hub = gevent.get_hub()
        if self._hub is not hub:
            self._hub = hub
            self._resolver = hub.resolver
            if isinstance(self._resolver, thread.Resolver):
                self._resolver = thread.Resolver(hub)
                self._resolver.pool = ThreadPool(THREADS, hub)
        return self._resolver


def _sum_of(timeout: Sequence[float] | None) -> float:
    if timeout is None:
        return sum(TIMEOUT)
    # Of the sequences, those of characters and of bytes are no times.
    if not isinstance(timeout, Sequence) or isinstance(timeout, (str, bytes, bytearray)):
        raise TypeError(
            "getHostByName(timeout=...) must be a sequence of seconds, as (1, 3, 11), not "
            f"{shown(timeout)}"
        )
    each = tuple(timeout) or TIMEOUT
    for seconds in each:
        check_seconds("getHostByName(timeout=...): each", seconds, needed=True)
    check_seconds("getHostByName(timeout=...): the sum", sum(map(float, each)), needed=True)
    return sum(each)


def _not_found(failure: Failure, name: str) -> Failure:
    failure.trap(OSError, UnicodeError)  # the latter: a name that IDNA has no form for
    return Failure(DNSLookupError(f"address {name!r} not found: {failure.getErrorMessage()}"))


class _Greenlets:
    """As much of Twisted's ThreadPool as ``deferToThreadPool`` uses: a greenlet for each call."""

    def callInThreadWithCallback(
        self, onResult: Callable[[bool, Any], object], f: Callable[..., Any], *args: Any
    ) -> None:
        gevent.spawn(self._run, onResult, f, args)

    def _run(
        self, onResult: Callable[[bool, Any], object], f: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        try:
            result = f(*args)
        except BaseException:
            onResult(False, Failure())
        else:
            onResult(True, result)
