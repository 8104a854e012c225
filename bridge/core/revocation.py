"""
Revocations: which tokens of a user are refused, and until when.

A revocation never changes. A store adds it and drops it after its end; adding it twice has
the same effect as once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

import orjson

from bridge.core.clock_reading import ClockReading
from bridge.core.identity import Identity
from bridge.errors import RevocationsFullError

# Every bridge holds all of them in memory (about 50 MB), and reads them at each reconnect.
REVOCATIONS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Revocation:
    """
    The tokens of one user that are refused; all of them if it names no further condition.

    Attributes:
        user: The user.
        until_s: Unix time of its end.
        issued_before_s: Only tokens whose `iat` is lower, or that have none.
        jti: Only the token with this id.
        made_s: Unix time at which a bridge made it.

    """

    user: str
    until_s: float
    issued_before_s: float | None = None
    jti: str | None = None
    made_s: float = field(default=0.0, compare=False)

    def covers(self, identity: Identity) -> bool:
        """Return whether the token of `identity`, which is this user's, is refused."""
        if self.jti is not None:
            return identity.token_id == self.jti
        if self.issued_before_s is None or identity.issued_s is None:
            return True
        return identity.issued_s < self.issued_before_s

    def is_over(self, now: ClockReading) -> bool:
        """Return whether it has ended, by a clock that may have jumped ahead."""
        return now.has_passed(self.until_s, since_s=self.made_s)

    def render(self) -> bytes:
        """Return the JSON in which stores keep it."""
        return orjson.dumps(self)

    @property
    def digest(self) -> str:
        """A short name, different for different revocations of a user."""
        return blake2b(self.render(), digest_size=8).hexdigest()


def parse_revocation(text: bytes) -> Revocation:
    """Return the revocation that was rendered."""
    return Revocation(**orjson.loads(text))


class RevocationIndex:
    """The revocations that a process knows, by user and `jti`: a user may have thousands."""

    def __init__(self) -> None:
        self._count = 0
        self._by_user: dict[str, dict[str | None, set[Revocation]]] = {}
        self._on_revoked: Callable[[Revocation], None] | None = None

    def subscribe(self, on_revoked: Callable[[Revocation], None] | None) -> None:
        """Call `on_revoked` with each revocation that is added from now on."""
        self._on_revoked = on_revoked

    def check_room(self) -> None:
        """
        Check that a revocation may be made. Those of other bridges are added in any case.

        Raises:
            RevocationsFullError: If there are too many.

        """
        if self._count >= REVOCATIONS_MAX:
            raise RevocationsFullError(self._count)

    def add(self, revocation: Revocation) -> None:
        """Add a revocation, and report it unless it is known."""
        by_jti = self._by_user.setdefault(revocation.user, {})
        known = by_jti.setdefault(revocation.jti, set())
        if revocation not in known:
            known.add(revocation)
            self._count += 1
            if self._on_revoked is not None:
                self._on_revoked(revocation)

    def is_revoked(self, identity: Identity, now: ClockReading) -> bool:
        """Return whether a revocation in force covers the token of `identity`."""
        by_jti = self._by_user.get(identity.user)
        return by_jti is not None and any(
            each.covers(identity) and not each.is_over(now)
            for jti in {None, identity.token_id}
            for each in by_jti.get(jti, ())
        )

    def of(self, user: str, now: ClockReading) -> Sequence[Revocation]:
        """Return the revocations of `user` that are in force."""
        found = self._by_user.get(user, {}).values()
        return [each for known in found for each in known if not each.is_over(now)]

    def all(self, now: ClockReading) -> list[Revocation]:
        """Return the revocations of all users that are in force."""
        return [each for user in self._by_user for each in self.of(user, now)]

    def drop_over(self, now: ClockReading) -> None:
        """Drop the revocations that are over."""
        left = self.all(now)
        self._by_user.clear()
        self._count = len(left)
        for each in left:
            known = self._by_user.setdefault(each.user, {})
            known.setdefault(each.jti, set()).add(each)
