"""The story of a message: its steps in order, its fate, and everything that is not known."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from bridge.core.admin_views import (
    InboxMatch,
    InboxSummary,
    KeptMessage,
    WaitingEvent,
)
from bridge.core.contracts.operator.users import WindowFacts
from bridge.core.dead_letter import StoredDeadLetter
from bridge.core.journal import JournalEntry
from bridge.core.message import Message
from bridge.core.message_options import Tracking
from bridge.core.position import Position, user_epoch
from bridge.core.receipts import Receipt
from bridge.core.replay import InboxState
from bridge.core.trace import Story, TraceFacts, build_story
from bridge.enums import DeadLetterReason, Fate, Stage, SyncReason

KEPT = KeptMessage(5, "message", 100.0, "m", None, 3)


def letter(**changes: Any) -> StoredDeadLetter:
    """Return a dead letter of ann."""
    facts: dict[str, Any] = {
        "id": "l",
        "reason": DeadLetterReason.TOO_LARGE,
        "error": "9 bytes",
        "user": "ann",
        "event": "message",
        "message_id": "m",
        "dead_s": 300.0,
        "origin_exchange": "",
        "origin_queue": "",
        "attempts": 1,
        "redrives": 0,
        "body_bytes": 9,
    }
    return StoredDeadLetter(**(facts | changes))


def window(offset: int, acks: Literal["auto", "manual"] = "auto") -> WindowFacts:
    """Return a window of ann that has received everything up to `offset`."""
    return WindowFacts(
        bridge="", sid_short="s", transport="polling", address="::1", connected_s=1.0,
        offset=offset, acks=acks, live=True, waiting_bytes=0,
    )  # fmt: skip


def happened(stage: Stage, at_s: float, **more: Any) -> JournalEntry:
    """Return a journal entry."""
    return JournalEntry(at_s, stage, "ann", "m", **more)


def story(
    *entries: JournalEntry,
    kept: Sequence[KeptMessage] = (),
    seen_s: float | None = None,
    delivered: int = 0,
    trimmed_for: SyncReason | None = None,
    **more: Any,
) -> Story:
    """Build the story of the message m of ann."""
    has_inbox = kept or seen_s is not None or delivered
    state = InboxState("e", 1, 9, delivered, trimmed_for)
    facts: dict[str, Any] = {
        "user": "ann",
        "inbox": InboxSummary("ann", state) if has_inbox else None,
        "inbox_match": InboxMatch("ann", kept, seen_s) if kept or seen_s else None,
        "entries": entries,
        "dead": (),
        "is_dead_complete": True,
        "windows": (),
        "last_connect_s": None,
        "journal_begins_s": 50.0,
        "now_s": 1000.0,
    }
    return build_story(TraceFacts(**(facts | more)))


def stages(found: Story) -> list[tuple[Stage, float | None]]:
    """Return the stage and time of each step."""
    return [(step.stage, step.at_s) for step in found.steps]


# --- kept


def test_an_open_receipt_is_shown_with_the_time_of_its_decision() -> None:
    """It explains why no worker has received it yet."""
    message = Message("ann", "message", b"", 100.0, "m")
    receipt = Receipt(
        message, 5, Tracking(wants_receipt=True, undelivered_after_s=1045.0)
    )

    found = story(kept=[KEPT], receipts=[receipt])
    only_late = story(
        kept=[KEPT],
        receipts=[
            Receipt(message, 5, Tracking(wants_receipt=False, undelivered_after_s=9.0))
        ],
    )

    position = str(Position(user_epoch("e", "ann"), 5))
    assert [
        (step.at_s, step.text, step.position)
        for step in found.steps
        if step.stage is Stage.TRACKED
    ] == [
        (None, "a receipt is wanted, and the outcome is open", position),
        (
            1145.0,
            "it counts as undelivered if the user has not received it by then",
            position,
        ),
    ]
    assert found.fate is Fate.WAITING
    assert [s.at_s for s in only_late.steps if s.stage is Stage.TRACKED] == [109.0]


def test_an_outcome_that_waits_to_be_published_is_shown() -> None:
    """Nothing else says that it was decided, because no worker has received it."""
    event = WaitingEvent("message.delivered", 104.0)

    found = story(kept=[KEPT], events=[event])

    assert (Stage.TRACKED, 104.0) in stages(found)
    texts = [step.text for step in found.steps if step.stage is Stage.TRACKED]
    assert texts == ["message.delivered waits to be published for workers"]


@pytest.mark.parametrize("stage", [Stage.REPLACED, Stage.EXPIRED, Stage.EMITTED])
def test_a_message_with_a_final_fate_is_not_sought_in_the_queues(stage: Stage) -> None:
    """`bridge trace` said of an expired message that it may wait in a queue."""
    found = story(
        happened(Stage.STORED, 101.0, offset=5), happened(stage, 102.0, offset=6)
    )

    assert found.fate is not Fate.UNKNOWN
    assert not [gap for gap in found.gaps if "inbound or a retry queue" in gap]


def test_a_message_that_was_replaced_before_it_was_written_was_not_delivered() -> None:
    """The delivered mark passes it with the newer message, as with x-bridge-throttle."""
    stored = happened(Stage.STORED, 101.0, offset=5)
    replaced = happened(Stage.REPLACED, 102.0, offset=6)
    delivered = happened(Stage.DELIVERED, 103.0, offset=5, text="acked")
    written = happened(Stage.WRITTEN, 101.5, offset=5, windows=1)

    skipped = story(stored, replaced, delivered, delivered=6)
    received = story(stored, written, replaced, delivered, delivered=6)

    assert stages(skipped) == [(Stage.STORED, 101.0), (Stage.REPLACED, 102.0)]
    assert stages(received)[-1] == (Stage.DELIVERED, 103.0)
    assert skipped.fate is received.fate is Fate.REPLACED


def test_a_delivered_message_has_steps_from_publishing_to_delivery() -> None:
    """Every source contributes its part."""
    found = story(
        happened(Stage.PUBLISHED, 99.0, text="over HTTP"),
        happened(Stage.STORED, 101.0, offset=5),
        happened(Stage.WRITTEN, 101.0, offset=5, windows=2),
        happened(Stage.DUPLICATE, 150.0),
        kept=[KEPT],
        delivered=7,
    )

    assert stages(found) == [
        (Stage.PUBLISHED, 99.0),
        (Stage.TAKEN, 100.0),
        (Stage.STORED, 101.0),
        (Stage.WRITTEN, 101.0),
        (Stage.DUPLICATE, 150.0),
        (Stage.DELIVERED, None),
    ]
    texts = [step.text for step in found.steps]
    assert texts[0] == "published: over HTTP"
    assert texts[2:4] == ["stored at offset 5", "written to 2 windows"]
    assert found.steps[3].windows == 2
    assert found.steps[1].position == str(Position(user_epoch("e", "ann"), 5))
    assert found.fate is Fate.DELIVERED
    assert found.verdict == "delivered: the user has received everything up to offset 7"
    assert list(found.gaps) == []


def test_without_the_journal_the_inbox_is_used_and_the_gaps_are_named() -> None:
    """After a restart the times of storing and writing are unknown."""
    found = story(kept=[KEPT], delivered=5, journal_begins_s=500.0)

    assert stages(found) == [
        (Stage.TAKEN, 100.0),
        (Stage.STORED, None),
        (Stage.DELIVERED, None),
    ]
    assert "the journal is in memory" in found.gaps[0]
    assert "over AMQP bridge first sees a message when" in found.gaps[1]


def test_a_message_is_stored_before_it_is_written() -> None:
    """Windows are fed within the commit, so the journal records their writes first."""
    found = story(
        happened(Stage.WRITTEN, 101.0, offset=5, windows=1),
        happened(Stage.STORED, 101.001, offset=5),
        kept=[KEPT],
        delivered=5,
    )

    assert stages(found)[1:3] == [(Stage.STORED, 101.0), (Stage.WRITTEN, 101.0)]


def test_an_ack_counts_as_the_delivery() -> None:
    """The step has the time of the ack and appears once."""
    found = story(
        happened(Stage.STORED, 101.0, offset=5),
        JournalEntry(110.0, Stage.DELIVERED, "ann", offset=5, text="acked"),
        kept=[KEPT],
        delivered=6,
    )

    assert stages(found)[2:] == [(Stage.DELIVERED, 110.0)]
    assert found.steps[-1].text == "delivered: acked"


def test_a_waiting_message_has_a_reason() -> None:
    """Operators ask this question most."""
    manual, polling = window(5, "manual"), window(9)

    def why(*windows: WindowFacts, last_connect_s: float | None = None) -> str:
        found = story(
            kept=[KEPT], delivered=4, windows=windows, last_connect_s=last_connect_s
        )
        assert found.fate is Fate.WAITING
        assert found.steps[-1].text == found.verdict
        return found.verdict.removeprefix("waiting: ")

    assert why() == "no window of the user has connected since the journal began"
    assert why(last_connect_s=60.0) == "no window of the user is connected"
    assert why(window(2), window(3)) == (
        "2 windows connected, still reading earlier messages (at offset 3)"
    )
    assert why(manual) == "written to 1 window, none has acked it yet"
    assert why(polling) == (
        "written to 1 window; no page has answered a ping, polled or sent a packet since"
    )


def test_a_message_past_its_deadline_is_expired() -> None:
    """The step has the deadline, or the time at which the bridge noticed it."""
    kept = [KeptMessage(5, "message", 100.0, "m", 200.0, 3)]

    by_deadline = story(kept=kept)
    found_out = story(happened(Stage.EXPIRED, 201.0, offset=5), kept=kept, delivered=9)

    assert stages(by_deadline)[-1] == (Stage.EXPIRED, 200.0)
    assert stages(found_out)[-1] == (Stage.EXPIRED, 201.0)
    assert by_deadline.fate is found_out.fate is Fate.EXPIRED


def test_a_mark_after_an_expired_message_does_not_prove_its_delivery() -> None:
    """A replay leaves it out and the mark passes it: only the journal shows which."""
    kept = [KeptMessage(5, "message", 100.0, "m", 200.0, 3)]

    def replayed(at_s: float) -> Story:
        several = JournalEntry(at_s, Stage.WRITTEN, "ann", offset=9, after=1, windows=1)
        return story(several, kept=kept, delivered=9)

    in_time, too_late = replayed(199.0), replayed(201.0)

    assert in_time.verdict.startswith("delivered: ")
    assert Stage.WRITTEN in dict(stages(in_time))
    assert "it is not known which happened first" in too_late.verdict
    assert Stage.WRITTEN not in dict(stages(too_late))


def test_the_newest_of_two_messages_with_one_id_decides_the_fate() -> None:
    """It was published again after the dedupe window; both have steps."""
    again = KeptMessage(8, "message", 500.0, "m", None, 3)

    found = story(kept=[KEPT, again], delivered=5)

    assert [stage for stage, _ in stages(found)] == [
        *(Stage.TAKEN, Stage.STORED) * 2,
        *(Stage.DELIVERED, Stage.WAITING),
    ]
    assert found.fate is Fate.WAITING


# --- not kept


def test_a_trimmed_message_has_a_reason_and_a_delivery_state() -> None:
    """As far as is known: the id alone does not reveal the offset."""
    stored = happened(Stage.STORED, 101.0, offset=5)

    def verdict(*entries: JournalEntry, **more: Any) -> str:
        found = story(*entries, **more)
        assert found.fate is Fate.TRIMMED
        assert found.steps[-1].text == found.verdict
        return found.verdict

    assert verdict(stored, delivered=6, trimmed_for=SyncReason.LIMIT) == (
        "trimmed: the inbox holds no more than BRIDGE_INBOX_MAX_MESSAGES; it was "
        "delivered: the mark is at offset 6"
    )
    assert verdict(stored, seen_s=101.0, trimmed_for=SyncReason.EXPIRED) == (
        "trimmed: it was over BRIDGE_INBOX_MAX_AGE; it was never delivered"
    )
    assert verdict(seen_s=101.0) == (
        "trimmed: the store no longer has it; it is not known whether it was delivered first"
    )
    assert verdict(stored) == (
        "trimmed: the store no longer has it; it is not known whether it was delivered first"
    )


def test_a_dead_letter_is_a_step_with_its_reason() -> None:
    """The step appears once, with the time of the journal, which is more precise."""
    found = story(happened(Stage.DEAD, 301.0, text="attempt 1"), dead=[letter()])

    assert stages(found) == [(Stage.DEAD, 301.0)]
    assert stages(story(dead=[letter()])) == [(Stage.DEAD, 300.0)]
    assert found.fate is Fate.DEAD
    assert found.verdict == (
        "dead: in the dead letters, too_large: "
        f"{DeadLetterReason.TOO_LARGE.explanation} (9 bytes); 1 attempt"
    )
    again = letter(
        dead_s=None, reason=DeadLetterReason.OTHER, error="", attempts=0, redrives=2
    )
    assert story(dead=[again]).verdict.endswith("; 2 redrives before")


def test_a_message_that_was_redriven_and_stored_is_not_dead() -> None:
    """The latest state decides; a copy among the dead letters is still a step."""
    found = story(kept=[KEPT], delivered=5, dead=[letter()])

    assert found.fate is Fate.DELIVERED
    assert Stage.DEAD in dict(stages(found))


def test_the_last_event_decides_the_fate() -> None:
    """This holds for a message that is in no inbox."""

    def end(stage: Stage, **more: Any) -> tuple[Fate, str]:
        found = story(happened(Stage.RETRIED, 70.0), happened(stage, 80.0), **more)
        return found.fate, found.verdict

    assert end(Stage.RETRIED)[0] is Fate.RETRYING
    assert end(Stage.PUBLISHED)[0] is Fate.ON_ITS_WAY
    assert end(Stage.REDRIVEN)[0] is Fate.ON_ITS_WAY
    assert end(Stage.EXPIRED)[0] is Fate.EXPIRED
    assert end(Stage.DEAD) == (
        Fate.DEAD,
        "dead: it became a dead letter, and is not in the dead letters any more",
    )
    assert end(Stage.DEAD, is_dead_complete=False)[1] == "dead: it became a dead letter"


def test_without_a_trace_the_fate_is_unknown() -> None:
    """The gaps name every source that was not available."""
    found = story(happened(Stage.DUPLICATE, 60.0), gaps=["the broker is away"])

    assert found.fate is Fate.UNKNOWN
    assert found.gaps[0] == "the broker is away"
    assert "inbound or a retry queue" in found.gaps[-1]
