"""The values of BRIDGE_HOST and BRIDGE_OPERATOR_HOST: addresses, Unix sockets, passed sockets."""

from collections.abc import Sequence
from typing import Final

_UNIX: Final = "unix:"
_PASSED: Final = "fd:"
_WILDCARDS: Final = frozenset({"0.0.0.0", "::"})


def unix_path(host: str) -> str | None:
    """Return the path of a Unix socket; ``None`` for an address or a name."""
    return host.removeprefix(_UNIX) if host.startswith(_UNIX) else None


def passed_name(host: str) -> str | None:
    """Return the name of sockets that a service manager passes; ``None`` for other hosts."""
    return host.removeprefix(_PASSED) if host.startswith(_PASSED) else None


def tcp_hosts(hosts: Sequence[str]) -> tuple[str, ...]:
    """Return the addresses and names, which bridge binds itself, without other sockets."""
    return tuple(host for host in hosts if not host.startswith((_UNIX, _PASSED)))


def is_wildcard(host: str) -> bool:
    """Return whether `host` means every address of the machine."""
    return host in _WILDCARDS


def local_host(hosts: Sequence[str]) -> str | None:
    """Return the host for a connection from this machine; ``None`` without one for TCP."""
    for host in hosts:
        if unix_path(host) is not None:
            continue
        # Every address of the machine includes the loopback; `::` includes IPv4. The address
        # of a passed socket is not known here, and usually it is one of these.
        is_on_loopback = is_wildcard(host) or passed_name(host) is not None
        return "127.0.0.1" if is_on_loopback else host
    return None
