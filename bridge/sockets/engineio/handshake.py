"""The HTTP request that opens a session: the policy for it and the headers kept of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge.core.client_address import counted_address
from bridge.core.origins import OriginRules
from bridge.trusted_proxies import TrustedProxies, joined_header


@dataclass(frozen=True, slots=True)
class OpeningRequest:
    """
    The request that opened a session, for the layer above that authenticates it.

    Attributes:
        address: The client's address behind trusted proxies.
        counted_as: The address or network to which the session counts.
        is_origin_allowed: Whether the origin may connect. A session of another origin
            lives just long enough to be refused with a reason.
        authorization: The header `Authorization`.
        cookies: The header `Cookie`.
        origin: The header `Origin`.

    """

    address: str
    counted_as: str
    is_origin_allowed: bool
    authorization: str | None
    cookies: str | None
    origin: str | None


@dataclass(frozen=True, slots=True)
class HandshakePolicy:
    """
    Which origins may open a session, and whose address counts as the client's.

    Attributes:
        origins: The origins that may open a session.
        proxies: Find a client's address.
        ipv6_prefix: Bits of an IPv6 address that are counted.

    """

    origins: OriginRules
    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    ipv6_prefix: int = 64

    def examine(self, remote: str | None, headers: Mapping[str, str]) -> OpeningRequest:
        """
        Return the facts of a request.

        Args:
            remote: The address of the other end of the TCP connection.
            headers: Looked up by lower-case name.

        """
        address = self.proxies.client_address(remote, headers)
        return OpeningRequest(
            address,
            self.counted_as(address),
            self.allows_origin(headers),
            headers.get("authorization"),
            joined_header(headers, "cookie", separator="; "),
            headers.get("origin"),
        )

    def trusts(self, remote: str) -> bool:
        """Return whether the other end of a TCP connection is a trusted proxy."""
        return self.proxies.trusts(remote)

    def counted_as(self, address: str) -> str:
        """Return the address or network as which a client is counted."""
        return counted_address(address, self.ipv6_prefix)

    def allows_origin(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request with these headers comes from an allowed origin."""
        return self.origins.allows(
            headers.get("origin"),
            host=headers.get("host"),
            fetch_site=headers.get("sec-fetch-site"),
        )
