"""Secrets that can be guessed, and settings that open more than one may think."""

from collections.abc import Iterator
from typing import Final

from pydantic import SecretStr
from yarl import URL

from bridge.doctor.results import Finding, note, ok, wrong
from bridge.settings.checks import is_loopback
from bridge.settings.model import Settings

_SECRET_MIN_BYTES: Final = 16
# `openssl rand -hex 16` has 16 kinds of characters; "secretsecretsecret" has 5.
_KINDS_MIN: Final = 8


def secret_findings(settings: Settings) -> Iterator[Finding]:
    """Look at what is meant to be unguessable; no value is told."""
    named: list[tuple[str, SecretStr | None, str]] = [
        ("BRIDGE_OPERATOR_TOKEN", settings.operator_token, "openssl rand -hex 16"),
        ("BRIDGE_API_KEY", settings.api_key, "openssl rand -hex 16"),
    ]
    named += [
        ("BRIDGE_JWT_SECRET", secret, "openssl rand -base64 48")
        for secret in settings.jwt_secret
    ]
    found = False
    for name, secret, maker in named:
        problem = weakness(secret.get_secret_value()) if secret else None
        if problem:
            found = True
            yield wrong(name, problem, mend=f"{name}=$({maker})")
    for url in (URL(url.get_secret_value()) for url in settings.amqp_url):
        is_default = (url.user or "guest", url.password or "guest") == ("guest",) * 2
        if is_default and not is_loopback(url.host or ""):
            found = True
            text = f"logs in to {url.host} as guest with the password that all know"
            mend = "rabbitmqctl add_user bridge; rabbitmqctl delete_user guest"
            yield wrong("BRIDGE_AMQP_URL", text, mend=mend)
    if not found:
        yield ok("secrets", "none is short or made of few characters")


def weakness(secret: str) -> str | None:
    """Say why a secret can be guessed; `None` if nothing speaks for it."""
    length, kinds = len(secret.encode()), len(set(secret))
    if length < _SECRET_MIN_BYTES:
        return f"has {length} bytes, expected at least {_SECRET_MIN_BYTES}"
    if kinds < _KINDS_MIN:
        return (
            f"is made of {kinds} different characters, expected at least {_KINDS_MIN}"
        )
    return None


def setting_findings(settings: Settings) -> Iterator[Finding]:
    """Look at what opens doors."""
    found = False
    for is_set, name, text, mend in (
        (
            settings.dangerously_open_to_the_network,
            "BRIDGE_DANGEROUSLY_OPEN_TO_THE_NETWORK",
            "anybody who reaches the port reads anybody's messages",
            "BRIDGE_AUTH=jwt",
        ),
        (
            settings.dangerously_allow_any_origin,
            "BRIDGE_DANGEROUSLY_ALLOW_ANY_ORIGIN",
            "every site can use the cookies of your users",
            "BRIDGE_ALLOWED_ORIGINS=https://your.site",
        ),
        (
            not is_loopback(settings.operator_host),
            "BRIDGE_OPERATOR_HOST",
            "the operator port is open to the network, without TLS",
            "BRIDGE_OPERATOR_HOST=127.0.0.1, or TLS and a firewall in front",
        ),
        (
            settings.legacy_push and settings.auth == "open",
            "BRIDGE_LEGACY_PUSH",
            "whoever reaches the public port may push to anybody",
            "BRIDGE_LEGACY_PUSH=false",
        ),
        (
            settings.operator_token is None,
            "BRIDGE_OPERATOR_TOKEN",
            "is not set, so nobody can read /metrics or use the operator's API",
            "BRIDGE_OPERATOR_TOKEN=$(openssl rand -hex 16)",
        ),
    ):
        if is_set:
            found = True
            yield note(name, text, mend=mend)
    if not found:
        yield ok("doors", "none is open to those whom it is not for")
