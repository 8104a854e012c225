"""What the journal remembers, for how long, and what it says it does not know."""

import pytest

from bridge.core.journal import Happening, Journal
from bridge.core.message import Message, Stored
from bridge.enums import Stage


def message(user: str, message_id: str | None = None) -> Message:
    """Return a message; its data does not matter here."""
    return Message(user, "message", b"1", 1.0, message_id)


def told(journal: Journal, user: str, message_id: str, *offsets: int) -> list[object]:
    """Return stage, time and windows of what is remembered."""
    return [
        (each.stage, each.at_s, each.windows)
        for each in journal.of(user, message_id, offsets=offsets)
    ]


def test_what_was_stored_and_written_is_told_in_order() -> None:
    """The storing tells the offset; writing knows nothing else."""
    journal = Journal()
    batch = [message("ann", "a"), message("bob", "a"), message("ann", "b")]
    journal.stored(batch, [7, 7, 8], at_s=1.0)
    journal.written(
        [Stored(batch[0], 7), Stored(batch[1], 7), Stored(batch[2], 8)],
        [2, 5, 2],
        at_s=2.0,
    )

    stored, written = journal.of("ann", "a")

    assert (stored.stage, stored.offset) == (Stage.STORED, 7)
    assert (written.stage, written.offset, written.windows) == (Stage.WRITTEN, 7, 2)
    assert told(journal, "bob", "a") == [
        (Stage.STORED, 1.0, None),
        (Stage.WRITTEN, 2.0, 5),
    ]
    assert told(journal, "bob", "b") == []
    assert journal.users_of("a") == {"ann", "bob"}


def test_when_it_was_published_is_what_its_timestamp_says() -> None:
    """It is not kept with the message; here it is remembered, and told as what it is."""
    journal = Journal()
    told_when = Message("ann", "message", b"1", 2.0, "a", None, published_s=1.0)
    journal.stored([told_when], [1], at_s=3.0)

    published, stored = journal.of("ann", "a")

    assert (published.stage, published.at_s) == (Stage.PUBLISHED, 1.0)
    assert published.text == "by its timestamp"
    assert stored.stage is Stage.STORED


def test_what_came_again_is_told_as_that() -> None:
    """A store gives no offset to what it had already."""
    journal = Journal()
    for at_s, offset in ((1.0, 3), (2.0, None)):
        journal.stored([message("ann", "a")], [offset], at_s=at_s)

    assert told(journal, "ann", "a") == [
        (Stage.STORED, 1.0, None),
        (Stage.DUPLICATE, 2.0, None),
    ]


def test_writing_is_found_by_the_offset_that_the_inbox_knows() -> None:
    """The storing may have been in an earlier life of the bridge."""
    journal = Journal()
    journal.written([Stored(message("ann", "a"), 9)], [1], at_s=2.0)

    assert told(journal, "ann", "a") == []
    assert told(journal, "ann", "a", 9) == [(Stage.WRITTEN, 2.0, 1)]


def test_what_happened_to_several_at_once_is_told_of_each() -> None:
    """A replay is one note, whatever it brought."""
    journal = Journal()
    journal.note(Happening(1.0, Stage.WRITTEN, "ann", offset=8, after=5, windows=1))

    assert [len(told(journal, "ann", "x", offset)) for offset in (5, 6, 8, 9)] == [
        0,
        1,
        1,
        0,
    ]
    assert told(journal, "bob", "x", 6) == []


def test_what_is_noted_of_one_message_is_told_of_no_other() -> None:
    """Neither another id's nor, without an id, another offset's."""
    journal = Journal()
    journal.note(Happening(1.0, Stage.RETRIED, "ann", "a"))
    journal.note(Happening(2.0, Stage.EXPIRED, "ann", None, offset=4))

    assert told(journal, "ann", "a", 4) == [(Stage.RETRIED, 1.0, None)]
    assert told(journal, "ann", "b", 4) == []


def test_the_first_ack_is_the_news() -> None:
    """Each later one counts for the same message again and says nothing new."""
    journal = Journal()
    for at_s, offset in ((1.0, 3), (2.0, 6), (3.0, 9)):
        journal.delivered("ann", offset, at_s=at_s, text="acked")

    assert told(journal, "ann", "x", 5) == [(Stage.DELIVERED, 2.0, None)]
    assert told(journal, "ann", "x", 10) == []
    assert told(journal, "bob", "x", 5) == []


def test_it_is_bounded_and_says_since_when_it_knows_all() -> None:
    """What was let go must not pass for what never happened."""
    journal = Journal(began_s=0.5, messages=10)
    assert journal.begins_s == 0.5
    for number in range(25):
        journal.stored([message("ann", f"m{number}")], [number], at_s=float(number))

    assert told(journal, "ann", "m14") == []
    assert told(journal, "ann", "m15") == [(Stage.STORED, 15.0, None)]
    assert journal.begins_s == 15.0
    for number in range(30):
        journal.note(Happening(100.0 + number, Stage.RETRIED, "ann", f"r{number}"))
    assert journal.users_of("r19") == set()
    assert journal.users_of("r20") == {"ann"}
    assert journal.begins_s == 120.0


def test_the_last_connect_of_each_user_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the latest users alone: the names of all that ever came would fill memory."""
    monkeypatch.setattr("bridge.core.journal._CONNECTS_MAX", 2)
    journal = Journal()
    for at_s, user in enumerate(("ann", "bob", "ann", "eve")):
        journal.connected(user, at_s=float(at_s))

    last = [journal.last_connect_s(user) for user in ("ann", "bob", "eve")]

    assert last == [2.0, None, 3.0]
