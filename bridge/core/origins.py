"""
Which pages may connect.

A browser lets any page open a websocket to any host and sends the cookies along, so it
is the server that must look at `Origin` (OWASP ASVS 5.0, 4.4.2). Programs that are no
browsers send none; they have to bring a token like everybody.
"""

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from yarl import URL

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class OriginRules:
    """
    The operator's choice: origins by name, or all of them.

    `loopback_only` is for open mode: a name of any site can be made to point to
    127.0.0.1 (DNS rebinding), and its page would then be of the same host as the bridge.
    """

    allowed: frozenset[str] = frozenset()
    allows_any: bool = False
    loopback_only: bool = False

    def allows(
        self, origin: str | None, *, host: str | None, fetch_site: str | None
    ) -> bool:
        """
        Decide whether a request comes from a page that may connect.

        Args:
            origin: The header `Origin`; browsers leave it out of same-origin GETs.
            host: The header `Host`. Without a list of origins, pages from the same host
                and port may connect. The scheme is not compared: behind a proxy that
                ends TLS the bridge cannot know it.
            fetch_site: The header `Sec-Fetch-Site`, which tells a cross-site GET without
                `Origin` (an image, a script) from a same-origin one.

        """
        if self.loopback_only and not is_loopback_host(host):
            return False
        if self.allows_any:
            return True
        if origin is None:
            return fetch_site not in {"cross-site", "same-site"}
        if origin in self.allowed:
            return True
        return not self.allowed and _is_same_host(origin, host)


def is_loopback_host(host: str | None) -> bool:
    """Whether the header `Host` names this machine itself, by address or as localhost."""
    try:
        name = URL(f"http://{host}").host if host else None
        return name == "localhost" or bool(name and ip_address(name).is_loopback)
    except ValueError:
        return False


def _is_same_host(origin: str, host: str | None) -> bool:
    try:
        page = URL(origin)
        here = URL(f"{page.scheme}://{host}")
        ports = {page.port, here.port}
    except ValueError:
        return False
    if page.scheme not in _DEFAULT_PORTS or not host or not page.host:
        return False
    return page.host == here.host and len(ports) == 1
