"""The story of a message, whatever of it is left: true, in order, plain about what is not known."""

from collections.abc import Sequence
from typing import Any

from bridge.core.admin_views import InboxMatch, InboxSummary, KeptMessage
from bridge.core.journal import JournalEntry
from bridge.core.position import Position, user_epoch
from bridge.core.replay import InboxState
from bridge.core.trace import DeadFact, Facts, Story, WindowFact, tell_story
from bridge.enums import Fate, Stage, SyncReason

KEPT = KeptMessage(5, "message", 100.0, "m", None, 3)
DEAD = DeadFact(300.0, "ann", "too_large", "the body is too large", "9 bytes", 1, 0)


def happened(stage: Stage, at_s: float, **more: Any) -> JournalEntry:
    """Return an entry of the journal."""
    return JournalEntry(at_s, stage, "ann", "m", **more)


def story(
    *happenings: JournalEntry,
    kept: Sequence[KeptMessage] = (),
    seen_s: float | None = None,
    delivered: int = 0,
    trimmed_for: SyncReason | None = None,
    **more: Any,
) -> Story:
    """Tell the story of message m of ann."""
    has_inbox = kept or seen_s is not None or delivered
    state = InboxState("e", 1, 9, delivered, trimmed_for)
    facts: dict[str, Any] = {
        "user": "ann",
        "inbox": InboxSummary("ann", state) if has_inbox else None,
        "sighting": InboxMatch("ann", kept, seen_s) if kept or seen_s else None,
        "happenings": happenings,
        "dead": (),
        "is_dead_complete": True,
        "windows": (),
        "last_connect_s": None,
        "journal_begins_s": 50.0,
        "now_s": 1000.0,
    }
    return tell_story(Facts(**(facts | more)))


def stages(told: Story) -> list[tuple[Stage, float | None]]:
    """Return what happened when."""
    return [(step.stage, step.at_s) for step in told.steps]


# --- kept


def test_a_delivered_message_is_told_from_publishing_to_delivery() -> None:
    """The whole story, when every source has its part."""
    told = story(
        happened(Stage.PUBLISHED, 99.0, text="over HTTP"),
        happened(Stage.STORED, 101.0, offset=5),
        happened(Stage.WRITTEN, 101.0, offset=5, windows=2),
        happened(Stage.DUPLICATE, 150.0),
        kept=[KEPT],
        delivered=7,
    )

    assert stages(told) == [
        (Stage.PUBLISHED, 99.0),
        (Stage.TAKEN, 100.0),
        (Stage.STORED, 101.0),
        (Stage.WRITTEN, 101.0),
        (Stage.DUPLICATE, 150.0),
        (Stage.DELIVERED, None),
    ]
    texts = [step.text for step in told.steps]
    assert texts[0] == "published: over HTTP"
    assert texts[2:4] == ["stored at offset 5", "written to 2 windows"]
    assert told.steps[3].windows == 2
    assert told.steps[1].position == str(Position(user_epoch("e", "ann"), 5))
    assert told.fate is Fate.DELIVERED
    assert told.verdict == "delivered: the user has had everything up to offset 7"
    assert list(told.silent) == []


def test_without_the_journal_the_inbox_tells_and_the_silence_is_named() -> None:
    """After a restart: when it was stored and written, nobody knows."""
    told = story(kept=[KEPT], delivered=5, journal_begins_s=500.0)

    assert stages(told) == [
        (Stage.TAKEN, 100.0),
        (Stage.STORED, None),
        (Stage.DELIVERED, None),
    ]
    assert "the journal is in memory" in told.silent[0]
    assert "over AMQP the bridge sees a message only when" in told.silent[1]


def test_what_was_written_was_stored_before() -> None:
    """The journal hears of windows first: they are fed in the moment of the commit."""
    told = story(
        happened(Stage.WRITTEN, 101.0, offset=5, windows=1),
        happened(Stage.STORED, 101.001, offset=5),
        kept=[KEPT],
        delivered=5,
    )

    assert stages(told)[1:3] == [(Stage.STORED, 101.0), (Stage.WRITTEN, 101.0)]


def test_an_ack_is_the_delivery() -> None:
    """With its time, once."""
    told = story(
        happened(Stage.STORED, 101.0, offset=5),
        JournalEntry(110.0, Stage.DELIVERED, "ann", offset=5, text="acked"),
        kept=[KEPT],
        delivered=6,
    )

    assert stages(told)[2:] == [(Stage.DELIVERED, 110.0)]
    assert told.steps[-1].text == "delivered: acked"


def test_a_waiting_message_says_what_it_waits_for() -> None:
    """The question that operators ask most."""
    manual, polling = (
        WindowFact(5, has_manual_acks=True),
        WindowFact(9, has_manual_acks=False),
    )

    def why(*windows: WindowFact, last_connect_s: float | None = None) -> str:
        told = story(
            kept=[KEPT], delivered=4, windows=windows, last_connect_s=last_connect_s
        )
        assert told.fate is Fate.WAITING
        assert told.steps[-1].text == told.verdict
        return told.verdict.removeprefix("waiting: ")

    assert why() == "no window of the user has connected since the journal begins"
    assert why(last_connect_s=60.0) == "no window of the user is connected"
    assert why(
        WindowFact(2, has_manual_acks=False), WindowFact(3, has_manual_acks=False)
    ) == ("2 windows connected, still reading what was before it (at offset 3)")
    assert why(manual) == "written to 1 window, none has acked it yet"
    assert why(polling) == "1 window polls for it and has yet to fetch it"


