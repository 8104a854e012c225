"""Random sequences of operations: each store behaves like a simple model."""

import asyncio
import shutil
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bridge.clock import SteadyClock
from bridge.core.clock_reading import ClockReading
from bridge.core.message import Message, Stored
from bridge.core.message_options import MessageOptions, Tracking
from bridge.core.position import Position
from bridge.core.replay import InboxState, count_gone, plan_replay
from bridge.enums import SyncReason
from bridge.inbox.contract import REFUSED, Retention
from bridge.inbox.memory.store import MemoryInbox
from tests.contract.inbox.conftest import STORES, Inbox
from tests.contract.inbox.receipt_model import ReceiptModel

T = TypeVar("T")

RETENTION = Retention(max_messages=12, max_age_s=100, dedupe_s=20, max_retained=2)
USERS = ("alice", "bob", "carol")
# Whether a receipt is wanted, and the time after which the message is undelivered.
Asked = tuple[bool, float | None] | None


@dataclass
class ModelInbox:
    """One user's inbox in the model; the message with offset 1 comes first."""

    messages: list[Message] = field(default_factory=list)
    first: int = 1
    delivered: int = 0
    seen_s: dict[str, float] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    forgotten: int = 0
    forgotten_last: int = 0  # the newest offset that was ever forgotten
    sparse_after: int | None = None
    replaced: set[int] = field(default_factory=set)
    keys: dict[str, int] = field(default_factory=dict)
    retained: set[str] = field(default_factory=set)

    @property
    def last(self) -> int:
        """The newest offset."""
        return self.forgotten + len(self.messages)

    def at(self, offset: int) -> Message:
        """Return the message with this offset."""
        return self.messages[offset - self.forgotten - 1]

    @property
    def live(self) -> list[int]:
        """The offsets of the kept messages."""
        return [
            offset
            for offset in range(self.first, self.last + 1)
            if offset not in self.replaced
        ]

    def store(self, message: Message) -> None:
        """Add the newest message, in place of an older one with its key."""
        self.messages.append(message)
        if message.options is not None and message.options.key is not None:
            if self.sparse_after is None:
                self.sparse_after = self.last - 1
            key = message.options.key
            if key in self.keys:
                self.replaced.add(self.keys[key])
            self.keys[key] = self.last
            if message.options.is_retained:
                self.retained.add(key)
            elif message.options.is_cleared:
                self.retained.discard(key)

    def may_store(self, message: Message) -> bool:
        """Return whether `message` does not retain one key too many."""
        options = message.options
        return (
            options is None
            or not options.is_retained
            or options.key in self.retained
            or len(self.retained) < RETENTION.max_retained
        )

    def retained_messages(self, now_s: float) -> list[Stored]:
        """Return the newest message of each retained key, without expired ones."""
        offsets = sorted(self.keys[key] for key in self.retained)
        found = [Stored(self.at(offset), offset) for offset in offsets]
        now = ClockReading(now_s)
        return [each for each in found if not each.message.is_expired(now)]

    def drop_expired(self, now_s: float) -> None:
        """Retain no key whose message has expired."""
        left = {each.offset for each in self.retained_messages(now_s)}
        self.retained = {key for key in self.retained if self.keys[key] in left}

    def without_holes(self, first: int) -> int:
        """
        Return `first`, or a lower offset if only replaced messages are between them.

        A message that was too old when it was replaced may count as either.
        """
        while first - 1 in self.replaced:
            first -= 1
        return first

    def is_idle(self, now_s: float) -> bool:
        """Return whether a store may forget it, if it has no windows."""
        oldest_s = now_s - RETENTION.dedupe_s
        return (
            bool(self.messages)
            and not self.live
            and not self.retained
            and all(seen_s < oldest_s for seen_s in self.seen_s.values())
        )

    def trim(self, now_s: float) -> None:
        """Move `first` past messages that are over the limit or too old."""
        live = self.live
        oldest_s = now_s - RETENTION.max_age_s
        while live and (
            len(live) > RETENTION.max_messages or self.at(live[0]).taken_s < oldest_s
        ):
            self.first = live.pop(0) + 1


