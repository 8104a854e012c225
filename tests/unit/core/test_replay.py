"""Replay plans: no gap, no repetition, and an exact count of missed messages."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.position import Position
from bridge.core.replay import InboxState, ReplayPlan, plan_replay
from bridge.enums import SyncReason

EPOCH = "now"


@st.composite
def states(draw: st.DrawFn) -> InboxState:
    """Draw any possible state of an inbox."""
    last = draw(st.integers(0, 50))
    first = draw(st.integers(1, last + 1))
    return InboxState(
        epoch=EPOCH,
        first=first,
        last=last,
        delivered=draw(st.integers(0, last)),
        trimmed_for=draw(st.sampled_from([SyncReason.LIMIT, SyncReason.EXPIRED]))
        if first > 1
        else None,
    )


@given(states(), st.data())
def test_a_window_receives_what_is_kept_and_the_count_of_what_is_gone(
    state: InboxState, data: st.DataObject
) -> None:
    """Replayed and missed messages together are all messages above its position."""
    offset = data.draw(st.integers(0, state.last))

    plan = plan_replay(Position(EPOCH, offset), state)

    owed = set(range(offset + 1, state.last + 1))
    kept = set(range(state.first, state.last + 1))
    replayed = set(range(plan.after + 1, state.last + 1))
    assert replayed == owed & kept
    assert plan.missed == len(owed - kept)
    assert plan.is_complete == (not owed - kept)
    assert (plan.reason is None) == plan.is_complete


@given(states())
def test_a_new_window_starts_at_the_delivered_mark(state: InboxState) -> None:
    """It receives what its user has not received in any window."""
    plan = plan_replay(None, state)
    with_position = plan_replay(Position(EPOCH, state.delivered), state)

    assert replace(plan, is_start_known=True) == with_position


@given(states())
def test_only_a_window_with_a_position_is_known_to_have_missed_nothing(
    state: InboxState,
) -> None:
    """Without one, an old client may have lost what was written to it before the cut."""
    plan = plan_replay(None, state)

    assert plan.is_complete == (plan.reason is None and plan.after == 0)
    assert plan_replay(Position(EPOCH, state.last), state).is_complete


def test_a_window_does_not_receive_again_what_overtook_a_late_message() -> None:
    """Its position names the messages that it lacks."""
    state = InboxState(EPOCH, first=1, last=9, delivered=0)

    plan = plan_replay(Position.with_late(EPOCH, 7, [3, 5]), state)

    assert plan.after == 2
    assert [n for n in range(3, 10) if plan.lacks(n)] == [3, 5, 8, 9]
    positions = [str(plan.position("e", offset)) for offset in (3, 5, 8)]
    assert positions == ["e-7-2", "e-7", "e-8"]
    assert plan.is_complete
    plain = plan_replay(Position(EPOCH, 7), state)
    assert [n for n in range(8, 10) if plain.lacks(n)] == [8, 9]


def test_a_late_message_that_was_deleted_is_missed() -> None:
    """It was not replaced, or the inbox would begin elsewhere."""
    state = InboxState(EPOCH, first=5, last=9, delivered=0)

    plan = plan_replay(Position.with_late(EPOCH, 7, [3]), state)

    assert (plan.after, plan.missed, plan.reason) == (4, 2, SyncReason.LIMIT)
    assert [n for n in range(5, 10) if plan.lacks(n)] == [8, 9]


def test_a_position_whose_newest_message_is_not_stored_is_a_reset() -> None:
    """The store was restored; new messages must not count as received."""
    state = InboxState(EPOCH, first=1, last=9, delivered=0)

    plan = plan_replay(Position.with_late(EPOCH, 10, [3]), state)

    assert plan.reason is SyncReason.RESET
    assert all(plan.lacks(n) for n in range(1, 10))


@given(states(), st.integers(1, 100))
def test_a_position_of_another_epoch_or_above_the_newest_offset_is_a_reset(
    state: InboxState, ahead: int
) -> None:
    """The store was lost or restored: the number of missed messages is unknown."""
    other_epoch = plan_replay(Position("then", state.delivered), state)
    above_the_newest = plan_replay(Position(EPOCH, state.last + ahead), state)

    assert other_epoch == above_the_newest
    assert other_epoch.missed is None
    assert other_epoch.reason is SyncReason.RESET
    assert not other_epoch.is_complete
    assert other_epoch.after >= state.first - 1
    assert other_epoch.after >= state.delivered


@pytest.mark.parametrize(
    ("trimmed_for", "reason"),
    [(SyncReason.EXPIRED, SyncReason.EXPIRED), (None, SyncReason.LIMIT)],
)
def test_the_reason_is_that_of_the_store_if_it_has_one(
    trimmed_for: SyncReason | None, reason: SyncReason
) -> None:
    """Developers decide by the reason whether a larger inbox would help."""
    state = InboxState(EPOCH, first=5, last=9, delivered=0, trimmed_for=trimmed_for)

    plan = plan_replay(Position(EPOCH, 2), state)

    assert plan == ReplayPlan(after=4, missed=2, reason=reason)
