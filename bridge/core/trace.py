"""
The story of one message, built from several sources, with everything that is unknown.

The inbox knows where a message is stored, the delivered mark how much the user has received,
the journal recent events, and the broker the dead letters. No source knows everything, and a
story states its gaps as plainly as its facts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from bridge.core.admin_views import (
    InboxMatch,
    InboxSummary,
    KeptMessage,
    WaitingEvent,
)
from bridge.core.contracts.operator.trace import TraceStep
from bridge.core.contracts.operator.users import WindowFacts
from bridge.core.dead_letter import StoredDeadLetter
from bridge.core.journal import JournalEntry
from bridge.core.position import Position, user_epoch
from bridge.core.receipts import Receipt
from bridge.enums import Fate, Stage, SyncReason

# The time in a dead letter's header has whole seconds.
_SAME_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class TraceFacts:
    """
    Everything that is known about one message of one user.

    Attributes:
        user: The user whose message it is.
        inbox: The user's inbox; ``None`` if there never was a message.
        inbox_match: The inbox's record of the message id.
        entries: Entries of the journals, in order of time.
        dead: Dead letters with the message id, oldest first.
        is_dead_complete: Whether all dead letters were read.
        windows: The windows that the user has now.
        last_connect_s: Unix time at which the user's last window connected; ``None`` if
            unknown.
        journal_begins_s: Unix time since which the journals are complete.
        now_s: The current Unix time.
        receipts: Those of messages with the id whose outcome is not decided yet.
        events: Those about messages with the id that wait to be published for workers.
        gaps: Sentences about sources that were not asked, or only in part.

    """

    user: str
    inbox: InboxSummary | None
    inbox_match: InboxMatch | None
    entries: Sequence[JournalEntry]
    dead: Sequence[StoredDeadLetter]
    is_dead_complete: bool
    windows: Sequence[WindowFacts]
    last_connect_s: float | None
    journal_begins_s: float
    now_s: float
    receipts: Sequence[Receipt] = ()
    events: Sequence[WaitingEvent] = ()
    gaps: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Story:
    """The steps of a message in order, its fate, and sentences about what is unknown."""

    steps: Sequence[TraceStep]
    fate: Fate
    verdict: str
    gaps: Sequence[str]


@dataclass(slots=True)
class _Steps:
    """Steps under construction, each with the time by which it is sorted."""

    timed: list[tuple[float, TraceStep]] = field(default_factory=list)

    def add(
        self,
        at_s: float | None,
        stage: Stage,
        text: str,
        position: str | None = None,
        *,
        after_s: float = inf,
        windows: int | None = None,
        bridge: str = "",
    ) -> None:
        """Add a step; one without a time is sorted as if it happened at `after_s`."""
        step = TraceStep(
            at_s=at_s,
            stage=stage,
            text=text,
            position=position,
            windows=windows,
            bridge=bridge,
        )
        self.timed.append((after_s if at_s is None else at_s, step))

    def in_order(self) -> list[TraceStep]:
        order = list(Stage)
        self.timed.sort(key=lambda each: (each[0], order.index(each[1].stage)))
        return [step for _, step in self.timed]


def build_story(facts: TraceFacts) -> Story:
    """Sort all facts into steps and derive the fate of the message."""
    steps = _Steps()
    kept = facts.inbox_match.kept if facts.inbox_match else ()
    endings = [_add_kept(facts, message, steps) for message in kept]
    for entry in _relevant_entries(facts, kept):
        _add_entry(facts, entry, steps)
    for receipt in facts.receipts:
        _add_open_receipt(facts, receipt, steps)
    for event in facts.events:
        text = f"{event.routing_key} waits to be published for workers"
        steps.add(event.at_s, Stage.TRACKED, text)
    if not kept:
        endings += _add_trimmed(facts, steps)
    for letter in facts.dead:
        noted = [each.at_s for each in facts.entries if _is_about(each, letter)]
        at_s = noted[0] if noted else letter.dead_s
        steps.add(at_s, Stage.DEAD, _dead_text(letter))
    fate, verdict = _ending(facts, endings)
    return Story(steps.in_order(), fate, verdict, [*facts.gaps, *_gaps(facts, fate)])


# --- messages that are in the inbox -------------------------------------------------------


def _add_kept(
    facts: TraceFacts, message: KeptMessage, steps: _Steps
) -> tuple[Fate, str]:
    position = _position(facts, message.offset)
    steps.add(message.taken_s, Stage.TAKEN, "consumed from the broker", position)
    known = {
        each.stage: each.at_s
        for each in facts.entries
        if each.offset == message.offset or _was_written(each, message)
    }
    if Stage.STORED not in known:
        text = f"stored at offset {message.offset}"
        steps.add(None, Stage.STORED, text, position, after_s=message.taken_s)
    fate, verdict = _end_of_kept(facts, message, known)
    if Stage(fate) not in known:
        at_s = message.deadline_s if fate is Fate.EXPIRED else None
        steps.add(at_s, Stage(fate), verdict, position)
    return fate, verdict


def _add_open_receipt(facts: TraceFacts, receipt: Receipt, steps: _Steps) -> None:
    position, taken_s = _position(facts, receipt.offset), receipt.message.taken_s
    if receipt.tracking.wants_receipt:
        text = "a receipt is wanted, and the outcome is open"
        steps.add(None, Stage.TRACKED, text, position, after_s=taken_s)
    if receipt.late_s is not None:
        text = "it counts as undelivered if the user has not received it by then"
        steps.add(receipt.late_s, Stage.TRACKED, text, position)


def _was_written(entry: JournalEntry, message: KeptMessage) -> bool:
    """Return whether an event of several messages includes `message`."""
    if entry.after is None:
        return False
    # A replay leaves out messages that are past their deadline.
    return message.deadline_s is None or entry.at_s < message.deadline_s


def _end_of_kept(
    facts: TraceFacts, message: KeptMessage, known: Mapping[Stage, float]
) -> tuple[Fate, str]:
    assert facts.inbox is not None  # noqa: S101 - the message was found in it
    mark = facts.inbox.state.delivered
    is_over = message.deadline_s is not None and message.deadline_s <= facts.now_s
    if message.offset > mark and not is_over:
        return Fate.WAITING, f"waiting: {_why_waiting(facts, message.offset)}"
    if message.offset > mark or Stage.EXPIRED in known:
        return Fate.EXPIRED, "expired: its deadline passed before a window received it"
    if is_over and not known.keys() & {Stage.WRITTEN, Stage.DELIVERED}:
        return Fate.DELIVERED, (
            f"delivered, or left out because its deadline had passed: the mark is at offset "
            f"{mark}, and it is not known which happened first"
        )
    verdict = f"delivered: the user has received everything up to offset {mark}"
    return Fate.DELIVERED, verdict


def _why_waiting(facts: TraceFacts, offset: int) -> str:
    windows = facts.windows
    if not windows:
        if facts.last_connect_s is None:
            return "no window of the user has connected since the journal began"
        return "no window of the user is connected"
    had_it = [window for window in windows if window.offset >= offset]
    if not had_it:
        furthest = max(window.offset for window in windows)
        return (
            f"{_counted(len(windows), 'window')} connected, still reading earlier "
            f"messages (at offset {furthest})"
        )
    if any(window.acks == "manual" for window in had_it):
        return f"written to {_counted(len(had_it), 'window')}, none has acked it yet"
    return (
        f"written to {_counted(len(had_it), 'window')}; no page has answered a ping, polled "
        "or sent a packet since"
    )


# --- messages that are no longer in the inbox ------------------------------------------


_WHY_TRIMMED: Final = {
    SyncReason.LIMIT: "the inbox holds no more than BRIDGE_INBOX_MAX_MESSAGES",
    SyncReason.EXPIRED: "it was over BRIDGE_INBOX_MAX_AGE",
    SyncReason.RESET: "the store was reset",
    None: "the store no longer has it",
}


def _add_trimmed(facts: TraceFacts, steps: _Steps) -> Iterator[tuple[Fate, str]]:
    """Add the steps of a message that was stored and is no longer there."""
    stored = [each for each in facts.entries if each.stage is Stage.STORED]
    seen_s = facts.inbox_match.seen_s if facts.inbox_match else None
    if not stored and seen_s is None:
        return
    if not stored:
        text = (
            "stored; only its id is left: publishing it again within "
            "BRIDGE_DEDUPE_WINDOW stores nothing"
        )
        steps.add(seen_s, Stage.STORED, text)
    replaced = [each for each in facts.entries if each.stage is Stage.REPLACED]
    if replaced:
        successor = _position(facts, replaced[0].offset or 0)
        yield Fate.REPLACED, f"replaced: by the message at position {successor}"
        return
    state = facts.inbox.state if facts.inbox else None
    why = _WHY_TRIMMED[state.trimmed_for if state else None]
    offset = stored[-1].offset if stored else None
    if offset is None or state is None:
        ending = "it is not known whether it was delivered first"
    elif offset <= state.delivered:
        ending = f"it was delivered: the mark is at offset {state.delivered}"
    else:
        ending = "it was never delivered"
    verdict = f"trimmed: {why}; {ending}"
    steps.add(None, Stage.TRIMMED, verdict)
    yield Fate.TRIMMED, verdict


# --- the journal's events -----------------------------------------------------------------

_TEXTS: Final = {
    Stage.PUBLISHED: "published",
    Stage.STORED: "stored",
    Stage.DUPLICATE: "received again and not stored: its id was already known",
    Stage.EMITTED: "ephemeral: handed to the windows that were open, and not stored",
    Stage.REPLACED: "replaced by a newer message with its key",
    Stage.DELIVERED: "delivered",
    Stage.EXPIRED: "its deadline passed",
    Stage.RETRIED: "put into a retry queue",
    Stage.DEAD: "became a dead letter",
    Stage.REDRIVEN: "redriven from the dead letters",
    Stage.REPORTED: "reported to workers",
}


def _relevant_entries(
    facts: TraceFacts, kept: Sequence[KeptMessage]
) -> Iterator[JournalEntry]:
    for entry in facts.entries:
        if any(_is_about(entry, letter) for letter in facts.dead):
            continue  # the dead letter itself holds more details
        is_of_several = entry.after is not None
        if is_of_several and not any(_was_written(entry, each) for each in kept):
            continue  # this message was not among them
        if entry.stage is Stage.DELIVERED and not kept and _was_skipped(facts, entry):
            continue  # the mark passed it when the newer message was delivered
        yield entry


def _was_skipped(facts: TraceFacts, delivered: JournalEntry) -> bool:
    """Return whether a newer message replaced this one before any window received it."""
    replaced_s = min(
        (each.at_s for each in facts.entries if each.stage is Stage.REPLACED),
        default=inf,
    )
    return replaced_s < delivered.at_s and not any(
        each.stage is Stage.WRITTEN and each.at_s <= replaced_s
        for each in facts.entries
    )


def _is_about(entry: JournalEntry, letter: StoredDeadLetter) -> bool:
    """Return whether `entry` records the moment in which `letter` became a dead letter."""
    return (
        entry.stage is Stage.DEAD
        and letter.dead_s is not None
        and abs(letter.dead_s - entry.at_s) <= _SAME_S
    )


def _add_entry(facts: TraceFacts, entry: JournalEntry, steps: _Steps) -> None:
    stage = entry.stage
    at_s = entry.at_s
    position = None
    if entry.after is None and entry.offset is not None:
        position = _position(facts, entry.offset)
    if stage is Stage.WRITTEN:
        text = f"written to {_counted(entry.windows or 0, 'window')}"
        text += f" {entry.text}" if entry.text else ""
    else:
        text = _TEXTS[stage]
        if stage is Stage.STORED:
            text += f" at offset {entry.offset}"
            at_s = _stored_s(facts, entry)
        text += f": {entry.text}" if entry.text else ""
    steps.add(
        at_s,
        stage,
        text,
        position,
        windows=entry.windows,
        bridge=entry.bridge,
    )


def _stored_s(facts: TraceFacts, storing: JournalEntry) -> float:
    """
    Return when a message was stored, which is no later than a window received it.

    Windows are fed within the commit, so the journal records their writes first.
    """
    written = (
        each.at_s
        for each in facts.entries
        if each.stage is Stage.WRITTEN and each.offset == storing.offset
    )
    return min([storing.at_s, *written])


def _dead_text(letter: StoredDeadLetter) -> str:
    text = f"in the dead letters, {letter.reason}: {letter.reason.explanation}"
    if letter.error:
        text += f" ({letter.error})"
    if letter.attempts:
        text += f"; {_counted(letter.attempts, 'attempt')}"
    if letter.redrives:
        text += f"; {_counted(letter.redrives, 'redrive')} before"
    return text


# --- the fate -----------------------------------------------------------------------------


# The fate of a message that is in no inbox, by the last event that is known.
_AT_THE_BROKER: Final = "the broker has it, the bridge has not consumed it yet"
_LAST_EVENTS: Final[Mapping[Stage | None, tuple[Fate, str]]] = {
    Stage.RETRIED: (Fate.RETRYING, "retrying: it waits in a retry queue"),
    Stage.PUBLISHED: (Fate.ON_ITS_WAY, f"on its way: {_AT_THE_BROKER}"),
    Stage.REDRIVEN: (Fate.ON_ITS_WAY, f"on its way: redriven, {_AT_THE_BROKER}"),
    Stage.EMITTED: (Fate.EMITTED, f"emitted: {Fate.EMITTED.explanation}"),
    Stage.EXPIRED: (Fate.EXPIRED, "expired: its deadline passed before it was stored"),
}


# Fates that are final although the message is in no inbox: no queue holds it any more.
_CONSUMED: Final = frozenset({Fate.EXPIRED, Fate.TRIMMED, Fate.REPLACED, Fate.EMITTED})


def _ending(facts: TraceFacts, endings: Sequence[tuple[Fate, str]]) -> tuple[Fate, str]:
    if endings and endings[-1][0] is not Fate.TRIMMED:
        return endings[-1]
    if facts.dead:
        return Fate.DEAD, f"dead: {_dead_text(facts.dead[-1])}"
    last = facts.entries[-1].stage if facts.entries else None
    if last in _LAST_EVENTS:
        return _LAST_EVENTS[last]
    if last is Stage.DEAD:
        gone = ", and is not in the dead letters any more"
        return (
            Fate.DEAD,
            "dead: it became a dead letter" + gone * facts.is_dead_complete,
        )
    if endings:
        return endings[-1]
    return Fate.UNKNOWN, "unknown: no source has this id"


def _gaps(facts: TraceFacts, fate: Fate) -> Iterator[str]:
    stages = {each.stage for each in facts.entries}
    kept = facts.inbox_match.kept if facts.inbox_match else ()
    starts = [message.taken_s for message in kept]
    starts += [each.at_s for each in facts.entries[:1]]
    if not starts or min(starts) < facts.journal_begins_s:
        yield (
            "earlier retries, duplicates and windows, because the journal is in memory and "
            "may begin later than this message"
        )
    if Stage.PUBLISHED not in stages:
        yield (
            "when the producer published it, because over AMQP bridge first sees a message "
            "when it consumes it"
        )
    if not kept and not facts.dead and fate not in _CONSUMED:
        yield (
            "whether it waits in the inbound or a retry queue, because messages there cannot "
            "be looked up by their id"
        )


def _position(facts: TraceFacts, offset: int) -> str | None:
    if facts.inbox is None:
        return None
    return str(Position(user_epoch(facts.inbox.state.epoch, facts.user), offset))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
