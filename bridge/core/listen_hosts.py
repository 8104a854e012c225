"""The values of BRIDGE_HOST and BRIDGE_OPERATOR_HOST: addresses, names, Unix sockets."""

from collections.abc import Sequence
from typing import Final

_UNIX: Final = "unix:"
_WILDCARDS: Final = frozenset({"0.0.0.0", "::"})


def unix_path(host: str) -> str | None:
    """Return the path of a Unix socket; ``None`` for an address or a name."""
    return host.removeprefix(_UNIX) if host.startswith(_UNIX) else None


def tcp_hosts(hosts: Sequence[str]) -> tuple[str, ...]:
    """Return the addresses and names without the Unix sockets."""
    return tuple(host for host in hosts if unix_path(host) is None)


def is_wildcard(host: str) -> bool:
    """Return whether `host` means every address of the machine."""
    return host in _WILDCARDS


def local_host(hosts: Sequence[str]) -> str | None:
    """Return the host for a connection from this machine; ``None`` without one for TCP."""
    for host in tcp_hosts(hosts):
        # Every address of the machine includes the loopback; `::` includes IPv4.
        return "127.0.0.1" if is_wildcard(host) else host
    return None
