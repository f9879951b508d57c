"""The resolver, where it is asked for what it can't look up. What it finds, and how long that may
take, is in test_threads.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from twisted.internet import protocol
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IHostnameResolver, IResolutionReceiver, IResolverSimple
from zope.interface import implementer
from zope.interface.verify import verifyObject

from greendefer import wait_for_deferred
from greendefer.geventreactor import GeventResolver

NO_NAMES = ["a..b", "x" * 64 + ".example", "localhost\0.example", b"localhost\0", "\ud800"]


@implementer(IResolutionReceiver)
class Receiver:
    def __init__(self) -> None:
        self.addresses: list[Any] = []
        self.complete: Deferred[list[Any]] = Deferred()
        self.begun: list[Any] = []

    def resolutionBegan(self, resolution: Any) -> None:
        self.begun.append(resolution.name)

    def addressResolved(self, address: Any) -> None:
        self.addresses.append(address)

    def resolutionComplete(self) -> None:
        self.complete.callback(self.addresses)


@pytest.fixture
def resolver(reactor: Any) -> GeventResolver:
    return GeventResolver(reactor)


@pytest.fixture
def all_of(resolver: GeventResolver) -> Callable[..., list[Any]]:
    def resolve(*args: Any, **kwargs: Any) -> list[Any]:
        receiver = Receiver()
        resolver.resolveHostName(receiver, *args, **kwargs)
        return wait_for_deferred(receiver.complete, 20)

    return resolve


@pytest.fixture
def hub_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Have gevent use another resolver."""
    return lambda resolver: monkeypatch.setattr(gevent.get_hub(), "resolver", resolver)


def test_what_it_provides(resolver: GeventResolver) -> None:
    assert verifyObject(IHostnameResolver, resolver)
    assert verifyObject(IResolverSimple, resolver)


@pytest.mark.parametrize("name", ["localhost", b"localhost", "127.0.0.1", b"127.0.0.1"])
def test_names_are_strings_of_either_kind(
    name: Any, resolver: GeventResolver, all_of: Callable[..., list[Any]]
) -> None:
    assert wait_for_deferred(resolver.getHostByName(name), 20) == "127.0.0.1"
    (address,) = all_of(name, 80, [IPv4Address])
    assert address == IPv4Address("TCP", "127.0.0.1", 80)


@pytest.mark.parametrize("name", ["", b""])
def test_an_empty_name(name: Any, resolver: GeventResolver) -> None:
    """As the system has it."""
    assert wait_for_deferred(resolver.getHostByName(name), 20) == "0.0.0.0"


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_no_host_is_called(
    name: Any,
    resolver: GeventResolver,
    all_of: Callable[..., list[Any]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It is not found, which the receiver hears as well; and nothing is printed of it."""
    with pytest.raises(DNSLookupError, match="not found"):
        wait_for_deferred(resolver.getHostByName(name), 20)
    assert all_of(name) == []
    assert capfd.readouterr() == ("", "")


def test_a_name_that_is_no_string(reactor: Any, resolver: GeventResolver) -> None:
    for name in (5, None, ["localhost"]):
        with pytest.raises(TypeError) as e:
            resolver.getHostByName(name)  # type: ignore[arg-type]
        assert str(e.value) == f"getHostByName(name) must be a string, not {name!r}"
    with pytest.raises(TypeError, match="name"):
        reactor.resolve(["localhost"])  # others Twisted itself can't search for an address


@pytest.mark.parametrize(
    ("port", "number"),
    [(0, 0), (65535, 65535), ("80", 80), ("no-such-service", None)],
)
def test_ports(port: Any, number: int | None, all_of: Callable[..., list[Any]]) -> None:
    addresses = all_of("127.0.0.1", port)
    assert [a.port for a in addresses] == ([] if number is None else [number])


def test_types_and_transports(all_of: Callable[..., list[Any]]) -> None:
    for types in ([IPv4Address], iter([IPv4Address]), (IPv4Address, IPv6Address), None):
        assert all_of("127.0.0.1", 5, types, "UDP") == [IPv4Address("UDP", "127.0.0.1", 5)]
    assert all_of("127.0.0.1", addressTypes=[IPv6Address]) == []


def test_nothing_begins_that_is_refused(resolver: GeventResolver) -> None:
    receiver = Receiver()
    several: tuple[dict[str, Any], ...] = (
        *({"hostName": 5}, {"portNumber": 65536}, {"portNumber": "70000"}, {"addressTypes": []}),
        *({"addressTypes": [int]}, {"transportSemantics": "tcp"}),
    )
    for wrong in several:
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            resolver.resolveHostName(receiver, **{"hostName": "localhost", **wrong})
    assert receiver.begun == []


def test_an_endpoint_does_not_connect_to_another_port(reactor: Any, in_reactor: Any) -> None:
    """70000 is 4464, if somebody takes its last 16 bits."""
    endpoint = HostnameEndpoint(reactor, "localhost", 70000)
    with pytest.raises(ValueError, match=r"portNumber.*from 0 to 65535.*not 70000"):
        in_reactor(endpoint.connect, protocol.Factory.forProtocol(protocol.Protocol))


def test_a_lookup_that_fails_otherwise_is_told_of(
    resolver: GeventResolver, hub_with: Callable[[Any], None], all_of: Callable[..., list[Any]]
) -> None:
    """No more descriptors, say."""

    class Broken:
        def gethostbyname(self, *args: Any) -> None:
            raise OSError(24, "Too many open files")

        getaddrinfo = gethostbyname

    hub_with(Broken())
    assert all_of("example.org") == []
    with pytest.raises(DNSLookupError, match=r"'example.org' not found.*Too many open files"):
        wait_for_deferred(resolver.getHostByName("example.org"), 20)
