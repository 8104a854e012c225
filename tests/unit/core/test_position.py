"""Positions: opaque to pages, exact to us."""

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
NONCES = st.from_regex(r"[A-Za-z0-9_-]{1,32}", fullmatch=True)


@given(POSITIONS)
def test_a_position_is_read_back_as_it_was_given_out(position: Position) -> None:
    """The page hands it back after days: it must mean the same place."""
    assert parse_position(str(position)) == position


@given(POSITIONS, NONCES)
def test_a_recovery_id_tells_where_its_window_began(
    position: Position, nonce: str
) -> None:
    """A window that has received nothing yet recovers by it."""
    assert parse_recovery_id(render_recovery_id(position, nonce)) == position


@given(st.text(max_size=40) | st.none() | st.integers() | st.lists(st.text()))
def test_whatever_a_page_sends_is_a_position_or_a_value_error(text: object) -> None:
    """It comes from a stranger; and one place has one name."""
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
        "a-\u0661",  # a digit, of another script
        "a-1e3",
        "a-1.0",
        "a" * 17 + "-1",
        "a-" + "1" * 19,
        b"a-1",
        1,
        None,
    ],
)
def test_what_no_bridge_gave_out_is_refused(text: object) -> None:
    """Two spellings of one place would make a gap where none is."""
    with pytest.raises(ValueError, match="not a position"):
        parse_position(text)


@pytest.mark.parametrize(
    "text", ["a-1", "a-1.", "a-1." + "x" * 33, "a-1.é", "a-1.x\n", 7]
)
def test_a_recovery_id_of_another_shape_is_refused(text: object) -> None:
    """Other socket.io servers give out other ones; a page may come from there."""
    with pytest.raises(ValueError, match="not a recovery id"):
        parse_recovery_id(text)


@given(st.text(max_size=20), st.text(max_size=20))
def test_each_user_has_an_epoch_of_its_own(one: str, other: str) -> None:
    """A page that logs in as somebody else keeps its position: it must mean nothing."""
    epoch = user_epoch("store", one)

    assert parse_position(f"{epoch}-1").epoch == epoch
    assert (user_epoch("store", other) == epoch) == (one == other)
    assert user_epoch("another store", one) != epoch
