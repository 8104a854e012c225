"""Valid values of each setting, and settings that contradict each other."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from bridge.settings.checks import (
    PUBLIC_KEY_ALGORITHMS,
    amqp_url_problem,
    is_loopback,
    origin_problem,
)
from bridge.settings.model import Settings

JWKS_URL = "https://issuer.example/keys"


def problem_of(**values: object) -> str:
    """Return the problem of these values; there must be one."""
    with pytest.raises(ValidationError) as caught:
        Settings(**values)  # type: ignore[arg-type]  # operators write text
    [error] = caught.value.errors(include_url=False)
    return str(error["msg"]).removeprefix("Value error, ")


def accepted(**values: object) -> Settings:
    return Settings(**values)  # type: ignore[arg-type]  # operators write text


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"prefetch": 65536}, "BRIDGE_PREFETCH: should be less than or equal to 65535"),
        ({"prefetch": 0}, "BRIDGE_PREFETCH: should be greater than or equal to 1"),
        (
            {"namespace": "a b"},
            "BRIDGE_NAMESPACE: may contain letters, digits, _ and - only; the rule is ^[",
        ),
        (
            {"port": 8080, "operator_port": 8080},
            "BRIDGE_OPERATOR_PORT: 8080 is also BRIDGE_PORT",
        ),
        (
            {"host": "0.0.0.0", "operator_port": 8080},
            "BRIDGE_OPERATOR_PORT: 8080 is also BRIDGE_PORT",
        ),
        (
            {
                "jwt_secret": "a-32-byte-secret-for-these-tests",
                "slow_client_bytes": "511KiB",
            },
            "BRIDGE_SLOW_CLIENT_BYTES: must be at least twice BRIDGE_MAX_MESSAGE_BYTES",
        ),
        ({"namespace": "a..b"}, "BRIDGE_NAMESPACE: "),
        ({"namespace": ""}, "BRIDGE_NAMESPACE: "),
        (
            {"namespace": f"{'a' * 64}.{'b' * 46}"},
            "BRIDGE_NAMESPACE: String should have at most 110 characters",
        ),
        ({"port": -1}, "BRIDGE_PORT: "),
        ({"amqp_url": ""}, "BRIDGE_AMQP_URL: must name at least one broker"),
        ({"amqp_url": "http://h"}, "BRIDGE_AMQP_URL: URL number 1 must look like"),
        ({"operator_token": ""}, "BRIDGE_OPERATOR_TOKEN: is empty"),
        ({"api_key": ""}, "BRIDGE_API_KEY: is empty"),
        ({"operator_token": "s3cret\n"}, "BRIDGE_OPERATOR_TOKEN: begins or ends with"),
        ({"api_key": " s3cret"}, "BRIDGE_API_KEY: begins or ends with white space"),
        (
            {"api_key": "s3\x00cret"},
            "BRIDGE_API_KEY: begins or ends with white space, or",
        ),
        ({"management_url": "broker:15672"}, "BRIDGE_MANAGEMENT_URL: must look like"),
        ({"schemas_unknown": "dead"}, "BRIDGE_SCHEMAS_UNKNOWN: dead needs BRIDGE_SCH"),
        ({"tls_cert": "cert.pem"}, "BRIDGE_TLS_CERT: needs BRIDGE_TLS_KEY, the file"),
        ({"tls_key": "key.pem"}, "BRIDGE_TLS_KEY: needs BRIDGE_TLS_CERT, the file"),
        (
            {
                "workers": "2",
                "inbox": "redis://127.0.0.1/",
                "tls_cert": "cert.pem",
                "tls_key": "key.pem",
            },
            "BRIDGE_TLS_CERT: several workers cannot serve TLS: use a proxy",
        ),
        ({"workers": "0"}, "BRIDGE_WORKERS: "),
        ({"workers": "129"}, "BRIDGE_WORKERS: "),
        (
            {"workers": "2"},
            "BRIDGE_WORKERS: 2 workers need an inbox that they share, and sqlite: belongs",
        ),
        (
            {"workers": "2", "inbox": "memory:"},
            "BRIDGE_WORKERS: 2 workers need an inbox that they share, and memory: belongs",
        ),
        ({"auth": "none"}, "BRIDGE_AUTH: should be 'jwt' or 'open'"),
        (
            {"jwt_leeway": "1h"},
            "BRIDGE_JWT_LEEWAY: should be less than or equal to 300",
        ),
        ({"jwt_cookie": "a;b"}, "BRIDGE_JWT_COOKIE: "),
        ({"jwks_url": "http://example.org/"}, "BRIDGE_JWKS_URL: must be https://"),
        ({"jwks_url": "file:///etc/passwd"}, "BRIDGE_JWKS_URL: must be https://"),
        ({"jwks_url": "https://[::1"}, "BRIDGE_JWKS_URL: "),
        ({"jwks_url": "https:///keys"}, "BRIDGE_JWKS_URL: must be https://"),
        (
            {"allowed_origins": "null"},
            "BRIDGE_ALLOWED_ORIGINS: null is sent by sandboxed frames and local files of",
        ),
        ({"trusted_proxies": "10.0.0.0/33"}, "BRIDGE_TRUSTED_PROXIES: '10.0.0.0/33'"),
        ({"inbox": "redis:/x"}, "BRIDGE_INBOX: no host; expected redis://"),
        ({"inbox": "memory:x"}, "BRIDGE_INBOX: 'memory:x' is not a store, expected"),
        ({"inbox": "sqlite:"}, "BRIDGE_INBOX: 'sqlite:' is not a store, expected"),
        ({"inbox": "sqlite::memory:"}, "BRIDGE_INBOX: 'sqlite::memory:' is not a"),
        ({"retry_delays": ""}, "BRIDGE_RETRY_DELAYS: expected 1 to 10 delays"),
        ({"retry_delays": "1s," * 11}, "BRIDGE_RETRY_DELAYS: expected 1 to 10 delays"),
        ({"retry_delays": "0s"}, "BRIDGE_RETRY_DELAYS: expected 1 to 10 delays"),
        ({"retry_delays": "2d"}, "BRIDGE_RETRY_DELAYS: expected 1 to 10 delays"),
        ({"drain_timeout": 0}, "BRIDGE_DRAIN_TIMEOUT: should be greater than 0"),
        (
            {"drain_timeout": float("nan")},
            "BRIDGE_DRAIN_TIMEOUT: nan is not a duration",
        ),
        (
            {"max_message_bytes": "0"},
            "BRIDGE_MAX_MESSAGE_BYTES: should be greater than 0",
        ),
        ({"log_level": "loud"}, "BRIDGE_LOG_LEVEL: "),
        ({"presence": "ja"}, "BRIDGE_PRESENCE: should be true or false"),
        (
            {"undelivered_after": "invoice"},
            "BRIDGE_UNDELIVERED_AFTER: 'invoice' is not like NAME=45s",
        ),
        (
            {"undelivered_after": "a=1s,a=2s"},
            "BRIDGE_UNDELIVERED_AFTER: names 'a' twice",
        ),
        (
            {"undelivered_after": "a=soon"},
            "BRIDGE_UNDELIVERED_AFTER: 'soon' is not a duration",
        ),
        (
            {"undelivered_after": {"a": "0s"}},
            "BRIDGE_UNDELIVERED_AFTER: should be greater than 0",
        ),
        (
            {"undelivered_after": "connect=1s"},
            "BRIDGE_UNDELIVERED_AFTER: event 'connect' is the reserved name",
        ),
        (
            {"undelivered_after": {"€" * 100: "45s"}},
            f"BRIDGE_UNDELIVERED_AFTER: event '{'€' * 64}' has more than 255 bytes",
        ),
        (
            {"undelivered_after": "a=8d"},
            "BRIDGE_UNDELIVERED_AFTER: a=8d is longer than BRIDGE_INBOX_MAX_AGE (7d)",
        ),
        ({"made_up": 1}, "made_up in the TOML file: is not a setting"),
    ],
    ids=str,
)
def test_an_invalid_value_is_reported_by_its_variable(
    values: dict[str, object], problem: str
) -> None:
    """An operator knows the variable, not the field of a model."""
    assert problem_of(**values).startswith(problem)


@pytest.mark.parametrize(
    "values",
    [
        {"prefetch": 65535},
        {"namespace": "team-a.bridge"},
        {"namespace": f"{'a' * 64}.{'b' * 45}"},
        {"amqp_url": "amqps://u:p@a/v?cafile=/,amqp://b"},
        {"jwks_url": "https://example.org/keys"},
        {"jwks_url": "http://localhost:9/keys"},
        {"jwks_url": "http://[::1]:9/keys"},
        {"trusted_proxies": "10.0.0.1, 192.168.0.0/16, ::1"},
        {"retry_delays": 5},
        {"ping_interval": "25s"},
        {"inbox": "sqlite:/var/lib/bridge/inbox.sqlite3"},
        {"inbox": "memory:"},
        {"auth": "open"},
        {"auth": "open", "host": "0.0.0.0", "dangerously_open_to_the_network": True},
        {"operator_token": None},
        {"operator_token": "a b? \u00e9 kfcjdheig"},
        {"operator_token": "a-16-bytes-token"},
        {"operator_token": "abc", "dangerously_allow_weak_secrets": True},
        {"jwt_secret": "s" * 32, "dangerously_allow_weak_secrets": True},
    ],
    ids=str,
)
def test_valid_values_at_the_limits_are_accepted(values: dict[str, object]) -> None:
    """Each is the counterpart of a refused value."""
    assert accepted(**values)


def test_settings_are_frozen() -> None:
    """A later change could contradict another setting."""
    with pytest.raises(ValidationError):
        accepted().port = 1  # type: ignore[misc]  # mypy rejects it as well


# --- together ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"jwt_secret": ""}, "BRIDGE_JWT_SECRET: no key is set that can verify tokens"),
        (
            {"jwt_secret": "", "jwks_url": JWKS_URL, "jwt_algorithms": "HS256"},
            "BRIDGE_JWT_ALGORITHMS: HS256 needs BRIDGE_JWT_SECRET, which is not set; set it, "
            "or omit BRIDGE_JWT_ALGORITHMS",
        ),
        (
            {"jwt_secret": "s" * 31},
            "BRIDGE_JWT_SECRET: secret number 1 has 31 bytes, HS256 needs 32",
        ),
        (
            {
                "jwt_secret": "a-32-byte-secret-for-these-tests" * 2 + "," + "t" * 40,
                "jwt_algorithms": "HS512,HS256",
            },
            "BRIDGE_JWT_SECRET: secret number 2 has 40 bytes, HS512 needs 64",
        ),
        (
            {"jwt_secret": "abcdefg" * 8},
            "BRIDGE_JWT_SECRET: secret number 1 has 7 different characters, expected",
        ),
        ({"operator_token": "abc"}, "BRIDGE_OPERATOR_TOKEN: has 3 bytes, expected at"),
        ({"api_key": "abcdefgh1234567"}, "BRIDGE_API_KEY: has 15 bytes, expected at"),
        ({"api_key": "abcdefg" * 4}, "BRIDGE_API_KEY: has 7 different characters"),
        (
            {"operator_token": "0123456789abcdef"},
            "BRIDGE_OPERATOR_TOKEN: consists of sequences or repetitions",
        ),
        (
            {"api_key": "zyxwvutsrqponmlkjihgfedcba9876543210"},
            "BRIDGE_API_KEY: consists of sequences or repetitions",
        ),
        (
            {"jwt_secret": "mysecret1" * 8},
            "BRIDGE_JWT_SECRET: secret number 1 consists of sequences or repetitions",
        ),
        (
            {"jwt_algorithms": "ES256"},
            "BRIDGE_JWT_ALGORITHMS: ES256 needs BRIDGE_JWKS_URL or BRIDGE_JWT_PUBLIC_KEY, and "
            "neither is set; set one, or omit BRIDGE_JWT_ALGORITHMS",
        ),
        (
            {
                "jwt_algorithms": "ES256",
                "jwt_public_key": "-----BEGIN",
                "jwks_url": "https://example.org/",
            },
            "BRIDGE_JWT_PUBLIC_KEY: cannot be used together with BRIDGE_JWKS_URL",
        ),
        (
            {"jwt_algorithms": "HS256,none"},
            "BRIDGE_JWT_ALGORITHMS: none given, supported are",
        ),
        (
            {"auth": "open", "host": "0.0.0.0"},
            "BRIDGE_AUTH: open on 0.0.0.0 lets everyone",
        ),
        ({"auth": "open", "host": "example.org"}, "BRIDGE_AUTH: open on example.org"),
        (
            {"auth": "open", "page_events": "job.cancel"},
            "BRIDGE_PAGE_EVENTS: needs BRIDGE_AUTH=jwt",
        ),
        (
            {"page_events": "job.cancel,ack"},
            "BRIDGE_PAGE_EVENTS: event 'ack' is the reserved name 'ack'",
        ),
        (
            {"page_events": "€" * 100},
            f"BRIDGE_PAGE_EVENTS: event '{'€' * 64}' has more than 255 bytes",
        ),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(
    values: dict[str, object], problem: str
) -> None:
    """Such a bridge would refuse every page, or admit every page."""
    assert problem_of(**values).startswith(problem)


@pytest.mark.parametrize(
    ("values", "algorithms"),
    [
        ({}, ("HS256",)),
        ({"jwt_algorithms": "HS512"}, ("HS512",)),
        ({"jwt_secret": "", "jwks_url": JWKS_URL}, PUBLIC_KEY_ALGORITHMS),
        ({"jwt_secret": "", "jwt_public_key": "-----BEGIN"}, PUBLIC_KEY_ALGORITHMS),
        ({"jwks_url": JWKS_URL}, ("HS256", *PUBLIC_KEY_ALGORITHMS)),
        (
            {"jwt_secret": "", "jwks_url": JWKS_URL, "jwt_algorithms": "RS256"},
            ("RS256",),
        ),
    ],
    ids=str,
)
def test_algorithms_follow_from_the_keys_unless_they_are_set(
    values: dict[str, object], algorithms: tuple[str, ...]
) -> None:
    """The key of an existing issuer alone is a complete configuration."""
    assert accepted(**values).token_algorithms == algorithms


@pytest.mark.parametrize(
    ("values", "is_open"),
    [
        ({}, False),
        ({"jwks_url": JWKS_URL}, True),
        ({"jwt_public_key": "-----BEGIN"}, True),
        ({"jwks_url": JWKS_URL, "jwt_audience": "bridge"}, False),
        ({"jwks_url": JWKS_URL, "jwt_issuer": "https://issuer.example"}, False),
        ({"jwks_url": JWKS_URL, "auth": "open"}, False),
    ],
    ids=str,
)
def test_keys_of_an_issuer_without_audience_and_issuer_are_noticed(
    values: dict[str, object], is_open: bool
) -> None:
    """An issuer signs tokens for other applications with the same keys."""
    assert accepted(**values).accepts_tokens_for_others is is_open


def test_an_invalid_key_is_not_also_reported_as_missing() -> None:
    """Only the first of these problems can be fixed."""
    problem = problem_of(jwt_secret="", jwks_url="http://keys.example.org/")

    assert problem.splitlines() == [
        "BRIDGE_JWKS_URL: must be https:// and a host, or http:// on a loopback address"
    ]


def test_open_mode_needs_no_keys() -> None:
    """There are no tokens to verify."""
    assert accepted(auth="open", jwt_secret="").jwt_secret == ()


def test_a_public_key_may_be_a_file(tmp_path: Path) -> None:
    """Environment variables with line breaks are hard to write."""
    path = tmp_path / "key.pem"
    path.write_text("-----BEGIN PUBLIC KEY-----\n")

    settings = accepted(jwt_algorithms="RS256", jwt_public_key=str(path))
    missing = problem_of(jwt_algorithms="RS256", jwt_public_key="/nowhere")

    assert settings.jwt_public_key == "-----BEGIN PUBLIC KEY-----\n"
    assert "is neither a PEM text nor a readable file" in missing


def test_a_pipe_is_no_public_key(tmp_path: Path) -> None:
    """At a reload nothing might write to it, and the bridge would stop."""
    os.mkfifo(tmp_path / "pipe")

    found = problem_of(jwt_algorithms="RS256", jwt_public_key=str(tmp_path / "pipe"))

    assert "nor a readable file (is not a file)" in found


# --- checks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("amqp://u:p@h:5672/v", None),
        ("amqps://h", None),
        ("amqp://h?no_verify_ssl=1", "disables the verification of TLS"),
        ("amqps://h?cafile=/no/such", "names cafile=/no/such, which does not exist"),
        ("amqp://h:0/", "must look like amqp://"),
        ("amqp:///v", "must look like amqp://"),
        ("h:5672", "must look like amqp://"),
        ("amqp://u:p@h/v@x", None),
        ("amqp://u:a@b/c@h/", "has an @ after the host, expected amqp://"),
        ("amqp://u:a@b/c@h:5672", "has an @ after the host, expected amqp://"),
        ("amqp://u:a/b@h/", "is not a URL, expected amqp://"),
        ("amqp://h:99999", "is not a URL"),
        ("amqp://[::1", "is not a URL"),
    ],
)
def test_the_problem_of_a_broker_url_does_not_quote_it(
    url: str, problem: str | None
) -> None:
    """The URL contains a password."""
    found = amqp_url_problem(url)

    assert (found is None) == (problem is None)
    assert (found or "").startswith(problem or "")


@pytest.mark.parametrize(
    ("origin", "is_valid"),
    [
        ("https://example.org", True),
        ("https://example.org/", True),
        ("http://localhost:3000", True),
        ("http://[::1]:3000", True),
        ("https://example.org/page", False),
        ("https://u@example.org", False),
        ("https://example.org?x", False),
        ("example.org", False),
        ("ftp://example.org", False),
        ("null", False),
        ("*", False),
        ("capacitor://localhost", True),
        ("ionic://localhost/", True),
        ("chrome-extension://abcdefghijklmnopabcdefghijklmnop", True),
        ("moz-extension://0b1c2d3e-0000-4000-8000-000000000000", True),
        ("tauri://localhost:1", True),
        ("dangerously-null", True),
        ("https://*.example.org", True),
        ("https://*.example.org/", True),
        ("http://*.example.org:8080", True),
        ("https://app.*.example.org", True),
        ("https://*.*.example.org", True),
        ("https://*.org", False),
        ("https://*", False),
        ("https://a.*.org", False),
        ("https://a.example.*", False),
        ("https://app-*.example.org", False),
        ("https://**.example.org", False),
        ("https://*example.org", False),
        ("https://*.example.org:*", False),
        ("*://app.example.org", False),
        ("https://*.example.org/page", False),
        ("chrome-extension://*", False),
        ("capacitor://", False),
        ("capacitor://localhost/page", False),
        ("wss://example.org", False),
        ("file://host", False),
        ("", False),
        ("https://[::1", False),
    ],
)
def test_an_origin_is_scheme_host_and_port(origin: str, *, is_valid: bool) -> None:
    """A browser sends these three; a longer value would never be equal."""
    assert (origin_problem(origin) is None) == is_valid


@pytest.mark.parametrize(
    ("host", "is_valid"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_a_loopback_host_is_recognized(host: str, *, is_valid: bool) -> None:
    """Open mode is allowed on loopback without a further setting."""
    assert is_loopback(host) == is_valid


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"host": ""}, "BRIDGE_HOST: expected an address"),
        ({"host": "unix:"}, "BRIDGE_HOST: a path of 1 to 107 bytes"),
        ({"host": "unix:/a", "operator_host": "unix:/a"}, "BRIDGE_OPERATOR_HOST: "),
        (
            {"host": "unix:/a", "workers": 2, "inbox": "redis://x"},
            "BRIDGE_HOST: several workers cannot share a Unix socket",
        ),
        ({"port": 81, "operator_port": 81, "host": "::1,127.0.0.1"}, "BRIDGE_OPER"),
        ({"auth": "open", "host": "127.0.0.1,192.0.2.1"}, "BRIDGE_AUTH: open on "),
    ],
)
def test_hosts_that_cannot_be_used_are_reported(
    given: dict[str, object], problem: str
) -> None:
    """Several hosts and Unix sockets follow the rules of one address."""
    assert problem_of(**given).startswith(problem)


def test_a_unix_socket_is_local_and_shares_no_port() -> None:
    """Only this machine can reach it."""
    settings = accepted(
        auth="open", host="unix:/run/bridge/public", port=8081, operator_host="::1"
    )
    assert settings.host == ("unix:/run/bridge/public",)
