"""The revocations that a process knows."""

from dataclasses import dataclass

import orjson

from bridge.core.clock_reading import ClockReading
from bridge.core.identity import Identity
from bridge.core.revocation import Revocation, RevocationIndex, parse_revocation


@dataclass(slots=True)
class CountingReading(ClockReading):
    """Counts how many revocations are looked at."""

    count: int = 0

    def has_passed(self, deadline_s: float, *, since_s: float) -> bool:
        """Count the call."""
        self.count += 1
        return ClockReading.has_passed(self, deadline_s, since_s=since_s)


def identity(jti: str | None = None, *, issued_s: float | None = 10.0) -> Identity:
    return Identity("ann", 90.0, issued_s, jti)


def test_a_connect_looks_only_at_the_revocations_of_its_token() -> None:
    """A user who signs out again and again would slow down the connects of all users."""
    index = RevocationIndex()
    for number in range(1000):
        index.add(Revocation("ann", 100.0, jti=f"token {number}"))
        index.add(Revocation("ann", 100.0, issued_before_s=number / 1000))
    now = CountingReading(50.0)

    assert index.is_revoked(identity("token 7"), now)
    assert not index.is_revoked(identity("another"), now)

    assert now.count <= 1


def test_a_revocation_holds_until_its_end() -> None:
    """All that cover a token count, whatever they name."""
    index = RevocationIndex()
    index.add(Revocation("ann", 100.0, jti="a"))
    index.add(Revocation("ann", 200.0, jti="a"))
    index.add(Revocation("ann", 300.0, issued_before_s=5.0))

    assert index.is_revoked(identity("a"), ClockReading(150.0))
    assert not index.is_revoked(identity("a"), ClockReading(200.0))
    assert index.is_revoked(identity(issued_s=None), ClockReading(200.0))
    assert not index.is_revoked(Identity("bob", 90.0), ClockReading(50.0))
    index.drop_over(ClockReading(200.0))
    assert [each.until_s for each in index.all(ClockReading(50.0))] == [300.0]


def test_stores_keep_the_form_of_earlier_versions() -> None:
    """A store compares the texts: another form would be another revocation."""
    revocation = Revocation("ann", 100.0, issued_before_s=5.0, made_s=1.5)

    assert orjson.loads(revocation.render()) == {
        "user": "ann",
        "until_s": 100.0,
        "issued_before_s": 5.0,
        "jti": None,
        "made_s": 1.5,
    }
    assert revocation.render().startswith(b'{"user":"ann","until_s":100.0,')
    assert parse_revocation(revocation.render()) == revocation
