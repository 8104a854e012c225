"""
The certificate of the public port: BRIDGE_TLS_CERT and BRIDGE_TLS_KEY.

The files are read at the start and at each reload. New connections use the newest one.
"""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from bridge.errors import ConfigError
from bridge.settings.files import read_file

log = structlog.get_logger(__name__)

_CERT: Final = "BRIDGE_TLS_CERT"
_KEY: Final = "BRIDGE_TLS_KEY"


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """
    A certificate that was read, with its key.

    Attributes:
        context: Encrypts connections with it.
        pem: The certificate itself, without those of its issuers.
        end_s: The end of its validity, in Unix time.

    """

    context: ssl.SSLContext
    pem: str
    end_s: float


class PortCertificate:
    """
    The certificate that a port presents to new connections.

    Attributes:
        current: The newest one.

    """

    def __init__(self, current: ServerCertificate) -> None:
        self.current = current

    def replace(self, new: ServerCertificate) -> None:
        """Present `new` from now on; open connections are not affected."""
        if new.pem != self.current.pem:
            ends = datetime.fromtimestamp(new.end_s, tz=UTC).isoformat()
            log.info("certificate.replaced", ends=ends)
        self.current = new


def load_server_certificate(
    cert: str | None, key: str | None
) -> ServerCertificate | None:
    """
    Read a certificate and its key. Blocks on the disk: do not call in the loop.

    Args:
        cert: The value of BRIDGE_TLS_CERT: a file with the certificate, then its issuers.
        key: The value of BRIDGE_TLS_KEY: a file with the private key.

    Returns:
        ``None`` if `cert` or `key` is ``None``.

    Raises:
        ConfigError: If a file cannot be read or used, or the two do not fit together.

    """
    if cert is None or key is None:
        return None
    own = _load_cert(cert)
    _check_key(key, own)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key)
    except ssl.SSLError as exc:  # such as EE_KEY_TOO_SMALL
        text = f"cannot be used: {exc.reason or 'OpenSSL cannot read it'}"
        raise _problem(_CERT, cert, text) from exc
    return ServerCertificate(
        context,
        pem=own.public_bytes(Encoding.PEM).decode(),
        end_s=own.not_valid_after_utc.timestamp(),
    )


def context_trusting(cert: str) -> ssl.SSLContext:
    """
    Return a context of clients on this machine, which connect without the port's name.

    The port must have the key of the certificate in the file `cert`.

    Raises:
        ConfigError: If the file cannot be read.

    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(
        cadata=_load_cert(cert).public_bytes(Encoding.PEM).decode()
    )
    return context


def _load_cert(path: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(_read(_CERT, path))[0]
    except ValueError as exc:
        raise _problem(_CERT, path, "is not a certificate in PEM") from exc


def _check_key(path: str, cert: x509.Certificate) -> None:
    """Refuse a key that OpenSSL would ask a password for, or refuse without a reason."""
    try:
        key = load_pem_private_key(_read(_KEY, path), password=None)
    except TypeError as exc:
        text = "is encrypted with a password; remove it: openssl pkey -in FILE -out NEW"
        raise _problem(_KEY, path, text) from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        # The text of the library may quote bytes of the file.
        raise _problem(_KEY, path, "is not a private key in PEM") from exc
    if key.public_key() != cert.public_key():
        text = f"does not belong to the first certificate in {_CERT}"
        raise _problem(_KEY, path, text)


def _read(setting: str, path: str) -> bytes:
    content = read_file(path)
    if isinstance(content, str):
        raise _problem(setting, path, content)
    return content


def _problem(setting: str, path: str, text: str) -> ConfigError:
    return ConfigError([f"{setting}: {path} {text}"])
