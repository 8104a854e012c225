"""Whether the servers of a test use TLS, and whether its clients trust them."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import aiohttp
import pytest

from bridge.server_certificate import PortCertificate, load_server_certificate
from tests.certificates import Authority, Signed

# For `pytestmark` of a module: its tests run without and with TLS.
WITHOUT_AND_WITH_TLS = pytest.mark.parametrize(
    "security", ["plain", "tls"], indirect=True
)


@dataclass(frozen=True)
class Security:
    """
    The certificate of the servers, and a context of clients that trust it.

    Attributes:
        current: That of the running test; `None` without TLS.

    """

    certificate: PortCertificate
    client: ssl.SSLContext

    current: ClassVar["Security | None"] = None


def port_certificate(signed: Signed) -> PortCertificate:
    """Return the certificate of a port."""
    loaded = load_server_certificate(str(signed.cert), str(signed.key))
    assert loaded is not None
    return PortCertificate(loaded)


def new_security(folder: Path) -> tuple[Security, Path]:
    """Create an authority and a certificate; return also the file of the authority."""
    authority = Authority(folder, "authority")
    signed = authority.sign("server", address="127.0.0.1")
    client = ssl.create_default_context(cafile=authority.cert)
    return Security(port_certificate(signed), client), authority.cert


@contextmanager
def using(security: Security | None) -> Iterator[None]:
    """Let servers use TLS, and clients trust them, until the block is left."""
    Security.current = security
    try:
        yield
    finally:
        Security.current = None


def connector() -> aiohttp.TCPConnector:
    """Return a connector that trusts the servers of the running test."""
    security = Security.current
    return aiohttp.TCPConnector(ssl=security.client if security else True)


def http_session(headers: dict[str, str] | None = None) -> aiohttp.ClientSession:
    """Return a session that trusts the servers of the running test."""
    return aiohttp.ClientSession(headers=headers, connector=connector())
