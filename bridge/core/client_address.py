"""The address and scheme of a client behind trusted proxies."""

import ipaddress
from collections.abc import Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """
    Parse addresses and networks.

    Raises:
        ValueError: If a text is neither an address nor a network.

    """
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def client_address(
    peer: str | None, forwarded_for: str | None, trusted: Sequence[Network]
) -> str:
    """
    Return the address of the client: the nearest one that is not a trusted proxy.

    Args:
        peer: The other end of the TCP connection.
        forwarded_for: The header `X-Forwarded-For`. Each proxy appends the address of its
            peer, so entries before the last untrusted address may be forged.
        trusted: The operator's proxies.

    """
    address = peer or "unknown"
    hops = [hop.strip() for hop in (forwarded_for or "").split(",") if hop.strip()]
    while hops and _is_in(address, trusted):
        hop = hops.pop()
        if _parse(hop) is None:
            break
        address = hop
    return address


def arrived_by_https(
    peer: str | None, forwarded_proto: str | None, trusted: Sequence[Network]
) -> bool:
    """
    Return whether a trusted proxy reports that the browser used https.

    Args:
        peer: The other end of the TCP connection.
        forwarded_proto: The header `X-Forwarded-Proto`.
        trusted: The operator's proxies.

    """
    proto = (forwarded_proto or "").strip().lower()
    return proto == "https" and _is_in(peer or "unknown", trusted)


def _is_in(address: str, networks: Sequence[Network]) -> bool:
    parsed = _parse(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped  # a socket that listens on :: reports IPv4 peers so
    return parsed is not None and any(parsed in network for network in networks)


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None
