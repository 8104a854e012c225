"""
Opening a connection to a Redis server, in plain or by TLS; and what went wrong, in words.

The certificates of each connection are read anew, so renewed ones need no restart.
"""

import asyncio
import socket
import ssl
from typing import Final

from bridge.core.redis_address import Host, RedisAddress
from bridge.inbox.redis.protocol import HUNG_UP, Link, Pushed

# Whoever speaks no TLS waits for the rest of what it takes for a command.
_HANDSHAKE_S: Final = 4.0
_ENDS: Final = (HUNG_UP, "reset by peer", "Broken pipe", "_ALERT_")


async def open_link(
    address: RedisAddress, host: Host, *, pushed: Pushed | None = None
) -> Link:
    """
    Open a connection without a word.

    Raises:
        OSError: If there is none. Its text says why, and what to do where that is known.

    """
    context = await asyncio.to_thread(_context, address) if address.has_tls else None
    loop = asyncio.get_running_loop()
    try:
        _, link = await loop.create_connection(
            lambda: Link(pushed),
            host.name,
            host.port,
            ssl=context,
            ssl_handshake_timeout=_HANDSHAKE_S if context else None,
        )
    except ssl.SSLCertVerificationError as exc:
        raise OSError(_distrust(address, host, exc)) from exc
    except ssl.SSLError as exc:
        raise OSError(f"TLS with {host} failed: {exc.reason or exc}") from exc
    except socket.gaierror as exc:
        raise OSError(f"{host.name} is no host that is known here") from exc
    except ConnectionAbortedError as exc:
        problem = f"no TLS from {host} within {_HANDSHAKE_S:.0f} s; is it a TLS port?"
        raise OSError(problem) from exc
    except OSError as exc:
        if not _is_refusal(exc):
            raise
        raise OSError(f"connection refused; is Redis running at {host}?") from exc
    return link


def _context(address: RedisAddress) -> ssl.SSLContext:
    """Read the certificates. Blocks."""
    try:
        context = ssl.create_default_context(cafile=address.ca_file)
    except OSError as exc:  # those of ssl are some too
        raise OSError(_unreadable("ca", address.ca_file, exc)) from exc
    if address.cert_file is not None:
        try:
            # A key that asks for a password must not ask the terminal.
            context.load_cert_chain(address.cert_file, address.key_file, password="")
        except OSError as exc:
            raise OSError(_unreadable("cert", address.cert_file, exc)) from exc
    return context


def _unreadable(option: str, path: str | None, exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        return f"{option}={path}: no certificate and key in PEM that fit"
    return f"{option}={path}: {exc.strerror or exc}"


def _distrust(
    address: RedisAddress, host: Host, exc: ssl.SSLCertVerificationError
) -> str:
    """Say why the server's certificate is no good; OpenSSL's own words say which."""
    text = (
        f"the certificate of {host} is not trusted ({exc.verify_message.rstrip('.')})"
    )
    if "mismatch" in exc.verify_message or "expired" in exc.verify_message:
        return text
    if address.ca_file is None:
        return f"{text}; name its authority by ?ca=FILE"
    return f"{text}; is ca={address.ca_file} its authority?"


def greeting_lost(address: RedisAddress, problem: str) -> str:
    """
    Say what may be behind a connection that ended before anything was answered.

    With TLS 1.3 a server refuses our certificate after the handshake. Its alert says so,
    but where it closes with bytes of ours unread, the kernel may drop that.
    """
    if not any(word in problem for word in _ENDS):
        return problem
    if not address.has_tls:
        return f"{HUNG_UP}; does it want TLS, rediss://?"
    if address.cert_file is None:
        return f"{HUNG_UP}; does it want a certificate of ours, by the option cert?"
    return f"{HUNG_UP}; does it trust our certificate, cert={address.cert_file}?"


def _is_refusal(exc: OSError) -> bool:
    # Where a name has several addresses, asyncio tells all that happened in one text.
    return isinstance(exc, ConnectionRefusedError) or "Connect call failed" in str(exc)