def facts(stored: Iterable[Stored]) -> list[tuple[int, Message]]:
    """Return offsets and messages without their keys, which pages do not receive."""
    return [(each.offset, replace(each.message, options=None)) for each in stored]


def of_user(user: str, feed: Iterable[Stored]) -> list[tuple[int, Message]]:
    return facts(stored for stored in feed if stored.message.user == user)


class StoreMachine(RuleBasedStateMachine):
    """A store and its model, with the same operations applied to both."""

    store: str

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.temporary = TemporaryDirectory()
        self.folder = Path(self.temporary.name) / "0"
        self.now_s = 1000.0
        self.logs = {user: ModelInbox() for user in USERS}
        self.followed: set[str] = set()
        self.fed: list[Stored] = []
        self.announced: list[Message] = []
        self.expected_feed: list[Stored] = []
        self.copies = 0
        self.receipts = ReceiptModel()
        self.steps = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the loop of this machine."""
        return self.runner.run(work)

    @initialize()
    def begin(self) -> None:
        """Open an empty store."""
        self.folder.mkdir()
        self.open()
        self.epoch = self.run(self.inbox.state("unknown")).epoch

    def open(self) -> None:
        """Open the store in the folder."""
        self.inbox: Inbox = STORES[self.store](
            RETENTION,
            clock=SteadyClock(wall=lambda: self.now_s, real=lambda: self.now_s),
            folder=self.folder,
        )
        self.inbox.subscribe(self.fed.extend, on_announced=self.announced.extend)
        self.run(self.inbox.open())
        for user in self.followed:
            self.run(self.inbox.follow(user))

    # --- operations

    @rule(
        batch=st.lists(
            st.tuples(
                st.sampled_from(USERS),
                st.sampled_from((None, None, "a", "b", "c")),
                st.sampled_from((None, None, 5, 50)),
                st.sampled_from((None, None, None, "k", "l", "m")),
                st.sampled_from(("", "", "retain", "retain", "clear")),
                st.sampled_from(
                    (None, None, (True, None), (True, 30.0), (False, 30.0))
                ),
            ),
            max_size=8,
        )
    )
    def append(
        self,
        batch: list[tuple[str, str | None, int | None, str | None, str, Asked]],
    ) -> None:
        """
        Append a batch, with repeated ids, with deadlines, and with keys except for alice.

        Some keys are retained or cleared, and some messages are tracked.
        """
        messages: list[Message] = []
        expected: list[int | None] = []
        for user, message_id, ttl_s, key, mode, asked in batch:
            log = self.logs[user]
            data = f"{user}-{self.now_s}-{len(messages)}".encode()
            deadline_s = None if ttl_s is None else self.now_s + ttl_s
            message = Message(user, "message", data, self.now_s, message_id, deadline_s)
            has_key = key is not None and user != "alice"
            seen_s = log.seen_s.get(message_id or "")
            is_seen = seen_s is not None and self.now_s - seen_s <= RETENTION.dedupe_s
            name = f"{self.steps} {user} {len(messages)}"
            if is_seen:
                name = log.names[message_id or ""]
            # A duplicate of a message without receipt would change what is told.
            tracking = asked and Tracking(
                asked[0] or message_id is not None,
                correlation_id=name,
                undelivered_after_s=asked[1],
            )
            if has_key or tracking:
                message.options = MessageOptions(
                    key=key if has_key else None,
                    is_retained=has_key and mode == "retain",
                    is_cleared=has_key and mode == "clear",
                    tracking=tracking,
                )
            messages.append(message)
            if is_seen:
                expected.append(None)
                continue
            if not log.may_store(message):
                expected.append(REFUSED)
                continue
            if message_id is not None:
                log.seen_s[message_id] = self.now_s
                log.names[message_id] = name
            log.store(message)
            self.receipts.store(log, log.last, message)
            expected.append(log.last)
            if user in self.followed:
                self.expected_feed.append(Stored(message, log.last))
        for user, *_ in batch:
            self.logs[user].trim(self.now_s)

        assert self.run(self.inbox.append(messages)) == expected
        for user in USERS:  # the feed is not ordered between users
            assert of_user(user, self.fed) == of_user(user, self.expected_feed)

    @rule(user=st.sampled_from(USERS), key=st.sampled_from((None, "k")))
    def announce(self, user: str, key: str | None) -> None:
        """Publish an ephemeral message, which changes no inbox, even if it has a key."""
        self.announced.clear()
        options = MessageOptions(is_ephemeral=True, key=key)
        message = Message(user, "message", b"now", self.now_s, options=options)

        self.run(self.inbox.announce([message]))
        self.run(self.inbox.check())  # its reply follows the push

        assert [each.data for each in self.announced] == [b"now"] * (
            user in self.followed
        )

    @rule(
        user=st.sampled_from(USERS),
        after=st.floats(0, 1),
        upto=st.floats(0, 1.2),
        max_bytes=st.integers(1, 60),
    )
    def read_retained(
        self, user: str, after: float, upto: float, max_bytes: int
    ) -> None:
        """Read the newest messages of the retained keys between two offsets."""
        log = self.logs[user]
        bounds = [log.forgotten + round(at * len(log.messages)) for at in (after, upto)]
        expected: list[Stored] = []
        size = 0
        for stored in log.retained_messages(self.now_s):
            if bounds[0] < stored.offset <= bounds[1]:
                size += len(stored.message.data)
                if not expected or size <= max_bytes:
                    expected.append(stored)

        found = self.run(
            self.inbox.read_retained(
                user, after=bounds[0], upto=bounds[1], max_bytes=max_bytes
            )
        )

        assert facts(found) == facts(expected)

    @rule(seconds=st.integers(1, 60) | st.just(200))
    def advance(self, seconds: int) -> None:
        """Move the clock forward."""
        self.now_s += seconds

    @rule()
    def sweep(self) -> None:
        """Sweep the store, which may forget users without messages, ids and windows."""
        self.run(self.inbox.sweep())
        for user, log in self.logs.items():
            log.trim(self.now_s)
            log.drop_expired(self.now_s)
            if user not in self.followed and log.is_idle(self.now_s):
                state = self.run(self.inbox.state(user))
                if state.forgotten != log.forgotten:
                    self.logs[user] = ModelInbox(forgotten_last=log.last)

    @rule(user=st.sampled_from(USERS), share=st.floats(0, 1))
    def mark(self, user: str, share: float) -> None:
        """Report messages as delivered."""

        async def mark() -> None:
            self.inbox.mark_delivered(user, offset)

        log = self.logs[user]
        offset = log.forgotten + round(share * len(log.messages))
        log.delivered = max(log.delivered, offset)
        # Only users with windows have marks, and their windows have read the messages.
        if user not in self.followed:
            self.follow_or_not(user)
        self.run(self.inbox.read(user, after=0, max_messages=100, max_bytes=1 << 20))
        log.trim(self.now_s)
        self.receipts.mark(log, offset, self.now_s)
        self.run(mark())

    @rule(
        user=st.sampled_from(USERS),
        count=st.integers(1, 8),
        ttl_s=st.sampled_from((None, 40)),
        key=st.sampled_from((None, "k", "l")),
        share=st.sampled_from((None, 0.8, 1.0, 1.0)),
        after_s=st.integers(0, 45),
    )
    def append_tracked(
        self,
        user: str,
        count: int,
        ttl_s: int | None,
        key: str | None,
        share: float | None,
        after_s: int,
    ) -> None:
        """Append tracked messages, and report some of them as delivered some time later."""
        asked = [(True, None), (True, 30.0), (False, 30.0)]
        self.append([(user, None, ttl_s, key, "", asked[n % 3]) for n in range(count)])
        self.advance(after_s)
        if share is not None:
            self.mark(user, share)

    @invariant()
    def events_are_as_in_the_model(self) -> None:
        """Publish events after most steps; the confirm of every third is lost."""
        if hasattr(self, "inbox"):
            self.steps += 1
            if self.steps % 5:
                self.publish(9, is_confirmed=bool(self.steps % 3))

    def publish(self, count: int, *, is_confirmed: bool) -> None:
        """Take events from the outbox, and confirm them unless the broker is lost."""
        for log in self.logs.values():
            log.trim(self.now_s)
        events = self.run(self.inbox.pending_events(count))
        self.receipts.told(events, self.now_s)
        if is_confirmed:
            self.run(self.inbox.confirm_events(events))

    @rule()
    def decide_everything(self) -> None:
        """Wait until no message is left: then each has had its outcome."""
        self.advance(200)
        self.sweep()
        while self.run(self.inbox.events_depth())[0] or self.run(
            self.inbox.pending_events(1)
        ):
            self.publish(9, is_confirmed=True)
        self.receipts.check_complete()

    @rule(user=st.sampled_from(USERS))
    def follow_or_not(self, user: str) -> None:
        """Follow or unfollow a user."""
        if user in self.followed:
            self.followed.remove(user)
            self.inbox.unfollow(user)
        else:
            self.followed.add(user)
            self.run(self.inbox.follow(user))

    @rule(
        user=st.sampled_from(USERS),
        share=st.floats(0, 1.2),
        max_messages=st.integers(1, 10),
        max_bytes=st.integers(1, 200),
    )
    def read(self, user: str, share: float, max_messages: int, max_bytes: int) -> None:
        """Read a page from any offset."""
        self.run(self.inbox.state(user))
        log = self.logs[user]
        log.trim(self.now_s)
        after = log.forgotten + round(share * len(log.messages))
        next_after = max(after, log.first - 1)
        found: list[Stored] = []
        expired = size = 0
        for offset in [each for each in log.live if each > after]:
            stored = Stored(log.at(offset), offset)
            if stored.message.is_expired(ClockReading(self.now_s)):
                expired += 1
            else:
                size += len(stored.message.data)
                if found and (len(found) >= max_messages or size > max_bytes):
                    break
                found.append(stored)
            next_after = offset
        else:
            next_after = max(next_after, log.last)
        state = self.run(self.inbox.state(user))

        page = self.run(
            self.inbox.read(
                user, after=after, max_messages=max_messages, max_bytes=max_bytes
            )
        )

        assert facts(page.messages) == facts(found)
        assert (page.next_after, page.expired, page.last) == (
            next_after,
            expired,
            log.last,
        )
        assert page.gone == count_gone(after, state.first, state.sparse_after)
        deleted = [each for each in self._deleted(log) if each > after]
        plan = plan_replay(Position(self.epoch, after), state)
        if after <= log.last:  # as for `without_holes`, `first` may be behind holes
            first = log.without_holes(state.first)
            is_complete = not deleted or first <= deleted[0]
            assert (plan.missed != 0) >= (not is_complete)
            assert plan.missed == 0 or not is_complete or first <= after + 1
        assert bool(deleted) <= (page.gone != 0)

    def _deleted(self, log: ModelInbox) -> Iterator[int]:
        """Yield the offsets that were deleted for another reason than their key."""
        for offset in range(log.forgotten + 1, log.first):
            if offset not in log.replaced:
                yield offset

    @precondition(lambda self: self.store != "memory")
    @rule()
    def restart(self) -> None:
        """Close and open the store, which loses nothing."""
        self.run(self.inbox.close())
        self.open()

    @precondition(lambda self: self.store != "memory")
    @rule()
    def crash(self) -> None:
        """
        Open a copy of the files of the running store, as a killed process leaves them.

        Only delivered marks of the last second may be lost.
        """
        self.copies += 1
        self.receipts.crash()
        old, self.folder = self.folder, self.folder.with_name(str(self.copies))
        shutil.copytree(old, self.folder)
        self.run(self.inbox.close())
        self.open()
        for user, log in self.logs.items():
            delivered = self.run(self.inbox.state(user)).delivered
            assert delivered <= max(log.delivered, log.forgotten)
            log.delivered = delivered

    # --- invariants

    @invariant()
    def states_are_as_in_the_model(self) -> None:
        """Compare the state of each inbox with the model."""
        if not hasattr(self, "inbox"):
            return
        for user, log in self.logs.items():
            log.trim(self.now_s)
            state = self.run(self.inbox.state(user))
            if not log.messages and state.forgotten != log.forgotten:
                # Users without messages follow the largest offset that was forgotten.
                assert state.forgotten > max(log.forgotten, log.forgotten_last)
                log.forgotten = log.delivered = state.forgotten
                log.first = state.forgotten + 1
            assert state.forgotten == log.forgotten
            assert (state.epoch, state.last, state.delivered) == (
                self.epoch,
                log.last,
                log.delivered,
            )
            # Redis includes the messages before it in the same batch.
            assert (state.sparse_after is None) == (log.sparse_after is None)
            assert (state.sparse_after or 0) <= (log.sparse_after or 0)
            assert log.without_holes(state.first) == log.without_holes(log.first)
            assert state.last - state.first + 1 - state.holes == len(log.live)
            assert state.retained == len(log.retained)
            if log.sparse_after is None:
                assert (state.trimmed_for is None) == (state.first == log.forgotten + 1)
            for old in range(log.forgotten_last + 1):
                plan = plan_replay(Position(state.epoch, old), state)
                assert (plan.reason is SyncReason.RESET) == (old < log.forgotten)

    def teardown(self) -> None:
        """Close the store and delete its files."""
        if hasattr(self, "inbox"):
            self.run(self.inbox.close())
        self.runner.close()
        self.temporary.cleanup()


def machine_for(store: str) -> type[StoreMachine]:
    """Return the machine of a store."""
    return type("StoreMachine", (StoreMachine,), {"store": store})


def run_machine(machine: type[StoreMachine], **options: Any) -> None:
    """Run random sequences of operations on a store; raise for the first difference."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )


