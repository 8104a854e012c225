"""Tokens whose signature was verified before."""

import pytest

from bridge.auth.known_tokens import KnownTokens, VerifiedToken
from bridge.core.identity import Identity

KEY = b"the key that signed it"
OTHER_KEY = b"another key"
NOW_S = 1000.0
LEEWAY_S = 10.0


def known_tokens(*, tokens_max: int = 10) -> KnownTokens:
    return KnownTokens(leeway_s=LEEWAY_S, tokens_max=tokens_max)


def verified(
    user: str = "ann",
    *,
    expires_s: float = 2000.0,
    not_before_s: int = 0,
    key: bytes = KEY,
) -> VerifiedToken:
    return VerifiedToken(Identity(user, expires_s), key, not_before_s)


def find(
    known: KnownTokens, token: str, *, keys: tuple[bytes, ...] = (KEY,), now_s: float
) -> str | None:
    """Return the user of `token`; ``None`` if it is not known."""
    identity = known.find(token, keys, now_s=now_s)
    return identity.user if identity else None


def test_a_known_token_gives_its_identity() -> None:
    """A page that reconnects presents the same token."""
    known = known_tokens()
    known.add("t1", verified("ann"), now_s=NOW_S)
    known.add("t2", verified("ben"), now_s=NOW_S)

    assert find(known, "t1", now_s=NOW_S) == "ann"
    assert find(known, "t2", now_s=NOW_S) == "ben"


@pytest.mark.parametrize("token", ["", "t", "t11", "T1", "t1 ", "t1="])
def test_a_token_that_differs_in_any_character_is_unknown(token: str) -> None:
    """Only the whole token was verified, with its signature."""
    known = known_tokens()
    known.add("t1", verified(), now_s=NOW_S)

    assert find(known, token, now_s=NOW_S) is None


@pytest.mark.parametrize(
    ("now_s", "is_valid"),
    [(2009.9, True), (2010.0, False), (99999.0, False)],
)
def test_a_token_is_known_until_it_expires(now_s: float, *, is_valid: bool) -> None:
    """The tolerance is the one of a full verification."""
    known = known_tokens()
    known.add("t1", verified(expires_s=2000.0), now_s=NOW_S)

    assert (find(known, "t1", now_s=now_s) == "ann") is is_valid


def test_the_fraction_of_an_expiry_does_not_count() -> None:
    """A full verification ignores it, too."""
    known = known_tokens()
    known.add("t1", verified(expires_s=2000.9), now_s=NOW_S)

    assert find(known, "t1", now_s=2010.0) is None


def test_a_clock_that_is_set_back_makes_a_token_unknown_but_does_not_forget_it() -> (
    None
):
    """Each presentation is judged by the clock of its moment."""
    known = known_tokens()
    known.add("t1", verified(not_before_s=900), now_s=NOW_S)

    assert find(known, "t1", now_s=889.9) is None
    assert find(known, "t1", now_s=890.0) == "ann"


def test_an_expired_token_is_not_known_again_when_the_clock_is_set_back() -> None:
    """The full verification decides about a doubtful clock."""
    known = known_tokens()
    known.add("t1", verified(), now_s=NOW_S)

    assert find(known, "t1", now_s=3000.0) is None
    assert find(known, "t1", now_s=NOW_S) is None


@pytest.mark.parametrize("keys", [(), (OTHER_KEY,)])
def test_a_token_of_a_key_that_is_not_accepted_now_is_unknown(
    keys: tuple[bytes, ...],
) -> None:
    """A key that its issuer withdrew must not live on here."""
    known = known_tokens()
    known.add("t1", verified(), now_s=NOW_S)

    assert find(known, "t1", keys=keys, now_s=NOW_S) is None
    assert find(known, "t1", keys=(OTHER_KEY, KEY), now_s=NOW_S) == "ann"


def test_the_number_of_tokens_is_bounded() -> None:
    """An issuer's users can present any number of valid tokens."""
    known = known_tokens(tokens_max=3)

    for number in range(1000):
        known.add(f"t{number}", verified(), now_s=NOW_S)

    assert len(known) == 3
    assert find(known, "t996", now_s=NOW_S) is None
    assert find(known, "t997", now_s=NOW_S) == "ann"


def test_each_new_token_drops_two_expired_ones() -> None:
    """Short tokens that are renewed all day must not take memory all day."""
    known = known_tokens(tokens_max=100)
    for number in range(50):
        known.add(f"old{number}", verified(expires_s=1500.0), now_s=NOW_S)

    for number in range(50):
        known.add(f"new{number}", verified(expires_s=4000.0), now_s=3000.0)

    assert len(known) == 50
    assert find(known, "new0", now_s=3000.0) == "ann"


def test_a_token_that_is_added_again_is_counted_once() -> None:
    """Windows of one page connect at the same time."""
    known = known_tokens(tokens_max=2)
    known.add("t1", verified(), now_s=NOW_S)
    known.add("t2", verified(), now_s=NOW_S)

    known.add("t1", verified(key=OTHER_KEY), now_s=NOW_S)

    assert len(known) == 2
    assert find(known, "t2", now_s=NOW_S) == "ann"
    assert find(known, "t1", keys=(OTHER_KEY,), now_s=NOW_S) == "ann"


def test_no_token_and_no_key_is_in_its_text() -> None:
    """Tracebacks print local variables in some tools."""
    assert KEY.decode() not in repr(verified())
