"""requests and urllib3, over plain HTTP and TLS, on a server with a certificate of its own."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

from .clients import AT_ONCE, Client, ClientTests
from .conftest import needs

requests = needs("requests")
trustme = needs("trustme")
urllib3 = needs("urllib3")


class HTTPServer:
    """``/N`` answers with N; ``/wait`` waits until ``gate`` is set, ``/nap/S`` for S seconds."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.gate = Event()
        self.waiting = 0
        self._tls = {} if tls is None else {"ssl_context": tls}
        self.port = 0
        self._server: Any = None
        self.start()

    def start(self) -> None:
        self._server = WSGIServer(
            ("127.0.0.1", self.port), self._answer, log=None, spawn=Pool(), **self._tls
        )
        self._server.start()
        self.port = self._server.server_port

    def stop(self) -> None:
        self._server.stop(timeout=0)  # whoever is connected is thrown out

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/wait":
            self.waiting += 1
            try:
                self.gate.wait()
            finally:
                self.waiting -= 1
        if environ["PATH_INFO"].startswith("/nap/"):
            gevent.sleep(float(environ["PATH_INFO"].removeprefix("/nap/")))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%3000s" % environ["PATH_INFO"].removeprefix("/").encode()]


class HTTPClient:
    errors: tuple[type[Exception], ...] = ()

    def __init__(self, server: HTTPServer, url: str, ca: Path) -> None:
        self._server = server
        self._url = url
        self._ca = str(ca)
        server.gate.clear()
        self.open()

    def open(self) -> None:
        raise NotImplementedError

    def get(self, url: str) -> bytes:
        raise NotImplementedError

    def ask(self, n: int) -> int:
        return int(self.get(f"{self._url}/{n}"))

    def nap(self, seconds: float) -> object:
        return self.get(f"{self._url}/nap/{seconds}")

    def wait(self) -> object:
        return self.get(f"{self._url}/wait")

    def waiting(self) -> int:
        return self._server.waiting

    def release(self) -> None:
        self._server.gate.set()

    def close(self) -> None:
        raise NotImplementedError


class RequestsClient(HTTPClient):
    errors = (requests.RequestException,)

    def open(self) -> None:
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.mount(
            "http", requests.adapters.HTTPAdapter(pool_maxsize=AT_ONCE, pool_block=True)
        )

    def get(self, url: str) -> bytes:
        response = self._session.get(url, verify=self._ca)
        response.raise_for_status()
        content: bytes = response.content
        return content

    def close(self) -> None:
        self._session.close()


class Urllib3Client(HTTPClient):
    errors = (urllib3.exceptions.HTTPError,)

    def open(self) -> None:
        self._manager = urllib3.PoolManager(
            maxsize=AT_ONCE, block=True, retries=False, ca_certs=self._ca
        )

    def get(self, url: str) -> bytes:
        response = self._manager.request("GET", url)
        if response.status != 200:
            raise urllib3.exceptions.HTTPError(response.status)
        content: bytes = response.data
        return content

    def close(self) -> None:
        self._manager.clear()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: Any) -> tuple[Any, Path]:
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return authority, path


@pytest.fixture(scope="module", params=["http", "https"])
def server(request: Any, authority: tuple[Any, Path]) -> Iterator[HTTPServer]:
    tls = None
    if request.param == "https":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority[0].issue_cert("127.0.0.1").configure_cert(tls)
    server = HTTPServer(tls)
    server.scheme = request.param  # type: ignore[attr-defined]
    yield server
    server.gate.set()
    server.stop()


@pytest.fixture
def server_port(server: HTTPServer) -> int:
    return server.port


@pytest.fixture(params=[RequestsClient, Urllib3Client])
def make_client(request: Any, server: Any, authority: tuple[Any, Path]) -> Callable[[int], Client]:
    def make(port: int) -> Client:
        client: Client = request.param(server, f"{server.scheme}://127.0.0.1:{port}", authority[1])
        return client

    return make


class TestHTTP(ClientTests):
    pass


def test_a_certificate_that_nobody_vouches_for(server: Any, tmp_path: Path) -> None:
    """TLS is checked: the certificate of another authority is refused."""
    if server.scheme == "http":
        pytest.skip("it has none")
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    with pytest.raises(requests.exceptions.SSLError):
        RequestsClient(server, f"https://127.0.0.1:{server.port}", other).ask(1)
