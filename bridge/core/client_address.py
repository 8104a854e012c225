"""The address and scheme of a client behind trusted proxies."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# `203.0.113.9:4711`, `[2001:db8::1]:4711` or `[2001:db8::1]`.
_WITH_PORT: Final = re.compile(r"(?:\[([^\]]+)\]|([^:]+))(?::\d{1,5})?", re.ASCII)


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """
    Parse addresses and networks.

    Raises:
        ValueError: If a text is neither an address nor a network.

    """
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """
    The address of a client.

    Attributes:
        text: The address. Behind a trusted proxy whose entry cannot be read, it is the
            proxy's.
        is_unreadable: Whether that was the case.

    """

    text: str
    is_unreadable: bool = False


def client_address(
    peer: str | None, forwarded_for: str | None, trusted: Sequence[Network]
) -> ClientAddress:
    """
    Return the address of the client: the nearest one that is not a trusted proxy.

    Args:
        peer: The other end of the connection; empty for a Unix socket, which only a proxy
            uses, and ``None`` if the connection is closed.
        forwarded_for: All header lines `X-Forwarded-For`, joined by commas. Each proxy
            appends the address of its peer, so entries before the last untrusted address
            may be forged.
        trusted: The operator's proxies.

    """
    address = "unknown" if peer is None else peer
    hops = [hop.strip() for hop in (forwarded_for or "").split(",") if hop.strip()]
    while hops and is_in(address, trusted):
        hop = _parse_hop(hops.pop())
        if hop is None:
            return ClientAddress(address or "unknown", is_unreadable=True)
        address = str(hop)
    return ClientAddress(address or "unknown")


@lru_cache(maxsize=4096)
def counted_address(address: str, ipv6_prefix: int) -> str:
    """
    Return the address or network as which a client is counted.

    Args:
        address: The client's address.
        ipv6_prefix: Bits of an IPv6 address that count. A host can use every address of
            its network, which usually has 64 bits.

    """
    parsed = _parse(address)
    if not isinstance(parsed, ipaddress.IPv6Address):
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), ipv6_prefix), strict=False))


def is_in(address: str, networks: Sequence[Network]) -> bool:
    """
    Return whether `address` is in one of the networks; an invalid one is in none.

    The empty address of a Unix socket is trusted: its permissions decide who connects.
    """
    if not address:
        return True
    parsed = _parse(address) if networks else None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped  # a socket that listens on :: reports IPv4 peers so
    return parsed is not None and any(parsed in network for network in networks)


def arrived_by_https(
    peer: str | None, forwarded_proto: str | None, trusted: Sequence[Network]
) -> bool:
    """
    Return whether a trusted proxy reports that the browser used https.

    Args:
        peer: The other end of the TCP connection.
        forwarded_proto: All header lines `X-Forwarded-Proto`, joined by commas. The last
            entry is the one of the trusted proxy.
        trusted: The operator's proxies.

    """
    proto = (forwarded_proto or "").rpartition(",")[2].strip().lower()
    return proto == "https" and is_in("unknown" if peer is None else peer, trusted)


def _parse_hop(hop: str) -> _Address | None:
    """Parse an entry of `X-Forwarded-For`, which some proxies write with a port."""
    match = _WITH_PORT.fullmatch(hop)
    return _parse(match[1] or match[2] if match else hop)


def _parse(address: str) -> _Address | None:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None
