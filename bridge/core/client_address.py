"""The address that a request really comes from, behind proxies that may be believed."""

import ipaddress
from collections.abc import Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """
    Read addresses and networks.

    Raises:
        ValueError: If one is neither.

    """
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def client_address(
    peer: str | None, forwarded_for: str | None, trusted: Sequence[Network]
) -> str:
    """
    Return the nearest address that no trusted proxy stands behind.

    Args:
        peer: Who opened the TCP connection.
        forwarded_for: The header `X-Forwarded-For`, of which each proxy appends to the
            end; what stands before the first untrusted address anybody may have made up.
        trusted: The operator's proxies.

    """
    address = peer or "unknown"
    hops = [hop.strip() for hop in (forwarded_for or "").split(",") if hop.strip()]
    while hops and _is_in(address, trusted):
        hop = hops.pop()
        if not _is_address(hop):
            break
        address = hop
    return address


def arrived_by_https(
    peer: str | None, forwarded_proto: str | None, trusted: Sequence[Network]
) -> bool:
    """
    Whether a trusted proxy says that the browser came by https.

    Args:
        peer: Who opened the TCP connection.
        forwarded_proto: The header `X-Forwarded-Proto`.
        trusted: The operator's proxies.

    """
    proto = (forwarded_proto or "").strip().lower()
    return proto == "https" and _is_in(peer or "unknown", trusted)


def _is_in(address: str, networks: Sequence[Network]) -> bool:
    if not _is_address(address):
        return False
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped  # how a socket on :: sees an IPv4 peer
    return any(parsed in network for network in networks)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
