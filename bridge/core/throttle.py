"""Limits how often one address may try a secret: after a few tries, pauses grow."""

from dataclasses import dataclass
from typing import Final

from bridge.core.client_address import counted_address

# An IPv6 host usually has a /64 network to itself and can use every address in it.
_HOST_BITS: Final = 64


@dataclass(slots=True)
class _Failures:
    count: int
    last_s: float


class Throttle:
    """Counts failures by address, in bounded memory. Callers supply the time."""

    def __init__(
        self,
        *,
        free_tries: int = 5,
        longest_s: float = 300,
        forget_s: float = 900,
        at_most: int = 10_000,
    ) -> None:
        """
        Start without any failure.

        Args:
            free_tries: Failures without a pause. The first pause is one second, and
                each further failure doubles it.
            longest_s: The longest pause.
            forget_s: The failures of an address are forgotten after this long without
                another failure.
            at_most: Addresses that are remembered; the one whose last failure is oldest
                is forgotten first.

        """
        self._free_tries = free_tries
        self._longest_s = longest_s
        self._forget_s = forget_s
        self._at_most = at_most
        self._failures: dict[str, _Failures] = {}

    def wait_s(self, address: str, now_s: float) -> float:
        """Return how long `address` must wait before its next try; 0 if it need not wait."""
        failures = self._remembered(_host(address), now_s)
        if failures is None:
            return 0.0
        return max(0.0, failures.last_s + self._pause_s(failures.count) - now_s)

    def is_known(self, address: str, now_s: float) -> bool:
        """Return whether `address` has failed, and this is not forgotten."""
        return self._remembered(_host(address), now_s) is not None

    def note_failure(self, address: str, now_s: float) -> None:
        """Count a failure of `address`."""
        host = _host(address)
        failures = self._remembered(host, now_s)
        self._failures.pop(host, None)
        # Inserted at the end, so that the dict is in the order of last failures.
        count = failures.count + 1 if failures else 1
        self._failures[host] = _Failures(count, now_s)
        if len(self._failures) > self._at_most:
            del self._failures[next(iter(self._failures))]

    def forget(self, address: str) -> None:
        """Forget the failures of `address`, after it has given the right secret."""
        self._failures.pop(_host(address), None)

    def forget_all(self) -> None:
        """Forget all failures, because there is a new secret."""
        self._failures.clear()

    def _remembered(self, host: str, now_s: float) -> _Failures | None:
        failures = self._failures.get(host)
        is_old = failures is None or now_s - failures.last_s >= self._forget_s
        return None if is_old else failures

    def _pause_s(self, count: int) -> float:
        if count < self._free_tries:
            return 0.0
        # Clamp the exponent first: nothing else bounds the count, and 2.0**1024 overflows.
        doublings = min(count - self._free_tries, 30)
        return min(self._longest_s, 2.0**doublings)


def _host(address: str) -> str:
    return counted_address(address, _HOST_BITS)