@pytest.mark.parametrize("store", STORES)
def test_a_store_behaves_like_its_model(store: str) -> None:
    """With appends, reads, marks, sweeps, restarts and crashes in any order."""
    run_machine(machine_for(store), max_examples=40)


class KeepsOlder(MemoryInbox):
    """A store in which the older message of a key stays, and the newer one is deleted."""

    async def append(self, messages: Sequence[Message]) -> list[int | None]:
        """Store messages, and put back what they replaced."""
        logs = [log.sparse for log in self._logs.values() if log.sparse is not None]
        before = [(log, [log.messages[at] for at in log.keys.values()]) for log in logs]
        offsets = await super().append(messages)
        for log, older in before:
            for stored in older:
                options = stored.message.options
                assert options is not None
                newest = log.keys.get((stored.message.event, options.key))
                if newest is not None and newest != stored.offset:
                    log.messages.pop(newest)
                    log.messages[stored.offset] = stored
                    log.messages.move_to_end(stored.offset, last=False)
                    log.keys[stored.message.event, options.key] = stored.offset
        return offsets


class CountsHoles(MemoryInbox):
    """A store that reports replaced messages as missed."""

    async def state(self, user: str) -> InboxState:
        """Return the state as if there were no holes."""
        state = await super().state(user)
        return replace(state, first=state.first + state.holes, holes=0)


