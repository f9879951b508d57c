"""Host names, looked up through gevent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from socket import EAI_AGAIN, EAI_FAIL, EAI_NONAME, gaierror
from typing import Any

import gevent
from gevent.resolver import thread
from gevent.threadpool import ThreadPool
from twisted.internet._resolver import GAIResolver
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IHostnameResolver, IResolutionReceiver, IResolverSimple
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from zope.interface import implementer

from .._errors import shown
from .._policy import check_seconds, is_one_of

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
        self,
        resolutionReceiver: Any,
        hostName: str | bytes,
        portNumber: int | str = 0,
        addressTypes: Iterable[type] | None = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        """Look up all addresses of a name: see ``IHostnameResolver``. After 60 seconds there are
        none.

        :returns: an ``IHostResolution``.
        :raises TypeError: `resolutionReceiver` is no ``IResolutionReceiver``, `hostName` no string,
            `portNumber` neither a number nor the name of a service, or `addressTypes` has something
            else than ``IPv4Address`` and ``IPv6Address`` in it.
        :raises ValueError: `portNumber` is not from 0 to 65535, `addressTypes` is empty, or
            `transportSemantics` is neither ``"TCP"`` nor ``"UDP"``.
        """
        # Raised here, as Twisted's own raises for the last two: a receiver can't be told. What
        # Twisted's finds out later, in a thread, it logs, and the receiver waits for ever.
        _check_receiver(resolutionReceiver)
        _check_host("resolveHostName(hostName)", hostName)
        _check_port(portNumber)
        types = None if addressTypes is None else _checked_types(addressTypes)
        if not is_one_of(("TCP", "UDP"), transportSemantics):
            raise ValueError(
                "resolveHostName(transportSemantics=...) must be 'TCP' or 'UDP', not "
                f"{shown(transportSemantics)}"
            )
        name: Any = hostName  # Twisted's takes bytes, too, and does not say so
        port: Any = portNumber
        return self._all_addresses.resolveHostName(
            resolutionReceiver, name, port, types, transportSemantics
        )

    def getHostByName(
        self, name: str | bytes, timeout: Sequence[float] | None = TIMEOUT
    ) -> Deferred[str]:
        """Look up an IPv4 address.

        :param timeout: a sequence of seconds; the sum of them is the limit. Where it is empty, or
            ``None``, that is Twisted's own.
        :returns: a Deferred of the address. It fails with ``DNSLookupError``, also when the time
            is over.
        :raises TypeError: `name` is not a string, or `timeout` not a sequence of numbers.
        :raises ValueError: a number in `timeout` is negative, NaN or infinite, or their sum is.
        """
        # Raised, not a Deferred that fails: Twisted's own callers have strings only, which they
        # search for an address first (ReactorBase.resolve and tcp.Connector raise for others).
        # So it is the mistake of whoever calls this, as a wrong timeout is, for which
        # ThreadedResolver raises, too.
        _check_host("getHostByName(name)", name)
        seconds = _sum_of(timeout)
        d: Deferred[str] = deferToThreadPool(
            self._reactor,
            self._greenlets,
            partial(self._look_up, "gethostbyname", seconds),
            name,
        )
        return d.addErrback(_not_found, name)

    def _getaddrinfo(self, *args: Any) -> Any:
        try:
            return self._look_up("getaddrinfo", sum(TIMEOUT), *args)
        except gaierror:
            raise
        except (OSError, UnicodeError) as e:
            # Of this one Twisted's would tell nobody, and its receiver would wait for ever.
            raise gaierror(EAI_FAIL, str(e)) from e

    def _look_up(self, how: str, seconds: float, name: str | bytes, *args: Any) -> Any:
        """Call a method of the resolver, in a greenlet.

        :raises OSError: there is no such name, or the time is over.
        """
        _refuse_what_is_no_name(name)
        with gevent.Timeout(seconds, gaierror(EAI_AGAIN, f"no answer within {seconds} s")):
            return getattr(self._of_this_hub(), how)(name, *args)

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


def _check_host(what: str, name: object) -> None:
    if not isinstance(name, (str, bytes)):
        raise TypeError(f"{what} must be a string, not {shown(name)}")


def _check_receiver(receiver: object) -> None:
    for name in IResolutionReceiver.names():
        if not callable(getattr(receiver, name, None)):
            raise TypeError(
                "resolveHostName(resolutionReceiver) needs an IResolutionReceiver, which has a "
                f"method {name}, not {shown(receiver)}"
            )


def _check_port(port: object) -> None:
    allowed = "a port's number, from 0 to 65535, or the name of a service"
    if isinstance(port, bool) or not isinstance(port, (int, str)):
        raise TypeError(f"resolveHostName(portNumber=...) must be {allowed}, not {shown(port)}")
    # HostnameEndpoint hands on what it was given: digits too. Of a number that is too large
    # getaddrinfo() takes the last 16 bits, and that port is somebody else's.
    try:
        number = int(port)
    except ValueError:
        return
    if not 0 <= number <= 65535:
        raise ValueError(f"resolveHostName(portNumber=...) must be {allowed}, not {shown(port)}")


def _checked_types(given: Iterable[type]) -> tuple[Any, ...]:
    what = "resolveHostName(addressTypes=...) must be IPv4Address, IPv6Address, or both, in a list"
    known = (IPv4Address, IPv6Address)
    types = tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(any(each is one for one in known) for each in types):
        raise TypeError(f"{what}, or None, not {shown(given)}")
    if not types:
        raise ValueError(f"{what}, or None, not the empty {shown(given)}")
    return types


def _refuse_what_is_no_name(name: str | bytes) -> None:
    """What no host is called, gevent need not be asked for: it would print a traceback, or look up
    what is left of a null character.

    :raises OSError: `name` is none.
    """
    try:
        encoded = name if isinstance(name, bytes) else name.encode("idna")
    except UnicodeError as e:
        raise gaierror(EAI_NONAME, str(e)) from None
    if b"\0" in encoded:
        raise gaierror(EAI_NONAME, "a name has no null characters")


def _not_found(failure: Failure, name: str | bytes) -> Failure:
    failure.trap(OSError, UnicodeError)  # the latter: gevent has others, with rules of their own
    return Failure(DNSLookupError(f"address {shown(name)} not found: {failure.getErrorMessage()}"))


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
