"""`Origin`, `Host` and the list of refused origins, against urllib."""

from typing import Final
from urllib.parse import urlsplit

import orjson

from bridge.core.origins import OriginRules, is_loopback_host, is_same_name
from bridge.core.refused_origins import RefusedOrigins
from tests.fuzz.harness import Choices

MODULES: Final = ("bridge.core.origins", "bridge.core.refused_origins")
_LISTED: Final = frozenset(
    {"https://*.example.org", "https://a.example", "capacitor://localhost"}
)
_RULES: Final = (
    OriginRules(),
    OriginRules(allowed=_LISTED),
    OriginRules(loopback_only=True),
    OriginRules(allowed=frozenset({"dangerously-null"})),
)
SEEDS: Final = (
    b"\x00https://a.example\na.example",
    b"\x00http://a.example:80\na.example",
    b"\x01https://x.example.org\na",
    b"\x02http://127.0.0.1:8080\n127.0.0.1:8080",
    b"\x02http://[::1]\n[::1]",
    b"\x03null\na",
    b"\x00https://user@a.example/x?y#z\na.example:443",
    b"\x00https://b\xc3\xbccher.example\nxn--bcher-kva.example",
    # found: hosts at which the library fails
    b"\x02http://[::1]@\n[::1]@",
    b"\x00http://[::1]@\n[::1]@",
    b"\x00http://[:]\n[:]",
    b"\x00http://xn--999999999.example\nxn--999999999.example",
)


def fuzz_one(data: bytes) -> None:
    """Nothing raises; an allowed origin is listed, or has the host of the request."""
    choices = Choices(data)
    rules = choices.one_of(_RULES)
    text = choices.rest().decode(errors="surrogateescape")
    origin, _, host = text.partition("\n")
    is_allowed = rules.allows(origin, host=host, fetch_site=None)
    is_same_name(host, "a.example")
    if is_allowed and not rules.allowed:
        theirs = urlsplit(origin)
        assert theirs.scheme in {"http", "https"}
        assert theirs.hostname is not None
    if rules.loopback_only:
        assert is_loopback_host(host) or not is_allowed
    if is_allowed and rules.allowed is _LISTED:
        is_below = origin.startswith("https://") and origin.endswith(".example.org")
        assert origin in _LISTED or is_below
    if is_allowed and rules.allowed and rules.allowed is not _LISTED:
        assert origin == "null"
    refused = RefusedOrigins()
    refused.note(origin, 1.0)
    orjson.dumps(refused.newest_first())
