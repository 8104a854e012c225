"""Positions and recovery ids: rendering and parsing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.position import (
    Position,
    parse_position,
    parse_recovery_id,
    render_recovery_id,
    user_epoch,
)

POSITIONS = st.builds(
    Position,
    epoch=st.from_regex(r"[a-z0-9]{1,16}", fullmatch=True),
    offset=st.integers(0, 10**18 - 1),
)
POSITIONS_WITHOUT_LATE_ONES = st.builds(
    Position.with_late,
    st.just("e"),
    st.integers(100, 10**18 - 1),
    st.sets(st.integers(1, 100)).map(sorted),
)
NONCES = st.from_regex(r"[A-Za-z0-9_-]{1,32}", fullmatch=True)


@given(POSITIONS | POSITIONS_WITHOUT_LATE_ONES)
def test_parsing_a_rendered_position_returns_the_same_position(
    position: Position,
) -> None:
    """A client may send it back days later."""
    assert parse_position(str(position)) == position


def test_a_position_may_exclude_messages_that_are_late() -> None:
    """The window has everything before the first of them, and all others up to `newest`."""
    position = Position.with_late("e", 9, [3, 8, 10])

    assert (position.offset, position.newest, position.late) == (2, 9, (3, 8))
    assert str(position) == "e-9-6-1"
    assert Position.with_late("e", 9, [10]) == Position("e", 9)


@pytest.mark.parametrize(
    "text", ["e-9-1-6", "e-9-1-1", "e-9-9", "e-9-10", "e-9-", f"e-999{'-1' * 101}"]
)
def test_impossible_late_messages_are_refused(text: str) -> None:
    """Clients can send anything."""
    with pytest.raises(ValueError, match="not a position"):
        parse_position(text)


@given(POSITIONS, NONCES)
def test_a_recovery_id_contains_the_position_where_its_window_started(
    position: Position, nonce: str
) -> None:
    """A window that has received no message yet recovers from there."""
    assert parse_recovery_id(render_recovery_id(position, nonce)) == position


@given(st.text(max_size=40) | st.none() | st.integers() | st.lists(st.text()))
def test_any_input_is_parsed_or_raises_a_value_error(text: object) -> None:
    """The input is untrusted; and a position has only one spelling."""
    for parse in (parse_position, parse_recovery_id):
        try:
            position = parse(text)
        except ValueError:
            continue
        assert str(text).startswith(str(position))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "a-",
        "-1",
        "a-01",
        "a--1",
        "a-+1",
        "a-1 ",
        " a-1",
        "a-1\n",
        "A-1",
        "é-1",
        "a-\u0661",  # a digit in another script
        "a-1e3",
        "a-1.0",
        "a" * 17 + "-1",
        "a-" + "1" * 19,
        b"a-1",
        1,
        None,
    ],
)
def test_an_invalid_position_is_rejected(text: object) -> None:
    """A second spelling of a position would look like a gap."""
    with pytest.raises(ValueError, match="not a position"):
        parse_position(text)


@pytest.mark.parametrize(
    "text", ["a-1", "a-1.", "a-1." + "x" * 33, "a-1.é", "a-1.x\n", 7]
)
def test_an_invalid_recovery_id_is_rejected(text: object) -> None:
    """Other Socket.IO servers use other formats, and a page may come from one of them."""
    with pytest.raises(ValueError, match="not a recovery id"):
        parse_recovery_id(text)


@given(st.text(max_size=20), st.text(max_size=20))
def test_each_user_has_a_different_epoch(one: str, other: str) -> None:
    """A page that logs in as another user keeps its position, which must be invalid."""
    epoch = user_epoch("store", one)

    assert parse_position(f"{epoch}-1").epoch == epoch
    assert (user_epoch("store", other) == epoch) == (one == other)
    assert user_epoch("another store", one) != epoch
