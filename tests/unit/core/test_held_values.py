"""Which messages of a throttled key are held back, and for how long."""

from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.held_values import HeldBudget, HeldValues
from bridge.core.message import Message, Stored
from bridge.core.message_options import MessageOptions


def value(
    offset: int,
    key: str | None = "job",
    throttle_s: float | None = 1.0,
    *,
    data: bytes = b"0",
) -> Stored:
    """Return a message, without options if it has no key."""
    message = Message("ann", "progress", data, 0.0)
    if key is not None:
        message.options = MessageOptions(key=key, throttle_s=throttle_s)
    return Stored(message, offset)


def take(
    held: HeldValues, now_s: float, *messages: Stored, above: int = 0
) -> list[int]:
    """Return the offsets that are written at once."""
    return [one.offset for one in held.take(messages, now_s=now_s, above=above)]


def write_due(held: HeldValues, now_s: float) -> list[int]:
    """Write what is due, and return the offsets."""
    due = held.start_writing(now_s)
    for stored in due:
        held.finish_writing(stored)
    return [stored.offset for stored in due]


@pytest.fixture
def held() -> HeldValues:
    """Nothing is held back yet; at most 100 bytes will be."""
    return HeldValues(bytes_max=100, budget=HeldBudget())


def test_the_first_is_written_at_once_and_the_last_at_the_end_of_the_interval(
    held: HeldValues,
) -> None:
    """What came between them was replaced."""
    assert take(held, 10.0, value(1)) == [1]
    assert take(held, 10.2, value(2), value(3)) == []
    assert (held.offsets, held.next_due_s) == ([3], 11.0)

    assert write_due(held, 10.9) == []
    assert write_due(held, 11.0) == [3]
    assert (held.offsets, held.next_due_s) == ([], inf)


def test_an_interval_begins_with_each_write(held: HeldValues) -> None:
    """Also with that of a message that was held back."""
    take(held, 10.0, value(1), value(2))
    write_due(held, 11.0)

    assert take(held, 11.9, value(3)) == []
    assert write_due(held, 12.0) == [3]
    assert take(held, 13.0, value(4)) == [4]


def test_keys_do_not_wait_for_each_other(held: HeldValues) -> None:
    """Nor do messages without a key wait; what is held back stays in order."""
    assert take(held, 10.0, value(1, "a"), value(2, "b"), value(3, None)) == [1, 2, 3]
    assert take(held, 10.5, value(4, "b"), value(5, "a"), value(6, None)) == [6]
    assert held.offsets == [4, 5]
    assert take(held, 10.6, value(7, "b")) == []
    assert held.offsets == [5, 7]
    assert [one.offset for one in held.between(0, 6)] == [5]
    assert [one.offset for one in held.between(5, 7)] == [7]

    assert write_due(held, 11.0) == [5, 7]


def test_a_newer_message_without_an_interval_replaces_the_one_held_back(
    held: HeldValues,
) -> None:
    """Otherwise the older value would follow the newer one."""
    take(held, 10.0, value(1), value(2))

    assert take(held, 10.1, value(3, throttle_s=None)) == [3]
    assert write_due(held, 11.0) == []


def test_what_a_window_has_read_from_the_inbox_is_not_held_back(
    held: HeldValues,
) -> None:
    """Then some windows would lack it, and others would not."""
    take(held, 10.0, value(1))

    assert take(held, 10.1, value(2), above=2) == [2]
    assert take(held, 10.2, value(3), above=2) == []


def test_more_bytes_or_keys_than_allowed_are_written_at_once(held: HeldValues) -> None:
    """Producers choose both."""
    keys = [f"key {number}" for number in range(102)]
    take(held, 10.0, *[value(number, key) for number, key in enumerate(keys)])

    last = value(300, keys[-1])  # its key is not known
    assert take(held, 10.1, value(200, keys[0], data=b"0" * 100), last) == [300]
    assert take(held, 10.2, value(301, keys[1])) == [301]
    assert write_due(held, 12.0) == [200]
    assert take(held, 13.0, value(302, keys[-1]), value(303, keys[-1])) == [302]


def test_it_is_idle_when_all_intervals_have_passed(held: HeldValues) -> None:
    """Then the room forgets it."""
    assert held.is_idle(0.0)
    take(held, 10.0, value(1), value(2))
    assert not held.is_idle(20.0)
    write_due(held, 20.0)
    assert not held.is_idle(20.9)
    assert held.is_idle(21.0)


def test_all_users_together_hold_back_a_limited_number_of_bytes() -> None:
    """A producer could fill the memory with some keys of each user that is online."""
    budget = HeldBudget(2000)
    users = [HeldValues(bytes_max=1000, budget=budget) for _ in range(3)]
    for held in users:
        assert take(held, 10.0, value(1)) == [1]

    assert take(users[0], 10.1, value(2, data=b"x" * 900)) == []
    assert take(users[1], 10.1, value(2, data=b"x" * 90)) == []
    assert take(users[2], 10.1, value(2)) == [2]  # no room, so it is written

    users[0].drop()
    assert take(users[2], 10.2, value(3, data=b"x" * 900)) == []
    assert take(users[2], 10.3, value(4)) == []  # it replaces the one before
    assert write_due(users[1], 11.0) == [2]
    assert write_due(users[2], 11.1) == [4]
    assert budget.left_bytes == 2000


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([0.5, 1.0])), max_size=60
    ),
    st.integers(1, 10),
)
def test_each_key_keeps_its_interval_and_shows_its_last_value(
    messages: list[tuple[str, float]], step: int
) -> None:
    """Values of one key are written in order; the last one is never left out."""
    held = HeldValues(bytes_max=1000, budget=HeldBudget())
    values = [value(n, key, time_s) for n, (key, time_s) in enumerate(messages, 1)]
    writes: list[tuple[float, Stored]] = []

    for number, stored in enumerate(values):
        arrival_s = number * step / 16  # exact in binary
        writes += pass_until(held, arrival_s)
        taken = held.take([stored], now_s=arrival_s, above=0)
        writes += [(arrival_s, each) for each in taken]
    writes += pass_until(held, 1000.0)

    for key in "abc":
        of_key = [each for each in writes if options(each[1]).key == key]
        offsets = [stored.offset for _, stored in of_key]
        assert offsets == sorted(offsets)
        assert offsets[-1:] == [o.offset for o in values if options(o).key == key][-1:]
        for (before_s, before), (after_s, _) in pairwise(of_key):
            assert after_s - before_s >= (options(before).throttle_s or 0)


def pass_until(held: HeldValues, end_s: float) -> list[tuple[float, Stored]]:
    """Write what is due until then, each at its time."""
    writes: list[tuple[float, Stored]] = []
    while (now_s := held.next_due_s) <= end_s:
        due = held.start_writing(now_s)
        writes += [(now_s, each) for each in due]
        for each in due:
            held.finish_writing(each)
    return writes


def options(stored: Stored) -> MessageOptions:
    """Return the options of a message that has some."""
    assert stored.message.options is not None
    return stored.message.options
