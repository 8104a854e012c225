"""Claims and `auth` become typed values, or a refusal with a code."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.core.identity import (
    ConnectOptions,
    Identity,
    cookie_value,
    identify,
    parse_connect_auth,
    request_token,
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
def test_claims_name_the_user_and_the_expiry(expires: float) -> None:
    """The user selects the room; the expiry ends the window."""
    identity = identify({"sub": "zoë", "exp": expires})

    assert identity == Identity(user="zoë", expires_s=float(expires))


@pytest.mark.parametrize(
    ("claims", "problem"),
    [
        ({"exp": 1}, "claim sub is missing or not a string"),
        ({"sub": True, "exp": 1}, "claim sub is missing or not a string"),
        ({"sub": 1.5, "exp": 1}, "claim sub is missing or not a string"),
        ({"sub": ["a"], "exp": 1}, "claim sub is missing or not a string"),
        ({"sub": "", "exp": 1}, "claim sub is empty"),
        ({"sub": "a\n", "exp": 1}, "claim sub contains a control character"),
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
def test_claims_without_a_valid_user_or_expiry_are_refused(
    claims: dict[str, object], problem: str
) -> None:
    """A valid signature is not enough: issuers have bugs too."""
    with pytest.raises(RefusedError) as caught:
        identify(claims)

    assert caught.value.code is Refusal.TOKEN_INVALID
    assert str(caught.value) == problem


@given(st.fixed_dictionaries({"sub": ANYTHING, "exp": ANYTHING}))
@example({"sub": 5, "exp": 1})
def test_claims_of_any_shape_give_an_identity_or_a_refusal(
    claims: dict[str, object],
) -> None:
    """Any other exception would let a client write tracebacks into the log."""
    try:
        identity = identify(claims)
    except RefusedError:
        return
    assert identity.user == str(claims["sub"])


# --- auth -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, ConnectOptions()),
        ({}, ConnectOptions()),
        ({"token": ""}, ConnectOptions()),
        ({"token": "t", "theirs": 7}, ConnectOptions(token="t")),
        ({"acks": "auto"}, ConnectOptions()),
        ({"acks": "manual"}, ConnectOptions(has_manual_acks=True)),
        ({"position": "e-7"}, ConnectOptions(position=Position("e", 7))),
        (
            {"pid": "e-5.n", "offset": "e-7", "position": "e-1"},
            ConnectOptions(recovery_id="e-5.n", position=Position("e", 7)),
        ),
        (
            {"pid": "e-5.n"},
            ConnectOptions(recovery_id="e-5.n", position=Position("e", 5)),
        ),
    ],
)
def test_auth_holds_token_ack_mode_and_position(
    data: object, expected: ConnectOptions
) -> None:
    """The position of the stock client takes precedence over the page's: it is newer."""
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
def test_an_invalid_position_counts_as_one_of_another_store(data: object) -> None:
    """The client is notified that messages may be missing, instead of being refused."""
    position = parse_connect_auth(data).position

    assert position is not None
    assert position.epoch == ""


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
def test_auth_with_a_wrong_type_is_refused_with_a_reason(
    data: object, problem: str
) -> None:
    """The author of the page sees the reason at the first attempt."""
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
def test_auth_of_any_shape_is_parsed_or_refused(data: object) -> None:
    """`auth` arrives before the client is authenticated."""
    try:
        found = parse_connect_auth(data)
    except RefusedError:
        return
    assert isinstance(found, ConnectOptions)


@pytest.mark.parametrize(
    ("offset", "position"),
    [("e-7", Position("e", 7)), ("e-3", Position("e", 5)), ("old-9", Position("e", 5))],
)
def test_an_offset_older_than_its_pid_is_ignored(
    offset: str, position: Position
) -> None:
    """The stock client keeps it until the next message and would report each loss again."""
    assert parse_connect_auth({"pid": "e-5.n", "offset": offset}).position == position


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
    """Its value is a token that is verified like any other."""
    assert cookie_value(header, "token") == value


@pytest.mark.parametrize(
    ("authorization", "cookies", "token"),
    [
        ("Bearer abc", "token=def", "abc"),
        ("bearer  abc ", None, "abc"),
        ("Bearer ", "token=def", "def"),
        ("Basic abc", "token=def", "def"),
        (None, "token=def", "def"),
        ("Basic abc", None, None),
        (None, None, None),
    ],
)
def test_a_bearer_token_takes_precedence_over_the_cookie(
    authorization: str | None, cookies: str | None, token: str | None
) -> None:
    """Other schemes are ignored."""
    assert request_token(authorization, cookies, "token") == token
