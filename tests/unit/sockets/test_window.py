"""A window: until when it may stay, and when it is warned."""

import pytest

from bridge.clock import real_time
from bridge.core.identity import Identity
from bridge.sockets.window import Window
from tests.unit.sockets.rooms_fakes import RoomsFixture, stored


@pytest.fixture
def fixture() -> RoomsFixture:
    """Rooms without windows."""
    return RoomsFixture()


@pytest.mark.parametrize(
    ("expires_s", "warning_s"),
    [(None, 60), (1000 + 3600, 60), (1000 + 120, 60), (1000 + 20, 10), (990, -5)],
)
def test_a_window_is_warned_a_minute_before_expiry_or_at_half_of_a_short_life(
    expires_s: float | None, warning_s: float
) -> None:
    """Even with a token that lives for seconds there is time to get a new one."""
    window = Window(
        "sid",
        None,  # type: ignore[arg-type] # not used here
        Identity("alice", expires_s),
        epoch="e",
        offset=0,
        delivered=0,
        has_manual_acks=False,
        connected_s=1000,
    )

    assert window.warning_s == warning_s
    assert window.user == "alice"


def test_a_renewed_window_is_warned_again() -> None:
    """Before the new token expires."""
    window = Window(
        "sid",
        None,  # type: ignore[arg-type] # not used here
        Identity("alice", 1060),
        epoch="e",
        offset=0,
        delivered=0,
        has_manual_acks=True,
        connected_s=1000,
    )
    window.is_warned = True

    window.renew(Identity("alice", 5000), now_s=1050)

    assert not window.is_warned
    assert window.expires_real_s == pytest.approx(real_time() + 3950, abs=60)
    assert window.identity.expires_s == 5000
    assert window.has_manual_acks


def test_a_message_counts_as_delivered_once(fixture: RoomsFixture) -> None:
    """Each of a user's windows answers pings, and most pings bring nothing new."""
    window = fixture.window("alice", offset=4)

    assert window.deliver(4)
    assert not window.deliver(4)
    assert not window.deliver(3)
    assert not fixture.window("alice", offset=4, manual=True).deliver(4)


def test_a_pong_covers_what_was_written_before_its_ping(fixture: RoomsFixture) -> None:
    """Later messages may be under way while the page is discarded."""
    window = fixture.window("alice")
    assert window.take_pinged() is None
    fixture.rooms.emit([stored("alice", 1)])
    window.note_ping(fixture.rooms.received(window))
    fixture.rooms.emit([stored("alice", 2)])

    assert window.take_pinged() == 1
    assert window.take_pinged() is None
