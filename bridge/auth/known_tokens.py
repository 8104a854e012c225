"""
Tokens that were verified before, so that a reconnect does not pay for the signature again.

A token is known by the SHA-256 hash of all its characters. The hash replaces only the check
of signature, `aud` and `iss`. With each use, the times are compared with the clock, and the
key that verified the signature must still be one of the accepted keys.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from bridge.auth.keys import PublicKey
from bridge.core.identity import Identity

# About 20 MB.
_TOKENS_MAX: Final = 50_000


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """
    The result of a complete verification.

    Attributes:
        identity: The identity in the claims.
        key: The key that signed the token.
        not_before_s: Unix time before which the token is not valid; 0 if it names none.

    """

    identity: Identity
    key: PublicKey | bytes = field(repr=False)
    not_before_s: int


class KnownTokens:
    """
    Remembers verified tokens until they expire.

    An instance belongs to one set of rules: other rules need a new instance.
    """

    def __init__(self, *, leeway_s: float, tokens_max: int = _TOKENS_MAX) -> None:
        """
        Start empty.

        Args:
            leeway_s: Tolerance for clock differences, as in the verification.
            tokens_max: The most tokens that are remembered. The one that was verified
                first is forgotten first.

        """
        self._leeway_s = leeway_s
        self._tokens_max = tokens_max
        # In the order of verification. A plain dict finds its first item slowly after many
        # deletions at its front.
        self._by_hash: OrderedDict[bytes, VerifiedToken] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of remembered tokens."""
        return len(self._by_hash)

    def find(
        self, token: str, keys: Sequence[PublicKey | bytes], *, now_s: float
    ) -> Identity | None:
        """
        Return the identity of a known token that is valid now; otherwise ``None``.

        Args:
            token: The whole token, in ASCII.
            keys: The keys that are accepted for it now.
            now_s: Unix time.

        """
        hashed = _hash(token)
        known = self._by_hash.get(hashed)
        if known is None or known.key not in keys:
            return None
        if self._is_expired(known, now_s):
            del self._by_hash[hashed]
            return None
        if known.not_before_s > now_s + self._leeway_s:
            return None
        return known.identity

    def add(self, token: str, verified: VerifiedToken, *, now_s: float) -> None:
        """Remember `token`, which passed all checks."""
        hashed = _hash(token)
        self._by_hash[hashed] = verified
        self._by_hash.move_to_end(hashed)
        if len(self._by_hash) > self._tokens_max:
            self._by_hash.popitem(last=False)
        # Two for each new one: expired tokens become fewer, at a bounded cost.
        self._drop_if_expired(now_s)
        self._drop_if_expired(now_s)

    def _drop_if_expired(self, now_s: float) -> None:
        oldest = next(iter(self._by_hash), None)
        if oldest is not None and self._is_expired(self._by_hash[oldest], now_s):
            del self._by_hash[oldest]

    def _is_expired(self, known: VerifiedToken, now_s: float) -> bool:
        expires_s = known.identity.expires_s
        # The verification ignores the fraction, too.
        return expires_s is None or int(expires_s) <= now_s - self._leeway_s


def _hash(token: str) -> bytes:
    return sha256(token.encode("ascii")).digest()
