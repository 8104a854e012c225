"""What makes a value acceptable: URLs, networks, and how a problem is worded."""

import difflib
import ipaddress
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from pydantic_core import ErrorDetails
from yarl import URL

from bridge.core.redis_address import is_redis, parse_redis

ENVIRONMENT_PREFIX: Final = "BRIDGE_"
_AMQP_EXAMPLE: Final = "amqp://user:password@host:5672/vhost"
_AMQP_ESCAPES: Final = "in a user, a password or a vhost, %40 is for @ and %2F for /"
_LOOKS_LIKE_HOST: Final = re.compile(r"@[^@]*(:\d|/)")


def environment_name(field_name: str) -> str:
    """Return the variable that sets `field_name`."""
    return ENVIRONMENT_PREFIX + field_name.upper()


def did_you_mean(
    name: str, known: Collection[str], *, prefix: str = ENVIRONMENT_PREFIX
) -> str:
    """
    Return the end of a sentence that names the nearest known name, if any is near.

    Without a `prefix` as a TOML file has it, in lower case.
    """
    # Without the prefix, which makes any two names look alike.
    near = difflib.get_close_matches(
        name.upper().removeprefix(ENVIRONMENT_PREFIX),
        sorted(other.removeprefix(ENVIRONMENT_PREFIX) for other in known),
        n=1,
    )
    if not near:
        return ""
    return f", did you mean {prefix + near[0] if prefix else near[0].lower()}?"


def problem_text(error: ErrorDetails, *, known: Collection[str]) -> str:
    """Word one of pydantic's errors with the variable that it is about; no values."""
    field_name = str(error["loc"][0])
    name = environment_name(field_name)
    if error["type"] == "extra_forbidden":  # flags and environment have none
        near = did_you_mean(field_name, known, prefix="")
        return f"{field_name} in the TOML file: is not a setting{near}"
    if error["type"] == "string_pattern_mismatch":
        pattern = error["ctx"]["pattern"]
        return f"{name}: takes letters, digits, _ and - alone; the rule is {pattern}"
    text = error["msg"].removeprefix("Value error, ")
    return f"{name}: {text.removeprefix('Input ')}"


def amqp_url_problem(text: str) -> str | None:
    """Say what is wrong with a broker's URL, without quoting it."""
    try:
        url = URL(text)
        port = url.port
    except ValueError:
        return f"is not a URL, expected {_AMQP_EXAMPLE}; {_AMQP_ESCAPES}"
    if url.scheme not in {"amqp", "amqps"} or not url.host or port == 0:
        return f"must look like {_AMQP_EXAMPLE}"
    # A password with a slash would be read as a host that it begins with.
    if _LOOKS_LIKE_HOST.search(url.raw_path):
        return f"has an @ behind the host, expected {_AMQP_EXAMPLE}; {_AMQP_ESCAPES}"
    if "no_verify_ssl" in url.query:
        return "asks for TLS without verification (no_verify_ssl), which is not allowed"
    for name in ("cafile", "capath", "certfile", "keyfile"):
        path = url.query.get(name)
        if path and not Path(path).exists():
            return f"names {name}={path}, which does not exist"
    return None


def key_problem(text: str) -> str | None:
    """Say what keeps `text` from being shown in a header, without quoting it."""
    if not text:
        return "is empty, expected a secret; leave it out to have none"
    if text != text.strip() or not text.isprintable():
        return (
            "begins or ends with white space, or has a control character in it: no "
            "header can carry it (is there a line end in the file that it comes from?)"
        )
    return None


def origin_problem(text: str) -> str | None:
    """Say what keeps `text` from being an origin."""
    if text == "*":
        return (
            "* would let every site use your users' tokens; "
            "if that is meant, set BRIDGE_DANGEROUSLY_ALLOW_ANY_ORIGIN=true instead"
        )
    try:
        url = URL(text)
        is_origin = (
            url.scheme in {"http", "https"}
            and str(url.origin()) == text.rstrip("/")
            and "*" not in text  # no pattern: it would match nothing
        )
    except ValueError:
        is_origin = False
    if is_origin:
        return None
    return f"{text!r} is not an origin, expected for example https://example.org"


def jwks_url_problem(text: str) -> str | None:
    """Say what keeps `text` from being an address that keys may come from."""
    url = URL(text)
    is_near = url.scheme == "http" and is_loopback(url.host or "")
    if (url.scheme == "https" and url.host) or is_near:
        return None
    return "must be https:// and a host, or http:// on a loopback address"


def inbox_problem(text: str) -> str | None:
    """Say what keeps `text` from naming a store."""
    if is_redis(text):
        try:
            parse_redis(text)
        except ValueError as exc:
            return str(exc)
        return None
    kind, _, path = text.partition(":")
    if text == "memory:" or (kind == "sqlite" and path not in {"", ":memory:"}):
        return None
    return (
        f"{text!r} is not a store, expected sqlite:PATH, memory:, redis://HOST, "
        "redis+sentinel://HOST,…/SERVICE or redis+cluster://HOST,…"
    )


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
