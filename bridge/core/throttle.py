"""How often one address may try a secret: a few times freely, then after growing pauses."""

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

# One host of IPv6 has a network of that many bits to itself, and all addresses in it.
_HOST_BITS: Final = 64


@dataclass(slots=True)
class _Failures:
    count: int
    last_s: float


class Throttle:
    """Failures by address, without a clock of its own. What it keeps is bounded."""

    def __init__(
        self,
        *,
        free_tries: int = 5,
        longest_s: float = 300,
        forget_s: float = 900,
        at_most: int = 10_000,
    ) -> None:
        """
        Start with nobody known.

        Args:
            free_tries: Failures that cost nothing; the pause after them is one second,
                and each further failure doubles it.
            longest_s: The longest pause.
            forget_s: After that long without a try, an address is as good as new.
            at_most: Addresses that are kept; the one that failed longest ago goes first.

        """
        self._free_tries = free_tries
        self._longest_s = longest_s
        self._forget_s = forget_s
        self._at_most = at_most
        self._failures: dict[str, _Failures] = {}

    def wait_s(self, address: str, now_s: float) -> float:
        """Return how long `address` has to wait before it may try; 0 if it may now."""
        failures = self._failures.get(_host(address))
        if failures is None or now_s - failures.last_s >= self._forget_s:
            return 0.0
        return max(0.0, failures.last_s + self._pause_s(failures.count) - now_s)

    def note_failure(self, address: str, now_s: float) -> None:
        """Count a failure of `address`."""
        host = _host(address)
        failures = self._failures.pop(host, None)
        if failures is None or now_s - failures.last_s >= self._forget_s:
            failures = _Failures(0, now_s)
        # Put back at the end: the table is in the order of last failures.
        self._failures[host] = _Failures(failures.count + 1, now_s)
        if len(self._failures) > self._at_most:
            del self._failures[next(iter(self._failures))]

    def forget(self, address: str) -> None:
        """Forgive `address`, which has shown that it knows the secret."""
        self._failures.pop(_host(address), None)

    def _pause_s(self, count: int) -> float:
        if count < self._free_tries:
            return 0.0
        # Clamp the exponent first: nothing else bounds the count.
        doublings = min(count - self._free_tries, 30)
        return min(self._longest_s, 2.0**doublings)


def _host(address: str) -> str:
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)  # how a socket on :: sees an IPv4 peer
    return str(ip_network(f"{parsed}/{_HOST_BITS}", strict=False))