class TrimsRetained(MemoryInbox):
    """A store that retains only what is in the inbox."""

    async def read_retained(self, user: str, **bounds: int) -> Sequence[Stored]:
        """Return what was not deleted for its age or the limit."""
        found = await super().read_retained(user, **bounds)
        first = (await self.state(user)).first
        return [each for each in found if each.offset >= first]


class ForgetsClears(MemoryInbox):
    """A store that retains a key forever."""

    async def append(self, messages: Sequence[Message]) -> list[int | None]:
        """Store messages without their flag."""
        for message in messages:
            if message.options is not None:
                message.options = replace(message.options, is_cleared=False)
        return await super().append(messages)


@pytest.mark.parametrize(
    "defect", [KeepsOlder, CountsHoles, TrimsRetained, ForgetsClears]
)
def test_the_model_detects_a_store_with_a_defect(
    monkeypatch: pytest.MonkeyPatch, defect: type[MemoryInbox]
) -> None:
    """A model that misses defects would prove nothing about the stores."""

    def make(retention: Retention, *, clock: SteadyClock, folder: Path) -> Inbox:
        del folder
        return defect(retention, clock=clock)

    monkeypatch.setitem(STORES, "memory", make)
    with pytest.raises(AssertionError):
        # It ends with the first failure: with this seed after a few examples, with others
        # after up to a thousand.
        run_machine(
            seed(3)(machine_for("memory")), max_examples=2000, phases=[Phase.generate]
        )
