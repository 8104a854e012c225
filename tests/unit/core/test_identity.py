"""Claims and `auth`: what a stranger sent becomes typed values or a refusal with a code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.identity import (
    ConnectAuth,
    Identity,
    cookie_value,
    identify,
    parse_connect_auth,
)
from bridge.core.position import Position
from bridge.enums import Refusal
from bridge.errors import RefusedError

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)


# --- claims -----------------------------------------------------------------------------


@pytest.mark.parametrize("expires", [0, 1.5, 1_900_000_000, 253402300799])
def test_claims_name_the_user_and_the_end(expires: float) -> None:
    """Both are what rooms and timers are made of."""
    identity = identify({"sub": "zoë", "exp": expires})

    assert identity == Identity(user="zoë", expires_s=float(expires))


@pytest.mark.parametrize(
    ("claims", "problem"),
    [
        ({"exp": 1}, "claim sub is missing or not a string"),
        ({"sub": ["a"], "exp": 1}, "claim sub is missing or not a string"),
        ({"sub": "", "exp": 1}, "claim sub is empty, expected the user"),
        ({"sub": "a\n", "exp": 1}, "claim sub holds a control character"),
        ({"sub": "a" * 256, "exp": 1}, "claim sub has 256 bytes, allowed are 255"),
        ({"sub": "a"}, "claim exp is missing or not a number"),
        ({"sub": "a", "exp": True}, "claim exp is missing or not a number"),
        ({"sub": "a", "exp": "1"}, "claim exp is missing or not a number"),
        ({"sub": "a", "exp": -1}, "claim exp is not a Unix time in seconds"),
        ({"sub": "a", "exp": 253402300800}, "claim exp is not a Unix time in seconds"),
        ({"sub": "a", "exp": 10**400}, "claim exp is not a Unix time in seconds"),
        ({"sub": "a", "exp": float("nan")}, "claim exp is not a Unix time in seconds"),
        ({"sub": "a", "exp": float("inf")}, "claim exp is not a Unix time in seconds"),
    ],
)
def test_claims_that_name_nobody_or_no_end_are_refused(
    claims: dict[str, object], problem: str
) -> None:
    """A signature does not make them good: issuers have bugs too."""
    with pytest.raises(RefusedError) as caught:
        identify(claims)

    assert caught.value.code is Refusal.TOKEN_INVALID
    assert str(caught.value) == problem


@given(st.fixed_dictionaries({"sub": ANYTHING, "exp": ANYTHING}))
def test_claims_of_any_shape_give_an_identity_or_a_refusal(
    claims: dict[str, object],
) -> None:
    """Anything else would be an error of ours, in the log, by the hand of a stranger."""
    try:
        identity = identify(claims)
    except RefusedError:
        return
    assert identity.user == claims["sub"]


# --- auth -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, ConnectAuth()),
        ({}, ConnectAuth()),
        ({"token": ""}, ConnectAuth()),
        ({"token": "t", "theirs": 7}, ConnectAuth(token="t")),
        ({"acks": "auto"}, ConnectAuth()),
        ({"acks": "manual"}, ConnectAuth(has_manual_acks=True)),
        ({"position": "e-7"}, ConnectAuth(wanted=Position("e", 7))),
        (
            {"pid": "e-5.n", "offset": "e-7", "position": "e-1"},
            ConnectAuth(recovery_id="e-5.n", wanted=Position("e", 7)),
        ),
        ({"pid": "e-5.n"}, ConnectAuth(recovery_id="e-5.n", wanted=Position("e", 5))),
    ],
)
def test_auth_says_who_how_and_from_where(data: object, expected: ConnectAuth) -> None:
    """The stock client's own place counts before the page's: it is the newer one."""
    assert parse_connect_auth(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        {"position": "nonsense"},
        {"position": 7},
        {"pid": "of another server"},
        {"pid": 7},
        {"pid": "e-5.n", "offset": "nonsense"},
    ],
)
def test_a_place_that_is_none_counts_as_one_of_another_store(data: object) -> None:
    """The page is told that something may be missing, instead of being turned away."""
    wanted = parse_connect_auth(data).wanted

    assert wanted is not None
    assert wanted.epoch == ""


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("token", "auth is not an object"),
        (["token"], "auth is not an object"),
        ({"token": 7}, "auth.token is not a string"),
        ({"acks": "maybe"}, "auth.acks is neither auto nor manual"),
        ({"acks": []}, "auth.acks is neither auto nor manual"),
    ],
)
def test_auth_of_a_wrong_type_is_refused_with_a_reason(
    data: object, problem: str
) -> None:
    """The author of the page sees it at the first try."""
    with pytest.raises(RefusedError) as caught:
        parse_connect_auth(data)

    assert caught.value.code is Refusal.BAD_REQUEST
    assert str(caught.value) == problem


@given(
    ANYTHING
    | st.dictionaries(
        st.sampled_from(["token", "acks", "pid", "offset", "position"]), ANYTHING
    )
)
def test_auth_of_any_shape_is_read_or_refused(data: object) -> None:
    """It arrives before anything was verified."""
    try:
        found = parse_connect_auth(data)
    except RefusedError:
        return
    assert isinstance(found, ConnectAuth)


@pytest.mark.parametrize(
    ("offset", "wanted"),
    [("e-7", Position("e", 7)), ("e-3", Position("e", 5)), ("old-9", Position("e", 5))],
)
def test_an_offset_that_is_older_than_its_pid_is_over(
    offset: str, wanted: Position
) -> None:
    """The stock client keeps it until a message comes: it would report each loss again."""
    assert parse_connect_auth({"pid": "e-5.n", "offset": offset}).wanted == wanted


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("token=abc", "abc"),
        ("a=1; token=abc; b=2", "abc"),
        ("a=1;token=abc", "abc"),
        ('token="abc"', "abc"),
        ("token=a.b-c_d==", "a.b-c_d=="),
        ("token=first; token=second", "first"),
        ("token", ""),
        ("token=", ""),
        ("xtoken=abc; tokenx=abc; Token=abc", None),
        ("", None),
        (";;=;=token", None),
    ],
)
def test_a_cookie_is_found_by_its_name(header: str, value: str | None) -> None:
    """Its value is a token that is checked like any other."""
    assert cookie_value(header, "token") == value
