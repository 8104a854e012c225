"""The proxies that may name a client's address and scheme, and what their headers say."""

from collections.abc import Callable, Mapping, Sequence

import structlog
from multidict import CIMultiDictProxy

from bridge.core.client_address import (
    Network,
    arrived_by_https,
    client_address,
    is_in,
)

log = structlog.get_logger(__name__)


class TrustedProxies:
    """
    Finds the address and scheme of a client behind the operator's proxies.

    Every listener uses the same object, so that a header has the same meaning for all.
    """

    def __init__(
        self,
        networks: Sequence[Network] = (),
        *,
        count_unreadable: Callable[[], object] = lambda: None,
    ) -> None:
        """
        Trust `networks`.

        Args:
            networks: The addresses of the proxies.
            count_unreadable: Called for each request of a trusted proxy whose
                `X-Forwarded-For` cannot be read.

        """
        self._networks = networks
        self._count_unreadable = count_unreadable
        self._has_reported = False

    def replace(self, networks: Sequence[Network]) -> None:
        """Trust only `networks` from now on."""
        self._networks = networks
        self._has_reported = False

    def trusts(self, peer: str) -> bool:
        """Return whether the other end of a TCP connection is a trusted proxy."""
        return is_in(peer, self._networks)

    def client_address(self, peer: str | None, headers: Mapping[str, str]) -> str:
        """
        Return the address of the client.

        Args:
            peer: The other end of the TCP connection.
            headers: The headers of the request, looked up by lower-case name.

        """
        forwarded_for = joined_header(headers, "x-forwarded-for", separator=",")
        found = client_address(peer, forwarded_for, self._networks)
        if found.is_unreadable:
            self._count_unreadable()
            if not self._has_reported:
                self._has_reported = True
                log.warning(
                    "proxy.address_unreadable",
                    header="X-Forwarded-For",
                    proxy=found.text,
                    effect="all clients of this proxy count as one address",
                )
        return found.text

    def arrived_by_https(self, peer: str | None, headers: Mapping[str, str]) -> bool:
        """Return whether a trusted proxy reports that the browser used https."""
        proto = joined_header(headers, "x-forwarded-proto", separator=",")
        return arrived_by_https(peer, proto, self._networks)


def joined_header(
    headers: Mapping[str, str], name: str, *, separator: str
) -> str | None:
    """
    Return all lines of a header as one value; ``None`` if there is no line.

    Some proxies add a line of their own instead of appending to the one that the client
    sent. Reading the first line alone would return what the client claims.
    """
    if isinstance(headers, CIMultiDictProxy):  # of aiohttp: a name may occur repeatedly
        return separator.join(headers.getall(name, ())) or None
    return headers.get(name)
