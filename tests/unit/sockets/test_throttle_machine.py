"""Pages that come, go, read slowly and reconnect while some keys are throttled."""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from bridge.core.message import Stored
from bridge.core.message_options import MessageOptions
from bridge.core.position import Position, parse_position
from bridge.core.replay import InboxState, ReplayPlan, plan_replay
from bridge.sockets.window import Window
from tests.unit.sockets.rooms_fakes import RoomsFixture, frames, session_of, stored

_EPOCH = "e"


class _Page:
    """What one page has received, also over several connections."""

    def __init__(self) -> None:
        self.window: Window | None = None
        self.read = 0  # frames of its window
        self.late: Sequence[Stored] | None = None  # its window fell behind with these
        self.got: list[int] = []
        self.got_by_window: set[int] = set()
        self.position = Position(_EPOCH, 0)

    def receive(self, offset: int, position: Position) -> None:
        """Receive a message, once on each connection."""
        assert offset not in self.got_by_window
        self.got_by_window.add(offset)
        self.got.append(offset)
        self.position = position

    def read_frames(self) -> None:
        """Receive what was written to its window."""
        if self.window is not None:
            for packet in frames(self.window)[self.read :]:
                _, number, position = packet.decode().removeprefix("42[").split(",")
                self.receive(int(number), parse_position(position[1:-2]))
            self.read = len(frames(self.window))


class _Fixture(RoomsFixture):
    """Rooms whose windows fall behind with what was held back from them."""

    def __init__(self, pages: Sequence[_Page]) -> None:
        super().__init__()
        self._pages = pages

    def _catch_up(self, window: Window, late: Sequence[Stored]) -> None:
        (page,) = (each for each in self._pages if each.window is window)
        page.late = late


class ThrottleMachine(RuleBasedStateMachine):
    """An inbox, the live feed that may lose messages, and two pages."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = [_Page(), _Page()]
        self.fixture = _Fixture(self.pages)
        self.inbox: dict[int, Stored] = {}
        self.unfed: list[Stored] = []
        self.keys: dict[int, str | None] = {}  # of every offset

    @rule(
        messages=st.lists(
            st.tuples(
                st.sampled_from([None, "a", "b"]),
                st.sampled_from([None, 1.0, 5.0, 5.0, 5.0]),
            ),
            min_size=1,
            max_size=4,
        ),
        feed=st.sampled_from(["now"] * 6 + ["later", "lost"]),
    )
    def publish(
        self, messages: list[tuple[str | None, float | None]], *, feed: str
    ) -> None:
        """Store some messages; the feed brings them as one batch, or loses them."""
        batch = []
        for key, throttle_s in messages:
            offset = len(self.keys) + 1
            options = MessageOptions(key=key, throttle_s=throttle_s) if key else None
            self.keys[offset] = key
            if key is not None:
                for old in [o for o in self.inbox if self.keys[o] == key]:
                    del self.inbox[old]
            self.inbox[offset] = stored("ann", offset, options=options)
            batch.append(self.inbox[offset])
        if feed == "later":
            self.unfed += batch
            return
        if self.unfed:
            self.fixture.rooms.emit(self.unfed)
            self.unfed = []
        if feed == "now":
            self.fixture.rooms.emit(batch)

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.0]))
    def pass_time(self, seconds: float) -> None:
        """Let some time pass."""
        self.fixture.timers.pass_until(self.fixture.timers.now_s + seconds)

    @rule(number=st.integers(0, 1), polls=st.booleans())
    def connect(self, number: int, *, polls: bool) -> None:
        """Connect a page with its last position."""
        page = self.pages[number]
        if page.window is not None:
            return
        state = InboxState(_EPOCH, 1, len(self.keys), delivered=0, sparse_after=0)
        plan = plan_replay(page.position, state)
        assert plan.is_complete
        page.window = self.fixture.window(
            "ann", offset=plan.after, is_open=False, polls=polls
        )
        page.read = 0
        page.got_by_window.clear()
        self._replay(page, page.window, plan)

    @rule(number=st.integers(0, 1), is_full=st.booleans())
    def fill(self, number: int, *, is_full: bool) -> None:
        """Let a page stop to read, or read again."""
        window = self.pages[number].window
        if window is not None:
            session_of(window).is_full = is_full

    @rule(number=st.integers(0, 1))
    def catch_up(self, number: int) -> None:
        """Let a window that fell behind read what it lacks."""
        page = self.pages[number]
        if page.window is None or page.late is None:
            return
        page.read_frames()
        for each in page.late:
            page.receive(int(each.message.data), Position(_EPOCH, each.offset))
            page.window.advance(each.offset)
        page.late = None
        self._replay(page, page.window, ReplayPlan(page.window.offset))

    def _replay(self, page: _Page, window: Window, plan: ReplayPlan) -> None:
        for offset in sorted(self.inbox):
            if offset > window.offset and plan.lacks(offset):
                page.receive(offset, plan.position(_EPOCH, offset))
        window.advance(len(self.keys))
        assert self.fixture.rooms.open_gate(window)

    @rule(number=st.integers(0, 1))
    def disconnect(self, number: int) -> None:
        """Close a window; the page has received everything that was written to it."""
        page = self.pages[number]
        if page.window is not None:
            page.read_frames()
            received = self.fixture.rooms.received(page.window)
            lacking = {o for o in self.inbox if o <= received} - set(page.got)
            assert not lacking, "it would count as delivered"
            self.fixture.rooms.leave(page.window)
            page.window = page.late = None

    @rule(number=st.integers(0, 1), polls=st.booleans())
    def reconnect(self, number: int, *, polls: bool) -> None:
        """Lose the connection of a page, and connect it again."""
        self.disconnect(number)
        self.connect(number, polls=polls)

    def teardown(self) -> None:
        """Let all pages read everything: they lack nothing and have nothing twice."""
        for number in range(2):
            self.fill(number, is_full=False)
            self.connect(number, polls=False)
        self.publish([(None, None)], feed="now")
        self.pass_time(10.0)
        for number, page in enumerate(self.pages):
            self.catch_up(number)
            page.read_frames()
            plain = [offset for offset in page.got if self.keys[offset] is None]
            assert plain == [o for o, key in self.keys.items() if key is None]
            for wanted in ("a", "b"):
                got = [offset for offset in page.got if self.keys[offset] == wanted]
                newest = [o for o, key in self.keys.items() if key == wanted][-1:]
                assert got == sorted(got)
                assert got[-1:] == newest


TestThrottleMachine = ThrottleMachine.TestCase
TestThrottleMachine.settings = settings(max_examples=100, stateful_step_count=30)
