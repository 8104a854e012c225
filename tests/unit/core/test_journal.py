"""The journal: what it records, in which order it returns entries, and its bounds."""

from bridge.core.journal import Journal, JournalEntry
from bridge.core.message import Message, Stored
from bridge.enums import PresenceChange, Stage


def message(user: str, message_id: str | None = None) -> Message:
    """Return a message with arbitrary data."""
    return Message(user, "message", b"1", 1.0, message_id)


def entries(
    journal: Journal, user: str, message_id: str, *offsets: int
) -> list[object]:
    """Return stage, time and windows of each entry about the message."""
    return [
        (each.stage, each.at_s, each.windows)
        for each in journal.of(user, message_id, offsets=offsets)
    ]


def test_stored_and_written_messages_are_returned_in_order() -> None:
    """Written entries hold no id: they are found by the offset of the stored entry."""
    journal = Journal()
    batch = [message("ann", "a"), message("bob", "a"), message("ann", "b")]
    journal.stored(batch, [7, 7, 8], at_s=1.0)
    journal.written([Stored(batch[0], 7), Stored(batch[2], 8)], [2, 2], at_s=2.0)
    journal.written([Stored(batch[1], 7)], [5], at_s=2.0)

    stored, written = journal.of("ann", "a")

    assert (stored.stage, stored.offset) == (Stage.STORED, 7)
    assert (written.stage, written.offset, written.windows) == (Stage.WRITTEN, 7, 2)
    assert entries(journal, "bob", "a") == [
        (Stage.STORED, 1.0, None),
        (Stage.WRITTEN, 2.0, 5),
    ]
    assert entries(journal, "bob", "b") == []
    assert journal.users_of("a") == {"ann", "bob"}


def test_the_publish_time_comes_from_the_timestamp_of_the_message() -> None:
    """Inboxes do not store the timestamp; only the journal has it."""
    journal = Journal()
    published_at_1 = Message("ann", "message", b"1", 2.0, "a", None, published_s=1.0)
    journal.stored([published_at_1], [1], at_s=3.0)

    published, stored = journal.of("ann", "a")

    assert (published.stage, published.at_s) == (Stage.PUBLISHED, 1.0)
    assert published.text == "by its timestamp"
    assert stored.stage is Stage.STORED


def test_a_message_without_an_offset_is_recorded_as_a_duplicate() -> None:
    """A store returns no offset for a message that it holds already."""
    journal = Journal()
    for at_s, offset in ((1.0, 3), (2.0, None)):
        journal.stored([message("ann", "a")], [offset], at_s=at_s)

    assert entries(journal, "ann", "a") == [
        (Stage.STORED, 1.0, None),
        (Stage.DUPLICATE, 2.0, None),
    ]


def test_written_entries_are_found_by_an_offset_of_the_caller() -> None:
    """The message may have been stored before the bridge was restarted."""
    journal = Journal()
    journal.written([Stored(message("ann", "a"), 9)], [1], at_s=2.0)

    assert entries(journal, "ann", "a") == []
    assert entries(journal, "ann", "a", 9) == [(Stage.WRITTEN, 2.0, 1)]


def test_a_range_entry_is_returned_for_each_message_of_the_range() -> None:
    """A replay is one entry, however many messages it wrote."""
    journal = Journal()
    journal.note(JournalEntry(1.0, Stage.WRITTEN, "ann", offset=8, after=5, windows=1))

    assert [len(entries(journal, "ann", "x", offset)) for offset in (5, 6, 8, 9)] == [
        0,
        1,
        1,
        0,
    ]
    assert entries(journal, "bob", "x", 6) == []


def test_an_entry_is_returned_for_its_own_message_only() -> None:
    """Entries match by id, or by range; a single offset without an id matches nothing."""
    journal = Journal()
    journal.note(JournalEntry(1.0, Stage.RETRIED, "ann", "a"))
    journal.note(JournalEntry(2.0, Stage.EXPIRED, "ann", None, offset=4))

    assert entries(journal, "ann", "a", 4) == [(Stage.RETRIED, 1.0, None)]
    assert entries(journal, "ann", "b", 4) == []


def test_only_the_first_ack_of_a_message_is_returned() -> None:
    """Later acks cover the message as well and add no information."""
    journal = Journal()
    for at_s, offset in ((1.0, 3), (2.0, 6), (3.0, 9)):
        journal.delivered("ann", offset, at_s=at_s, text="acked")

    assert entries(journal, "ann", "x", 5) == [(Stage.DELIVERED, 2.0, None)]
    assert entries(journal, "ann", "x", 10) == []
    assert entries(journal, "bob", "x", 5) == []


def test_the_journal_is_bounded_and_reports_since_when_it_is_complete() -> None:
    """A dropped entry must not look like an event that never happened."""
    journal = Journal(began_s=0.5, messages=10)
    assert journal.begins_s == 0.5
    for number in range(25):
        journal.stored([message("ann", f"m{number}")], [number], at_s=float(number))

    assert entries(journal, "ann", "m14") == []
    assert entries(journal, "ann", "m15") == [(Stage.STORED, 15.0, None)]
    assert journal.begins_s == 15.0
    for number in range(30):
        journal.note(JournalEntry(100.0 + number, Stage.RETRIED, "ann", f"r{number}"))
    assert journal.users_of("r19") == set()
    assert journal.users_of("r20") == {"ann"}
    assert journal.begins_s == 120.0


def test_last_connect_times_are_kept_for_the_most_recent_users() -> None:
    """Without a bound, the names of all users would fill the memory."""
    journal = Journal(max_users=2)
    for at_s, user in enumerate(("ann", "bob", "ann", "eve")):
        journal.connected(user, at_s=float(at_s))

    last = [journal.last_connect_s(user) for user in ("ann", "bob", "eve")]

    assert last == [2.0, None, 3.0]


def test_changes_of_presence_are_returned_newest_first_and_displace_nothing_else() -> (
    None
):
    """Thousands of pages that reconnect must not end the story of a dead letter."""
    journal = Journal(messages=4)
    journal.note(JournalEntry(0.5, Stage.DEAD, "ann", "m"))
    for at_s in range(4):
        journal.presence("bob", PresenceChange.DISCONNECTED, at_s=float(at_s))
        journal.presence("ann", PresenceChange.CONNECTED, at_s=at_s + 0.5)

    assert journal.presence_of("ann", limit=9) == [
        (3.5, PresenceChange.CONNECTED),
        (2.5, PresenceChange.CONNECTED),
    ]
    assert journal.presence_of("bob", limit=1) == [(3.0, PresenceChange.DISCONNECTED)]
    assert entries(journal, "ann", "m") == [(Stage.DEAD, 0.5, None)]
    assert journal.begins_s == 0.0