def test_a_message_past_its_deadline_is_expired() -> None:
    """At its deadline, or when it was found to be over."""
    kept = [KeptMessage(5, "message", 100.0, "m", 200.0, 3)]

    by_deadline = story(kept=kept)
    found_out = story(happened(Stage.EXPIRED, 201.0, offset=5), kept=kept, delivered=9)

    assert stages(by_deadline)[-1] == (Stage.EXPIRED, 200.0)
    assert stages(found_out)[-1] == (Stage.EXPIRED, 201.0)
    assert by_deadline.fate is found_out.fate is Fate.EXPIRED


def test_a_mark_behind_an_expired_message_proves_nothing() -> None:
    """A replay leaves it out, and the mark passes it: only the journal can tell."""
    kept = [KeptMessage(5, "message", 100.0, "m", 200.0, 3)]

    def replayed(at_s: float) -> Story:
        several = JournalEntry(at_s, Stage.WRITTEN, "ann", offset=9, after=1, windows=1)
        return story(several, kept=kept, delivered=9)

    in_time, too_late = replayed(199.0), replayed(201.0)

    assert in_time.verdict.startswith("delivered: ")
    assert Stage.WRITTEN in dict(stages(in_time))
    assert "which came first nobody knows" in too_late.verdict
    assert Stage.WRITTEN not in dict(stages(too_late))


def test_of_two_messages_with_one_id_the_newest_decides() -> None:
    """Published again after its window; both are told."""
    again = KeptMessage(8, "message", 500.0, "m", None, 3)

    told = story(kept=[KEPT, again], delivered=5)

    assert [stage for stage, _ in stages(told)] == [
        *(Stage.TAKEN, Stage.STORED) * 2,
        *(Stage.DELIVERED, Stage.WAITING),
    ]
    assert told.fate is Fate.WAITING


# --- not kept


def test_a_trimmed_message_says_why_and_whether_it_had_arrived() -> None:
    """As far as is known: the id alone does not tell where it stood."""
    stored = happened(Stage.STORED, 101.0, offset=5)

    def verdict(*happenings: JournalEntry, **more: Any) -> str:
        told = story(*happenings, **more)
        assert told.fate is Fate.TRIMMED
        assert told.steps[-1].text == told.verdict
        return told.verdict

    assert verdict(stored, delivered=6, trimmed_for=SyncReason.LIMIT) == (
        "trimmed: the inbox holds no more than BRIDGE_INBOX_MAX_MESSAGES; it was "
        "delivered: the mark is at offset 6"
    )
    assert verdict(stored, seen_s=101.0, trimmed_for=SyncReason.EXPIRED) == (
        "trimmed: it was over BRIDGE_INBOX_MAX_AGE; it was never delivered"
    )
    assert verdict(seen_s=101.0) == (
        "trimmed: the store has forgotten it; whether it was delivered first, nobody knows"
    )
    assert verdict(stored) == (
        "trimmed: the store has forgotten it; whether it was delivered first, nobody knows"
    )


def test_a_dead_letter_says_why() -> None:
    """In the words of the letter, at the time of the journal, which is finer; once."""
    told = story(happened(Stage.DEAD, 301.0, text="attempt 1"), dead=[DEAD])

    assert stages(told) == [(Stage.DEAD, 301.0)]
    assert stages(story(dead=[DEAD])) == [(Stage.DEAD, 300.0)]
    assert told.fate is Fate.DEAD
    assert told.verdict == (
        "dead: in the dead letters, too_large: the body is too large (9 bytes); 1 attempt"
    )
    again = DeadFact(None, "ann", "other", "who knows", "", 0, 2)
    assert story(dead=[again]).verdict.endswith("other: who knows; 2 redrives before")


def test_a_message_that_was_redriven_and_stored_is_not_dead() -> None:
    """What became of it in the end counts; a copy in the queue is told beside it."""
    told = story(kept=[KEPT], delivered=5, dead=[DEAD])

    assert told.fate is Fate.DELIVERED
    assert Stage.DEAD in dict(stages(told))


def test_the_last_thing_that_happened_is_how_it_stands() -> None:
    """For a message that is in no inbox."""

    def end(stage: Stage, **more: Any) -> tuple[Fate, str]:
        told = story(happened(Stage.RETRIED, 70.0), happened(stage, 80.0), **more)
        return told.fate, told.verdict

    assert end(Stage.RETRIED)[0] is Fate.RETRYING
    assert end(Stage.PUBLISHED)[0] is Fate.ON_ITS_WAY
    assert end(Stage.REDRIVEN)[0] is Fate.ON_ITS_WAY
    assert end(Stage.EXPIRED)[0] is Fate.EXPIRED
    assert end(Stage.DEAD) == (
        Fate.DEAD,
        "dead: it was set aside, and is not in the dead letters any more",
    )
    assert end(Stage.DEAD, is_dead_complete=False)[1] == "dead: it was set aside"


def test_where_nothing_is_left_that_is_the_answer() -> None:
    """With every place that could not be looked at."""
    told = story(happened(Stage.DUPLICATE, 60.0), silent=["the broker is away"])

    assert told.fate is Fate.UNKNOWN
    assert told.silent[0] == "the broker is away"
    assert "inbound or a retry queue" in told.silent[-1]
