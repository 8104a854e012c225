"""Verifying tokens, with a limit for each address that presents invalid ones."""

from time import monotonic
from typing import Final

from bridge.auth.jwt import TokenVerifier
from bridge.core.identity import Identity
from bridge.core.rate_limit import TokenBucket
from bridge.enums import Refusal
from bridge.errors import RefusedError

_FAILURES_PER_SECOND: Final = 50.0
_ADDRESSES_MAX: Final = 10_000


class LimitedVerifier:
    """
    Verifies no token of an address that has presented too many invalid ones.

    Valid tokens are not limited: after a restart all pages of an office reconnect at once.
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        *,
        failures_per_second: float = _FAILURES_PER_SECOND,
        addresses_max: int = _ADDRESSES_MAX,
    ) -> None:
        """
        Start without any failure.

        Args:
            verifier: Verifies the tokens.
            failures_per_second: Invalid tokens of one address that are verified on
                average; bursts of twice as many are allowed.
            addresses_max: Addresses that are remembered; the one whose last failure is
                oldest is forgotten first.

        """
        self._verifier = verifier
        self._failures_per_second = failures_per_second
        self._addresses_max = addresses_max
        self._by_address: dict[str, TokenBucket] = {}

    async def verify(self, token: object, *, address: str) -> Identity:
        """
        Return the identity of a valid token.

        Args:
            token: Any value that a client sent, of any type.
            address: The address or network as which the client is counted.

        Raises:
            RefusedError: If the token is missing or invalid, or not verified now.
            KeysUnavailableError: If the key is unknown and cannot be looked up now.

        Cancellation: safe.

        """
        if self.is_suspended(address):
            raise RefusedError(Refusal.TOO_MANY_ATTEMPTS)
        try:
            return await self._verifier.verify(token)
        except RefusedError:
            self._note_failure(address)
            raise

    def is_suspended(self, address: str) -> bool:
        """Return whether tokens of `address` are not verified now."""
        failures = self._by_address.get(address)
        return failures is not None and not failures.has_token(monotonic())

    def _note_failure(self, address: str) -> None:
        now_s = monotonic()
        failures = self._by_address.pop(address, None)
        if failures is None:
            per_second = self._failures_per_second
            failures = TokenBucket(per_second, 2 * per_second, now_s)
        failures.take(now_s)
        # Inserted at the end, so that the dict is in the order of last failures.
        self._by_address[address] = failures
        if len(self._by_address) > self._addresses_max:
            del self._by_address[next(iter(self._by_address))]
