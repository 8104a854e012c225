"""Where a replay starts: without a hole, without a repeat, and honest about what is gone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.position import Position
from bridge.core.replay import InboxState, ReplayPlan, plan_replay
from bridge.enums import SyncReason

EPOCH = "now"


@st.composite
def states(draw: st.DrawFn) -> InboxState:
    """Draw any inbox that a store can be in."""
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
def test_a_known_window_gets_what_is_kept_and_hears_of_what_is_gone(
    state: InboxState, data: st.DataObject
) -> None:
    """Got + told as missed = everything behind its place: no hole and no repeat."""
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
def test_a_fresh_page_starts_at_the_delivered_mark(state: InboxState) -> None:
    """It gets what its user has not had on any window."""
    plan = plan_replay(None, state)

    assert plan == plan_replay(Position(EPOCH, state.delivered), state)


@given(states(), st.integers(1, 100))
def test_a_position_that_cannot_be_ours_starts_over_and_says_reset(
    state: InboxState, ahead: int
) -> None:
    """The store was lost or put back: what lies between, nobody knows."""
    elsewhere = plan_replay(Position("then", state.delivered), state)
    from_the_future = plan_replay(Position(EPOCH, state.last + ahead), state)

    assert elsewhere == from_the_future
    assert elsewhere.missed is None
    assert elsewhere.reason is SyncReason.RESET
    assert not elsewhere.is_complete
    assert elsewhere.after >= state.first - 1
    assert elsewhere.after >= state.delivered


@pytest.mark.parametrize(
    ("trimmed_for", "reason"),
    [(SyncReason.EXPIRED, SyncReason.EXPIRED), (None, SyncReason.LIMIT)],
)
def test_the_reason_is_the_stores_own_if_it_has_one(
    trimmed_for: SyncReason | None, reason: SyncReason
) -> None:
    """The page's author decides by it whether a larger inbox would help."""
    state = InboxState(EPOCH, first=5, last=9, delivered=0, trimmed_for=trimmed_for)

    plan = plan_replay(Position(EPOCH, 2), state)

    assert plan == ReplayPlan(after=4, missed=2, reason=reason)
