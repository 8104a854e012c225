"""
Checks of single settings, besides their type.

A `check_` function returns the value or raises `ValueError` with the rest of a sentence
that begins with the name of the setting. No text quotes a value that may be secret.
"""

import ipaddress
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final, TypeVar

from pydantic import SecretStr
from yarl import URL

from bridge.core.listen_hosts import passed_name, unix_path
from bridge.core.message import USER_MAX_BYTES as SHORT_STRING_MAX_BYTES
from bridge.core.message import event_problem
from bridge.core.origins import NULL_ENTRY, WILDCARD
from bridge.core.redis_address import is_redis, parse_redis
from bridge.settings.files import read_file

# The names of events, alone or with a value each.
EventsT = TypeVar("EventsT", bound=Collection[str])

JWT_ALGORITHMS: Final = (
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512",
    "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip

PUBLIC_KEY_ALGORITHMS: Final = tuple(
    name for name in JWT_ALGORITHMS if not name.startswith("HS")
)

_UNIX_PATH_MAX_BYTES: Final = 107  # unix(7)
_AMQP_EXAMPLE: Final = "amqp://user:password@host:5672/vhost"
_AMQP_ESCAPES: Final = "in a user, a password or a vhost, %40 is for @ and %2F for /"
_SECRET_MIN_BYTES: Final = 16
# `openssl rand -hex 16` uses about 16 different characters; "secretsecretsecret" uses 5.
_DISTINCT_MIN: Final = 8
# Of 16 random hexadecimal digits, one continues a sequence in every seven secrets.
_UNPREDICTABLE_MIN: Final = 12
# Apps and browser extensions, such as capacitor://localhost.
_ORIGIN_OF_APP: Final = re.compile(
    r"(?!(?:https?|wss?|file|ftp)://)[a-z][a-z0-9+.-]*://[A-Za-z0-9._-]+(:\d+)?/?"
)
_LOOKS_LIKE_HOST: Final = re.compile(r"@[^@]*(:\d|/)")


def check_broker_urls(urls: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    """Check that each URL names a broker."""
    if not urls:
        message = "must name at least one broker, as amqp://user:password@host/"
        raise ValueError(message)
    for number, secret in enumerate(urls, start=1):
        problem = amqp_url_problem(secret.get_secret_value())
        if problem:
            # The URL contains a password, so the text has its number only.
            message = f"URL number {number} {problem}"
            raise ValueError(message)
    return urls


def amqp_url_problem(text: str) -> str | None:
    """Return the problem of a broker's URL, without quoting it; ``None`` if it is valid."""
    try:
        url = URL(text)
        port = url.port
    except ValueError:
        return f"is not a URL, expected {_AMQP_EXAMPLE}; {_AMQP_ESCAPES}"
    if url.scheme not in {"amqp", "amqps"} or not url.host or port == 0:
        return f"must look like {_AMQP_EXAMPLE}"
    # A slash in a password ends the host, and the real host becomes part of the vhost.
    if _LOOKS_LIKE_HOST.search(url.raw_path):
        return f"has an @ after the host, expected {_AMQP_EXAMPLE}; {_AMQP_ESCAPES}"
    if "no_verify_ssl" in url.query:
        return "disables the verification of TLS (no_verify_ssl), which is not allowed"
    for name in ("cafile", "capath", "certfile", "keyfile"):
        path = url.query.get(name)
        if path and not Path(path).exists():
            return f"names {name}={path}, which does not exist"
    return None


def check_events(events: EventsT) -> EventsT:
    """
    Check that each event is none of bridge's own, and not too long for AMQP.

    It is a routing key if a page sends it, and the property `type` if a producer does.
    """
    for event in events:
        problem = event_problem(event)
        if problem is None and len(event.encode()) > SHORT_STRING_MAX_BYTES:
            problem = f"has more than {SHORT_STRING_MAX_BYTES} bytes"
        if problem:
            message = f"event {event[:64]!r} {problem}"
            raise ValueError(message)
    return events


def check_management_url(secret: SecretStr) -> SecretStr:
    """Check that the URL of the management API has a scheme and a host."""
    url = URL(secret.get_secret_value())
    if url.scheme not in {"http", "https"} or not url.host:
        message = "must look like http://user:password@host:15672/"
        raise ValueError(message)
    return secret


def check_key(secret: SecretStr) -> SecretStr:
    """Check that a client can send the key in a header."""
    text = secret.get_secret_value()
    if not text:
        message = "is empty, expected a secret; omit it to have none"
        raise ValueError(message)
    if text != text.strip() or not text.isprintable():
        message = (
            "begins or ends with white space, or contains a control character: no header "
            "can have it (does the file that it comes from end in a line break?)"
        )
        raise ValueError(message)
    return secret


def secret_weakness(secret: str) -> str | None:
    """Return why a secret can be guessed; ``None`` if no weakness was found."""
    length, distinct = len(secret.encode()), len(set(secret))
    if length < _SECRET_MIN_BYTES:
        return f"has {length} bytes, expected at least {_SECRET_MIN_BYTES}"
    if distinct < _DISTINCT_MIN:
        return f"has {distinct} different characters, expected at least {_DISTINCT_MIN}"
    if _unpredictable(secret) < _UNPREDICTABLE_MIN:
        return "consists of sequences or repetitions, such as 123 or abcabc"
    return None


def _unpredictable(secret: str) -> int:
    """Count the characters that neither continue a sequence nor repeat earlier ones."""
    codes = [ord(character) for character in secret]
    count = min(2, len(codes))
    for at in range(2, len(codes)):
        step = codes[at] - codes[at - 1]
        is_next = abs(step) <= 1 and step == codes[at - 1] - codes[at - 2]
        is_repeated = secret.find(secret[at - 2 : at + 1]) < at - 2
        count += not (is_next or is_repeated)
    return count


def check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Check that each entry is an origin; return them without a trailing slash."""
    problems = [problem for origin in origins if (problem := origin_problem(origin))]
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(origin.rstrip("/") for origin in origins)


def origin_problem(text: str) -> str | None:
    """Return the reason why `text` is not an origin; ``None`` if it is one."""
    if text == "*":
        return (
            "* would let every site use your users' tokens; "
            "if you want that, set BRIDGE_DANGEROUSLY_ALLOW_ANY_ORIGIN=true instead"
        )
    if text == "null":
        return (
            "null is sent by sandboxed frames and local files of any site; "
            f"if you want that, list {NULL_ENTRY} instead"
        )
    if text == NULL_ENTRY or _ORIGIN_OF_APP.fullmatch(text):
        return None
    if not _is_web_origin(text.replace(WILDCARD, "x")):
        return f"{text!r} is not an origin, expected for example https://example.org"
    host = text.partition("://")[2].partition(":")[0].rstrip("/")
    labels = host.split(".")
    if WILDCARD in "".join(labels[-2:]) or any(
        WILDCARD in label and label != WILDCARD for label in labels
    ):
        return (
            f"{text!r}: * stands for one whole label of a host, before at least two "
            "others, as in https://*.example.org"
        )
    return None


def _is_web_origin(text: str) -> bool:
    try:
        url = URL(text)
        return url.scheme in {"http", "https"} and str(url.origin()) == text.rstrip("/")
    except ValueError:
        return False


def check_jwks_url(text: str) -> str:
    """Check that the keys come over TLS or from this machine."""
    url = URL(text)
    is_local = url.scheme == "http" and is_loopback(url.host or "")
    if not (url.scheme == "https" and url.host) and not is_local:
        message = "must be https:// and a host, or http:// on a loopback address"
        raise ValueError(message)
    return text


def load_public_key_text(value: str) -> str:
    """Return `value` if it is PEM text, else the content of the file that it names."""
    if "-----BEGIN" in value:
        return value
    content = read_file(value)
    try:
        if isinstance(content, bytes):
            return content.decode("ascii")
    except UnicodeDecodeError:
        content = "it is not ASCII text"
    message = f"is neither a PEM text nor a readable file ({content})"
    raise ValueError(message)


def check_algorithms(names: tuple[str, ...]) -> tuple[str, ...]:
    """Check that each algorithm of tokens is supported."""
    unknown = [name for name in names if name not in JWT_ALGORITHMS]
    if unknown:
        message = (
            f"{', '.join(unknown)} given, supported are {', '.join(JWT_ALGORITHMS)}"
        )
        raise ValueError(message)
    return names


def check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """Check that there is a host, and that the paths of Unix sockets can be used."""
    if not hosts:
        message = "expected an address, such as 127.0.0.1"
        raise ValueError(message)
    for host in hosts:
        path = unix_path(host)
        if path is not None and not 0 < len(path.encode()) <= _UNIX_PATH_MAX_BYTES:
            message = f"a path of 1 to {_UNIX_PATH_MAX_BYTES} bytes must follow unix:"
            raise ValueError(message)
        if passed_name(host) == "":
            message = "a name must follow fd:, that of FileDescriptorName= in the .socket unit"
            raise ValueError(message)
    return hosts


def check_networks(networks: tuple[str, ...]) -> tuple[str, ...]:
    """Check that each entry is an address or a network."""
    for network in networks:
        ipaddress.ip_network(
            network, strict=False
        )  # raises ValueError with a good text
    return networks


def check_retry_delays(delays_s: tuple[float, ...]) -> tuple[float, ...]:
    """Check the number of delays and their range."""
    if not 1 <= len(delays_s) <= 10 or any(not 0.001 <= d <= 86400 for d in delays_s):
        message = "expected 1 to 10 delays between 1ms and 1d"
        raise ValueError(message)
    return delays_s


def check_inbox(text: str) -> str:
    """Check that the value names a store."""
    if is_redis(text):
        parse_redis(text)  # raises ValueError with a good text
        return text
    kind, _, path = text.partition(":")
    if text == "memory:" or (kind == "sqlite" and path not in {"", ":memory:"}):
        return text
    message = (
        f"{text!r} is not a store, expected sqlite:PATH, memory:, redis://HOST, "
        "redis+sentinel://HOST,…/SERVICE or redis+cluster://HOST,…"
    )
    raise ValueError(message)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
