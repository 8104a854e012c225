"""What settings mean together: each is fine alone, and yet the start must be refused."""

from collections.abc import Sequence
from typing import Final, Protocol

from pydantic import SecretStr

from bridge.settings.checks import is_loopback

_SECRET_MIN_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}


class _Together(Protocol):
    """The settings that are looked at together."""

    @property
    def auth(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def operator_host(self) -> str: ...
    @property
    def operator_port(self) -> int: ...
    @property
    def dangerously_open_to_the_network(self) -> bool: ...
    @property
    def jwt_algorithms(self) -> Sequence[str]: ...
    @property
    def jwt_secret(self) -> Sequence[SecretStr]: ...
    @property
    def jwt_public_key(self) -> str | None: ...
    @property
    def jwks_url(self) -> str | None: ...
    @property
    def slow_client_bytes(self) -> int: ...
    @property
    def max_message_bytes(self) -> int: ...
    @property
    def schemas(self) -> str | None: ...
    @property
    def schemas_unknown(self) -> str: ...
    @property
    def workers(self) -> int: ...
    @property
    def inbox(self) -> str: ...


def contradictions(settings: _Together) -> list[str]:
    """Say what cannot be meant; each line names its setting."""
    return [
        *_auth_problems(settings),
        *_open_mode_problems(settings),
        *_size_problems(settings),
        *_schema_problems(settings),
        *_worker_problems(settings),
        *_door_problems(settings),
    ]


def _door_problems(settings: _Together) -> list[str]:
    hosts = {settings.host, settings.operator_host}
    if settings.port != settings.operator_port or settings.port == 0:
        return []
    if len(hosts) > 1 and not hosts & {"0.0.0.0", "::"}:
        return []
    return [
        f"BRIDGE_OPERATOR_PORT: {settings.operator_port} is BRIDGE_PORT too, and they "
        "are two doors: choose another one"
    ]


def _worker_problems(settings: _Together) -> list[str]:
    kind, colon, _ = settings.inbox.partition(":")
    if settings.workers == 1 or kind not in {"sqlite", "memory"}:
        return []
    return [
        f"BRIDGE_WORKERS: {settings.workers} workers need an inbox that they share, and "
        f"{kind}{colon} is one process's: set BRIDGE_INBOX=redis://HOST:PORT/, or "
        "BRIDGE_WORKERS=1"
    ]


def _schema_problems(settings: _Together) -> list[str]:
    # Every message would become a dead letter.
    if settings.schemas is None and settings.schemas_unknown == "dead":
        return ["BRIDGE_SCHEMAS_UNKNOWN: dead needs BRIDGE_SCHEMAS, the known ones"]
    return []


def _size_problems(settings: _Together) -> list[str]:
    # A message that does not fit would close the window, which would come back for
    # it and be closed again.
    if settings.slow_client_bytes >= 2 * settings.max_message_bytes:
        return []
    return [
        "BRIDGE_SLOW_CLIENT_BYTES: must be at least twice BRIDGE_MAX_MESSAGE_BYTES, "
        "or a large message closes every window that it is for"
    ]


def _auth_problems(settings: _Together) -> list[str]:
    if settings.auth == "open":
        return []
    problems: list[str] = []
    symmetric = [name for name in settings.jwt_algorithms if name.startswith("HS")]
    asymmetric = [name for name in settings.jwt_algorithms if not name.startswith("HS")]
    if symmetric and not settings.jwt_secret:
        problems.append(
            f"BRIDGE_JWT_SECRET: {symmetric[0]} needs a secret; make one with "
            "`openssl rand -base64 48`"
        )
    if asymmetric and not (settings.jwt_public_key or settings.jwks_url):
        problems.append(
            f"BRIDGE_JWT_PUBLIC_KEY: {asymmetric[0]} needs a public key or BRIDGE_JWKS_URL"
        )
    if settings.jwt_public_key and settings.jwks_url:
        problems.append(
            "BRIDGE_JWT_PUBLIC_KEY: cannot be used together with BRIDGE_JWKS_URL"
        )
    for number, secret in enumerate(settings.jwt_secret, start=1):
        length = len(secret.get_secret_value().encode())
        short = [name for name in symmetric if length < _SECRET_MIN_BYTES[name]]
        if short:
            strictest = max(short, key=_SECRET_MIN_BYTES.__getitem__)
            problems.append(
                f"BRIDGE_JWT_SECRET: secret number {number} has {length} bytes, "
                f"{strictest} needs {_SECRET_MIN_BYTES[strictest]} (RFC 7518 section 3.2)"
            )
    return problems


def _open_mode_problems(settings: _Together) -> list[str]:
    is_exposed = settings.auth == "open" and not is_loopback(settings.host)
    if is_exposed and not settings.dangerously_open_to_the_network:
        return [
            f"BRIDGE_AUTH: open on {settings.host} lets anybody read anybody's messages; "
            "bind to 127.0.0.1, use jwt, or, if that is meant, set "
            "BRIDGE_DANGEROUSLY_OPEN_TO_THE_NETWORK=true"
        ]
    return []
