"""Check the certificate of the public port, and that the running bridge presents it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from time import time
from typing import Final

from bridge.core.listen_hosts import local_host
from bridge.doctor.certificates import check_certificate
from bridge.doctor.results import CheckResult, fail, warn
from bridge.enums import ExitCode
from bridge.errors import ConfigError
from bridge.settings.model import Settings
from bridge.wiring import certificate_of

_TIMEOUT_S: Final = 5.0
_SUBJECT: Final = "certificate of the public port"
_RENEW: Final = "renew it, then `systemctl reload bridge`, or send SIGHUP to bridge"
_RELOAD: Final = (
    "`systemctl reload bridge`, or send SIGHUP to bridge; if the log has "
    "settings.reload_refused, it has the reason"
)


async def check_own_certificate(settings: Settings) -> AsyncIterator[CheckResult]:
    """Check BRIDGE_TLS_CERT and BRIDGE_TLS_KEY; yield nothing without them."""
    try:
        certificate = await asyncio.to_thread(certificate_of, settings)
    except ConfigError as exc:
        fix = (
            f"openssl x509 -pubkey -noout -in {settings.tls_cert}; "
            f"openssl pkey -pubout -in {settings.tls_key}"
            "   # as the user of bridge; both must print the same key"
        )
        for problem in exc.problems:
            yield fail(_SUBJECT, problem, fix=fix, exit_code=ExitCode.USAGE)
        return
    if certificate is None:
        return
    yield check_certificate(_SUBJECT, certificate.end_s, now_s=time(), fix=_RENEW)
    host = local_host(settings.host)
    presented = await _presented(host, settings.port) if host else None
    if presented not in {None, ssl.PEM_cert_to_DER_cert(certificate.pem)}:
        text = "the running bridge presents another one than that of BRIDGE_TLS_CERT"
        yield warn(_SUBJECT, text, fix=_RELOAD)


async def _presented(host: str, port: int) -> bytes | None:
    """Return the certificate that a port presents, in DER; ``None`` if there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is sent: only the certificate is compared.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, TimeoutError):
        return None
    found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(True)  # noqa: FBT003 - its only form
    writer.transport.abort()
    return found
