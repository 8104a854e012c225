"""Check for secrets that can be guessed, and for settings that expose the bridge."""

from pydantic import SecretStr
from yarl import URL

from bridge.core.listen_hosts import tcp_hosts
from bridge.core.origins import NULL_ENTRY
from bridge.doctor.permissions import new_user_command
from bridge.doctor.results import CheckResult, fail, ok, warn
from bridge.settings.checks import is_loopback, secret_weakness
from bridge.settings.model import Settings


def check_secrets(settings: Settings) -> list[CheckResult]:
    """Report weak secrets, without their values."""
    secrets: list[tuple[str, SecretStr | None, str]] = [
        ("BRIDGE_OPERATOR_TOKEN", settings.operator_token, "openssl rand -hex 16"),
        ("BRIDGE_API_KEY", settings.api_key, "openssl rand -hex 16"),
    ]
    secrets += [
        ("BRIDGE_JWT_SECRET", secret, "openssl rand -base64 48")
        for secret in settings.jwt_secret
    ]
    found: list[CheckResult] = []
    for name, secret, generate in secrets:
        problem = secret_weakness(secret.get_secret_value()) if secret else None
        if problem:
            found.append(fail(name, problem, fix=f"{name}=$({generate})"))
    for url in (URL(url.get_secret_value()) for url in settings.amqp_url):
        is_default = (url.user or "guest", url.password or "guest") == ("guest",) * 2
        if is_default and not is_loopback(url.host or ""):
            text = f"logs in to {url.host} as guest with the default password"
            fix = new_user_command(settings.namespace, url)
            found.append(fail("BRIDGE_AMQP_URL", text, fix=fix))
    return found or [ok("secrets", "none is short or repetitive")]


def check_exposure(settings: Settings) -> list[CheckResult]:
    """Warn of settings that give access to more people than intended."""
    exposures = (
        (
            settings.dangerously_open_to_the_network,
            "BRIDGE_DANGEROUSLY_OPEN_TO_THE_NETWORK",
            "anyone who reaches the port can read the messages of all users",
            "BRIDGE_AUTH=jwt",
        ),
        (
            settings.dangerously_allow_any_origin,
            "BRIDGE_DANGEROUSLY_ALLOW_ANY_ORIGIN",
            "any website can use the cookies of your users",
            "BRIDGE_ALLOWED_ORIGINS=https://your.site",
        ),
        (
            NULL_ENTRY in settings.allowed_origins,
            "BRIDGE_ALLOWED_ORIGINS",
            f"{NULL_ENTRY}: a sandboxed frame of any website can use your users' cookies",
            "remove it from the list",
        ),
        (
            not all(map(is_loopback, tcp_hosts(settings.operator_host))),
            "BRIDGE_OPERATOR_HOST",
            "the operator port is open to the network, without TLS",
            "BRIDGE_OPERATOR_HOST=127.0.0.1, or TLS and a firewall in front",
        ),
        (
            settings.legacy_push and settings.auth == "open",
            "BRIDGE_LEGACY_PUSH",
            "anyone who reaches the public port can push to any user",
            "BRIDGE_LEGACY_PUSH=false",
        ),
        (
            settings.accepts_tokens_for_others,
            "BRIDGE_JWT_AUDIENCE",
            "neither it nor BRIDGE_JWT_ISSUER is set, so every token with a valid signature "
            "is accepted, also those that the issuer signed for other applications",
            "BRIDGE_JWT_AUDIENCE=…, the claim aud of the tokens for this bridge",
        ),
        (
            settings.operator_token is None,
            "BRIDGE_OPERATOR_TOKEN",
            "is not set, so /metrics and the operator API refuse every request",
            "BRIDGE_OPERATOR_TOKEN=$(openssl rand -hex 16)",
        ),
    )
    found = [
        warn(name, text, fix=fix)
        for is_exposed, name, text, fix in exposures
        if is_exposed
    ]
    nothing = ok("exposure", "no port is exposed without authentication")
    return found or [nothing]
