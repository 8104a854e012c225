"""
The story of one message, told from what is there, and what nobody can say.

The inbox knows where a message stands, the delivered mark how far the user has come, the
journal what happened lately, the broker what was set aside. None knows all; what a source
cannot say is said as plainly as what it can.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from bridge.core.admin_views import InboxMatch, InboxSummary, KeptMessage
from bridge.core.journal import JournalEntry
from bridge.core.position import Position, user_epoch
from bridge.enums import Fate, Stage, SyncReason

# The time in a dead letter's header has whole seconds.
_SAME_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class DeadFact:
    """
    A dead letter with the message's id, as it lies in the queue.

    Attributes:
        at_s: When it was set aside; ``None`` if it does not say so.
        user: Whose it would have been.
        reason: Why, in a word.
        explanation: The same in a sentence.
        error: What exactly was wrong; may be empty.
        attempts: How often the bridge tried; 0 = not known.
        redrives: How often it was redriven before.

    """

    at_s: float | None
    user: str
    reason: str
    explanation: str
    error: str
    attempts: int
    redrives: int


@dataclass(frozen=True, slots=True)
class WindowFact:
    """A window of the user: what it has been given, and whether it acks."""

    offset: int
    has_manual_acks: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """
    All that is known of a message of one user.

    Attributes:
        user: Whose.
        inbox: The user's inbox; ``None`` if there never was a message.
        sighting: What the inbox knows of the id.
        happenings: What the journal holds, in order.
        dead: What was found in the dead letters.
        is_dead_complete: Whether all of them were looked at.
        windows: The user's windows now.
        last_connect_s: When the user's last window came; ``None`` = not known.
        journal_begins_s: Since when the journal knows everything.
        now_s: Unix time.
        silent: What could not be asked, or not in full, as sentences.

    """

    user: str
    inbox: InboxSummary | None
    sighting: InboxMatch | None
    happenings: Sequence[JournalEntry]
    dead: Sequence[DeadFact]
    is_dead_complete: bool
    windows: Sequence[WindowFact]
    last_connect_s: float | None
    journal_begins_s: float
    now_s: float
    silent: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """
    One step of a story.

    Attributes:
        at_s: Unix time; ``None`` if nobody knows.
        stage: What it is.
        text: The same for a person, with the particulars.
        position: The place in the inbox, as pages see it.
        windows: How many windows it was written to.
        bridge: Who remembers it; empty if it stands in the inbox or with the broker.

    """

    at_s: float | None
    stage: Stage
    text: str
    position: str | None = None
    windows: int | None = None
    bridge: str = ""


@dataclass(frozen=True, slots=True)
class Story:
    """What became of a message: steps in order, the end of it, what nobody knows."""

    steps: Sequence[Step]
    fate: Fate
    verdict: str
    silent: Sequence[str]


@dataclass(slots=True)
class _Draft:
    steps: list[tuple[float, Step]] = field(default_factory=list)

    def add(self, step: Step, *, after_s: float = inf) -> None:
        """Put in a step; one without a time stands behind `after_s`."""
        self.steps.append((after_s if step.at_s is None else step.at_s, step))

    def in_order(self) -> list[Step]:
        order = list(Stage)
        self.steps.sort(key=lambda each: (each[0], order.index(each[1].stage)))
        return [step for _, step in self.steps]


def tell_story(facts: Facts) -> Story:
    """Put what is known into order and say how it ends."""
    draft = _Draft()
    kept = facts.sighting.kept if facts.sighting else ()
    endings = [_tell_kept(facts, message, draft) for message in kept]
    for happening in _worth_telling(facts, kept):
        draft.add(_step_of(facts, happening))
    if not kept:
        endings += _tell_gone(facts, draft)
    for dead in facts.dead:
        noted = [each.at_s for each in facts.happenings if _is_of(each, dead)]
        at_s = noted[0] if noted else dead.at_s
        draft.add(Step(at_s, Stage.DEAD, _dead_text(dead)))
    fate, verdict = _ending(facts, endings)
    return Story(draft.in_order(), fate, verdict, [*facts.silent, *_silent(facts)])


# --- what is kept -------------------------------------------------------------------------


def _tell_kept(facts: Facts, message: KeptMessage, draft: _Draft) -> tuple[Fate, str]:
    position = _position(facts, message.offset)
    draft.add(Step(message.taken_s, Stage.TAKEN, "taken from the broker", position))
    known = {
        each.stage: each.at_s
        for each in facts.happenings
        if each.offset == message.offset or _was_written(each, message)
    }
    if Stage.STORED not in known:
        text = f"stored at offset {message.offset}"
        draft.add(Step(None, Stage.STORED, text, position), after_s=message.taken_s)
    fate, verdict = _end_of_kept(facts, message, known)
    if Stage(fate) not in known:
        at_s = message.deadline_s if fate is Fate.EXPIRED else None
        draft.add(Step(at_s, Stage(fate), verdict, position))
    return fate, verdict


def _was_written(happening: JournalEntry, message: KeptMessage) -> bool:
    """Whether what happened to several at once happened to `message` too."""
    if happening.after is None:
        return False
    # Those whose time was over were left out.
    return message.deadline_s is None or happening.at_s < message.deadline_s


def _end_of_kept(
    facts: Facts, message: KeptMessage, known: Mapping[Stage, float]
) -> tuple[Fate, str]:
    assert facts.inbox is not None  # noqa: S101 - it holds the message
    mark = facts.inbox.state.delivered
    is_over = message.deadline_s is not None and message.deadline_s <= facts.now_s
    if message.offset > mark and not is_over:
        return Fate.WAITING, f"waiting: {_why_waiting(facts, message.offset)}"
    if message.offset > mark or Stage.EXPIRED in known:
        return Fate.EXPIRED, "expired: its time was over before a window had it"
    if is_over and not known.keys() & {Stage.WRITTEN, Stage.DELIVERED}:
        return Fate.DELIVERED, (
            f"delivered, or left out because its time was over: the mark is at offset "
            f"{mark}, and which came first nobody knows"
        )
    verdict = f"delivered: the user has had everything up to offset {mark}"
    return Fate.DELIVERED, verdict


def _why_waiting(facts: Facts, offset: int) -> str:
    windows = facts.windows
    if not windows:
        if facts.last_connect_s is None:
            return "no window of the user has connected since the journal begins"
        return "no window of the user is connected"
    had_it = [window for window in windows if window.offset >= offset]
    if not had_it:
        furthest = max(window.offset for window in windows)
        return (
            f"{_counted(len(windows), 'window')} connected, still reading what was "
            f"before it (at offset {furthest})"
        )
    if any(window.has_manual_acks for window in had_it):
        return f"written to {_counted(len(had_it), 'window')}, none has acked it yet"
    return f"{_counted(len(had_it), 'window')} polls for it and has yet to fetch it"


# --- what is not kept any more ------------------------------------------------------------


_WHY_TRIMMED: Final = {
    SyncReason.LIMIT: "the inbox holds no more than BRIDGE_INBOX_MAX_MESSAGES",
    SyncReason.EXPIRED: "it was over BRIDGE_INBOX_MAX_AGE",
    SyncReason.RESET: "the store was begun anew",
    None: "the store has forgotten it",
}


def _tell_gone(facts: Facts, draft: _Draft) -> Iterator[tuple[Fate, str]]:
    """Tell of a message that was stored and is not there now."""
    stored = [each for each in facts.happenings if each.stage is Stage.STORED]
    seen_s = facts.sighting.seen_s if facts.sighting else None
    if not stored and seen_s is None:
        return
    if not stored:
        text = (
            "stored; only its id is still remembered: publishing it again within "
            "BRIDGE_DEDUPE_WINDOW stores nothing"
        )
        draft.add(Step(seen_s, Stage.STORED, text))
    state = facts.inbox.state if facts.inbox else None
    why = _WHY_TRIMMED[state.trimmed_for if state else None]
    offset = stored[-1].offset if stored else None
    if offset is None or state is None:
        ending = "whether it was delivered first, nobody knows"
    elif offset <= state.delivered:
        ending = f"it was delivered: the mark is at offset {state.delivered}"
    else:
        ending = "it was never delivered"
    verdict = f"trimmed: {why}; {ending}"
    draft.add(Step(None, Stage.TRIMMED, verdict))
    yield Fate.TRIMMED, verdict


# --- what happened ------------------------------------------------------------------------

_TEXTS: Final = {
    Stage.PUBLISHED: "published",
    Stage.STORED: "stored",
    Stage.DUPLICATE: "came again and was stored nowhere: its id was had already",
    Stage.DELIVERED: "delivered",
    Stage.EXPIRED: "its time was over",
    Stage.RETRIED: "put into a retry queue",
    Stage.DEAD: "set aside as a dead letter",
    Stage.REDRIVEN: "redriven from the dead letters",
}


def _worth_telling(facts: Facts, kept: Sequence[KeptMessage]) -> Iterator[JournalEntry]:
    for happening in facts.happenings:
        if any(_is_of(happening, dead) for dead in facts.dead):
            continue  # the letter itself says more
        is_of_several = happening.after is not None
        if is_of_several and not any(_was_written(happening, each) for each in kept):
            continue  # to others, not to this one
        yield happening


def _is_of(happening: JournalEntry, dead: DeadFact) -> bool:
    """Whether it is the setting aside of this letter, to the fraction of a second."""
    return (
        happening.stage is Stage.DEAD
        and dead.at_s is not None
        and abs(dead.at_s - happening.at_s) <= _SAME_S
    )


def _step_of(facts: Facts, happening: JournalEntry) -> Step:
    stage = happening.stage
    position = None
    if happening.after is None and happening.offset is not None:
        position = _position(facts, happening.offset)
    if stage is Stage.WRITTEN:
        text = f"written to {_counted(happening.windows or 0, 'window')}"
        text += f" {happening.text}" if happening.text else ""
    else:
        text = _TEXTS[stage]
        if stage is Stage.STORED:
            text += f" at offset {happening.offset}"
        text += f": {happening.text}" if happening.text else ""
    at_s = _stored_s(facts, happening) if stage is Stage.STORED else happening.at_s
    return Step(at_s, stage, text, position, happening.windows, happening.bridge)


def _stored_s(facts: Facts, storing: JournalEntry) -> float:
    """
    Return when a message was stored: at the latest when a window had it.

    Windows are fed in the moment of the commit, and the journal hears of them first.
    """
    written = (
        each.at_s
        for each in facts.happenings
        if each.stage is Stage.WRITTEN and each.offset == storing.offset
    )
    return min([storing.at_s, *written])


def _dead_text(dead: DeadFact) -> str:
    text = f"in the dead letters, {dead.reason}: {dead.explanation}"
    if dead.error:
        text += f" ({dead.error})"
    if dead.attempts:
        text += f"; {_counted(dead.attempts, 'attempt')}"
    if dead.redrives:
        text += f"; {_counted(dead.redrives, 'redrive')} before"
    return text


# --- the end ------------------------------------------------------------------------------


# What it means if nothing came after.
_WITH_THE_BROKER: Final = "the broker has it, the bridge has not taken it yet"
_LAST_WORDS: Final[Mapping[Stage | None, tuple[Fate, str]]] = {
    Stage.RETRIED: (Fate.RETRYING, "retrying: it waits in a retry queue"),
    Stage.PUBLISHED: (Fate.ON_ITS_WAY, f"on its way: {_WITH_THE_BROKER}"),
    Stage.REDRIVEN: (Fate.ON_ITS_WAY, f"on its way: redriven, {_WITH_THE_BROKER}"),
    Stage.EXPIRED: (Fate.EXPIRED, "expired: its time was over before it was stored"),
}


def _ending(facts: Facts, endings: Sequence[tuple[Fate, str]]) -> tuple[Fate, str]:
    if endings and endings[-1][0] is not Fate.TRIMMED:
        return endings[-1]
    if facts.dead:
        return Fate.DEAD, f"dead: {_dead_text(facts.dead[-1])}"
    last = facts.happenings[-1].stage if facts.happenings else None
    if last in _LAST_WORDS:
        return _LAST_WORDS[last]
    if last is Stage.DEAD:
        gone = ", and is not in the dead letters any more"
        return Fate.DEAD, "dead: it was set aside" + gone * facts.is_dead_complete
    if endings:
        return endings[-1]
    return Fate.UNKNOWN, "unknown: no trace of this id is left"


def _silent(facts: Facts) -> Iterator[str]:
    """Say what nobody can know."""
    stages = {each.stage for each in facts.happenings}
    kept = facts.sighting.kept if facts.sighting else ()
    starts = [message.taken_s for message in kept]
    starts += [each.at_s for each in facts.happenings[:1]]
    if not starts or min(starts) < facts.journal_begins_s:
        yield (
            "the journal is in memory and begins later than this message may have come: "
            "retries, duplicates and windows from before that are not known"
        )
    if Stage.PUBLISHED not in stages:
        yield (
            "when a worker published it is not known: over AMQP the bridge sees a "
            "message only when it takes it"
        )
    if not kept and not facts.dead:
        yield (
            "messages that wait in the inbound or a retry queue cannot be looked up by "
            "their id"
        )


def _position(facts: Facts, offset: int) -> str | None:
    if facts.inbox is None:
        return None
    return str(Position(user_epoch(facts.inbox.state.epoch, facts.user), offset))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
