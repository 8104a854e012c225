"""
The origins that may connect.

A browser lets any page open a WebSocket to any host and sends that host's cookies, so the
server must check `Origin` (OWASP ASVS 5.0, 4.4.2). Clients that are not browsers send no
`Origin`; they need a token like all others.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from yarl import URL

# A browser sends `Origin: null` for a local file, a sandboxed frame and after some
# redirects, so that any site can send it. This entry of the list allows it.
NULL_ENTRY: Final = "dangerously-null"
WILDCARD: Final = "*"

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class OriginRules:
    """
    The operator's choice of origins.

    Attributes:
        allowed: Origins by name; if empty, pages of the bridge's own host may connect. In
            the host of an entry, a `*` in place of a label is any one label.
        allows_any: Whether every origin may connect.
        loopback_only: Whether `Host` must name this machine. For open mode: an attacker's
            domain can resolve to 127.0.0.1 (DNS rebinding), and its pages would then have
            the same host as the bridge.
        own_scheme: The scheme of pages of the bridge's own host; ``None`` if a proxy may
            terminate TLS, so that the bridge does not know it.

    """

    allowed: frozenset[str] = frozenset()
    allows_any: bool = False
    loopback_only: bool = False
    own_scheme: str | None = None

    def allows(
        self, origin: str | None, *, host: str | None, fetch_site: str | None
    ) -> bool:
        """
        Return whether the origin of a request may connect.

        Args:
            origin: The header `Origin`; browsers omit it in same-origin GET requests.
            host: The header `Host`. Without a list of origins, pages of the same host and
                port may connect.
            fetch_site: The header `Sec-Fetch-Site`, which distinguishes a cross-site GET
                without `Origin` (an image, a script) from a same-origin one.

        """
        if self.loopback_only and not is_loopback_host(host):
            return False
        if self.allows_any:
            return True
        if origin is None:
            return fetch_site not in {"cross-site", "same-site"}
        if not self.allowed:
            return _is_same_host(origin, host, scheme=self.own_scheme)
        if origin == "null":
            return NULL_ENTRY in self.allowed
        return origin in self.allowed or any(
            _pattern(entry).fullmatch(origin)
            for entry in self.allowed
            if WILDCARD in entry
        )


@lru_cache
def _pattern(entry: str) -> re.Pattern[str]:
    return re.compile(re.escape(entry).replace(r"\*", "[a-z0-9_-]+"))


def is_same_name(host: str | None, name: str) -> bool:
    """Return whether the header `Host` has this name, with any port."""
    return bool(host) and _host_and_port(f"http://{host}")[0] == name.lower()


def is_loopback_host(host: str | None) -> bool:
    """Return whether the header `Host` is a loopback address or localhost."""
    name = _host_and_port(f"http://{host}")[0] if host else None
    try:
        return name == "localhost" or bool(name and ip_address(name).is_loopback)
    except ValueError:
        return False


def _is_same_host(origin: str, host: str | None, *, scheme: str | None) -> bool:
    given = origin.partition(":")[0].lower()
    if given not in _DEFAULT_PORTS or given != (scheme or given) or not host:
        return False
    page = _host_and_port(origin)
    return bool(page[0]) and page == _host_and_port(f"{given}://{host}")


def _host_and_port(text: str) -> tuple[str | None, int | None]:
    """Return host and port of a URL; nothing if it is not valid."""
    try:
        url = URL(text)
        found = url.host, url.port
        if url.host and ":" in url.host:
            ip_address(url.host)  # the library accepts anything between brackets
    # The library raises IndexError for `http://[::1]@`, and a kind of ValueError for hosts
    # such as `xn--9`, which it decodes when they are read.
    except (ValueError, IndexError):
        return None, None
    return found
