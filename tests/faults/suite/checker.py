"""
The checker turns a history into a verdict, in the manner of Jepsen. Pure.

It processes events in the order of their times, live or from a file, and always knows which
messages are missing in which windows. It counts events that the delivery guarantee allows;
all others are violations.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, assert_never

from bridge.enums import ReceiptOutcome
from tests.faults.suite.history import (
    Acked,
    Alive,
    Ambiguous,
    Closed,
    Confirmed,
    Connected,
    DeadLettered,
    Disconnected,
    Event,
    FaultEnded,
    FaultStarted,
    Invoked,
    Opened,
    Overdue,
    PresenceCounted,
    PresenceReported,
    Received,
    Reported,
    Synced,
    WindowCounts,
)
from tests.faults.suite.presence_checker import (
    LEFT,
    PresenceChecker,
    PresenceViolation,
)
from tests.faults.suite.producers import UNDELIVERED_AFTER_S

_EXAMPLES: Final = 20
_DELAY_MARGIN_MS: Final = 50
_DELAY_MAX_MS: Final = 3_600_000  # more is a jump of the clock
# The client's library answers a ping before the handlers of the page have run, and an orderly
# close counts as an answer. A page with automatic acks that is reloaded, or closes its
# connection, then does not see what counts as delivered.
_LEAVE_WITHIN_S: Final = 5.0
_MANUAL_ACKS: Final = (".acks", ".fresh")  # ends of the names of windows that have them
_CLOCK: Final = "clock jumps"  # part of the name of that fault
# A call to Redis that deletes old messages takes no longer. One that began before all clocks were
# set back deletes what is stored after that.
_CLOCK_MARGIN_S: Final = 1.0
_PAGE_NETWORK: Final = "network between pages and bridge"  # part of those names
MOST_CONNECTS: Final = "most connects per second after the first fault"
Name = tuple[str, int]  # identifies a message of a user: producer and number


@dataclass(slots=True)
class _Message:
    invoked_t: float
    has_id: bool
    is_bad: bool
    key: str | None
    is_retained: bool
    is_cleared: bool
    is_tracked: bool
    confirmed_t: float | None = None


@dataclass(slots=True)
class _User:
    messages: dict[Name, _Message] = field(default_factory=dict)
    confirmed: set[Name] = field(default_factory=set)
    bad: set[Name] = field(default_factory=set)
    dead_lettered: set[Name] = field(default_factory=set)
    unseen: set[Name] = field(default_factory=set)  # dead letters of RabbitMQ itself
    received: set[Name] = field(default_factory=set)  # by any window
    # By producer and key: the number of the newest message.
    newest: dict[tuple[str, str], int] = field(default_factory=dict)
    # By tracked message, as far as is confirmed or reported: the outcome in each event.
    outcomes: dict[Name, dict[str, str]] = field(default_factory=dict)
    # By id of an event: the delay in it.
    delays_ms: dict[str, int] = field(default_factory=dict)
    # Beginnings of the ids of events: the messages that were reported as undelivered, and
    # for those that were delivered, the event.
    late: set[str] = field(default_factory=set)
    delivered: dict[str, Reported] = field(default_factory=dict)
    windows: list["_Window"] = field(default_factory=list)
    # When pages with automatic acks were reloaded, or closed their connection.
    leaves_t: list[float] = field(default_factory=list)
    keyed: int = 0  # messages with a key
    # By producer and key: the newest message of each retained key, as far as is confirmed.
    retained: dict[tuple[str, str], Name] = field(default_factory=dict)
    # By producer and key: the newest number that a window has received.
    had: dict[tuple[str, str], int] = field(default_factory=dict)
    # By producer and key: the number of the last message that clears.
    cleared: dict[tuple[str, str], int] = field(default_factory=dict)
    # By epoch and offset: whether the message there has a key, and who skipped it.
    places: dict[tuple[str, int], bool] = field(default_factory=dict)
    skipped: dict[tuple[str, int], Event] = field(default_factory=dict)

    def wanted(self) -> set[Name]:
        """Return what a new window must receive: of each key the newest message."""
        wanted = self.confirmed - self.bad - self.dead_lettered
        newest: dict[tuple[str, str], Name] = {}
        for name in sorted(wanted):
            key = self.messages[name].key
            if key is not None:
                wanted.discard(newest.get((name[0], key), name))
                wanted.add(name)
                newest[name[0], key] = name
        return wanted


@dataclass(slots=True)
class _Window:
    """
    One tab of a user, with all its pages.

    `epoch`, `last` and `seen` belong to a chain of pages that each resumed from the
    position of the page before. A page without a position starts a new chain.
    """

    user: str
    waiting: set[Name] = field(default_factory=set)  # confirmed and not received
    received: dict[Name, int] = field(default_factory=dict)
    newest_t: dict[str, float] = field(default_factory=dict)
    newest: dict[str, int] = field(
        default_factory=dict
    )  # at a new position, by producer
    epoch: str | None = None
    last: int | None = None
    seen: set[int] = field(default_factory=set)
    is_first_chain: bool = True
    is_open: bool = True
    is_synced: bool = False
    is_in_replay: bool = True
    # By producer and key: the newest number that the current page has received.
    page: dict[tuple[str, str], int] = field(default_factory=dict)
    # By producer and key: the number, or a newer one, that the page must have when its
    # replay has ended.
    needed: dict[tuple[str, str], int] = field(default_factory=dict)


class Violation:
    """The kinds of violations."""

    LOST = "lost"
    NOT_DEAD_LETTERED = "invalid messages missing from the dead letters"
    ORDER = "out of order"
    UNEXPECTED = "unexpected"
    REPEATED_POSITION = "repeats of a position"
    REPEATED_ID = "repeats of a message_id"
    HOLE = "positions skipped without notice"
    GAP = "gaps reported by bridge:sync"
    EPOCH = "changes of the epoch"
    NOT_RECOVERED = "reconnects that did not recover"
    RETAINED = "retained messages missing after the replay of a new page"
    STALE = "an older message of a key after a newer one"
    HELD_UP = "held up by a fault that must not"
    UNREPORTED = "receipts missing"
    OUTCOMES = "several outcomes of a message"
    CHANGED = "repeats of an event that differ from the first"
    FALSE_OUTCOME = "false outcomes"
    FALSE_LATE = "delivered in time, and reported as undelivered"
    NOT_LATE = "delivered too late, and not reported as undelivered"

    ALL = (
        LOST, NOT_DEAD_LETTERED, ORDER, UNEXPECTED, REPEATED_POSITION,
        REPEATED_ID, HOLE, GAP, EPOCH, NOT_RECOVERED, RETAINED, STALE, HELD_UP,
        UNREPORTED, OUTCOMES, CHANGED, FALSE_OUTCOME, FALSE_LATE, NOT_LATE,
        *PresenceViolation.ALL,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    The result of checking a history.

    Attributes:
        counts: The counts of allowed events.
        violations: The count of each kind, zeros included.
        examples: Descriptions of the first violations of each kind.

    """

    counts: dict[str, int]
    violations: dict[str, int]
    examples: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether there are no violations."""
        return not any(self.violations.values())


class Checker:
    """
    Consumes events; can be queried at any time.

    Attributes:
        presence: Judges what workers learn about presence.

    """

    def __init__(self) -> None:
        self.presence: Final = PresenceChecker()
        self._users: dict[str, _User] = {}
        self._windows: dict[str, _Window] = {}
        self.counts: Counter[str] = Counter()
        self._violations: Counter[str] = Counter()
        self._examples: list[str] = []
        self._reported = 0
        self._has_faults = False
        # When the clock of a bridge was changed, and set right again.
        self._clock_jumps: list[tuple[float, float]] = []
        self._faults_from: dict[tuple[int, str], float] = {}  # by round and kind
        self._connects: deque[float] = deque()  # their times in the last second

    def feed(self, event: Event) -> None:  # noqa: C901, PLR0912 - one line for each kind of event
        """Process one event."""
        self.presence.feed(event)
        match event:
            case Invoked():
                self._invoked(event)
            case Confirmed():
                self._confirmed(event)
            case Ambiguous():
                self.counts["publishes without an answer"] += 1
            case Opened():
                self._opened(event)
            case Connected():
                self._connected(event)
            case Received():
                self._received(event)
            case Synced():
                self._synced(event)
            case Acked():
                self.counts["acks" if event.is_ok else "acks refused"] += 1
            case Disconnected():
                self._disconnected(event)
            case Closed():
                self._windows[event.window].is_open = False
            case WindowCounts():
                self.counts["bridges with windows"] = sum(map(bool, event.windows))
            case DeadLettered():
                self._dead_lettered(event)
            case Reported():
                self._reported_outcome(event)
            case PresenceReported():
                change = "online" if event.windows else "offline"
                self.counts[f"presence: {change}"] += 1
            case PresenceCounted():
                pass
            case FaultStarted():  # counted when it ends
                self._has_faults = True
                self._faults_from[event.round, event.kind] = event.t
            case FaultEnded():
                self._fault_ended(event)
            case Overdue():
                self._violate(Violation.HELD_UP, event)
            case Alive():
                self.counts["rounds"] += 1
            case _:
                assert_never(event)

    # --- queries

    def has_received(self, window: str, name: Name) -> bool:
        """Whether `window` has received the message."""
        return name in self._windows[window].received

    def all_synced(self, windows: int) -> bool:
        """Whether `windows` windows exist and each has completed a replay."""
        known = self._windows.values()
        return len(known) >= windows and all(window.is_synced for window in known)

    def is_complete(self, window: str) -> bool:
        """Whether `window` has received all confirmed messages."""
        known = self._windows.get(window)
        return known is not None and not known.waiting

    def missing(self) -> Iterator[tuple[str, Name]]:
        """Yield window and name of confirmed messages that an open window still misses."""
        for name, window in self._windows.items():
            if not window.is_open:
                continue
            for message in sorted(window.waiting | self._unretained(window)):
                yield name, message

    def _unretained(self, window: _Window) -> set[Name]:
        """Return the newest messages of retained keys that the page of `window` lacks."""
        user = self._users[window.user]
        return {
            name
            for place, name in user.retained.items()
            if window.page.get(place, 0) < name[1] and name not in user.dead_lettered
        }

    def missing_dead_letters(self) -> Iterator[tuple[str, Name]]:
        """Yield user and name of invalid messages that are not among the dead letters."""
        for user_name, user in self._users.items():
            for name in sorted((user.bad & user.confirmed) - user.dead_lettered):
                yield user_name, name

    def missing_receipts(self) -> Iterator[tuple[str, Name]]:
        """Yield user and name of confirmed messages whose outcome no worker has received."""
        for user_name, user in self._users.items():
            for name, outcomes in user.outcomes.items():
                if not outcomes and name not in user.unseen:
                    yield user_name, name

    def new_problems(self) -> list[str]:
        """Return the examples of violations that no earlier call returned."""
        new = self._examples[self._reported :]
        self._reported = len(self._examples)
        return new

    def verdict(self) -> Verdict:
        """Return the verdict on the events so far."""
        violations = Counter(self._violations)
        examples = list(self._examples)
        lost: set[tuple[str, Name]] = set()
        for window, name in self.missing():
            lost.add((self._windows[window].user, name))
            if len(lost) <= _EXAMPLES:
                where = self._users[self._windows[window].user].messages[name]
                examples.append(
                    f"lost: {name} of {self._windows[window].user}, confirmed at "
                    f"{where.confirmed_t}, missing in window {window}"
                )
        violations[Violation.LOST] = len(lost)
        for user_name, name in self.missing_dead_letters():
            violations[Violation.NOT_DEAD_LETTERED] += 1
            examples.append(f"not accounted for: {name} of {user_name}")
        counts = Counter(self.counts)
        for kind, text in self._problems_of_workers():
            violations[kind] += 1
            if violations[kind] <= _EXAMPLES:
                examples.append(f"{kind}: {text}")
        counts["users"] = len(self._users)
        counts["windows"] = len(self._windows)
        return Verdict(
            dict(sorted(counts.items())),
            {kind: violations[kind] for kind in Violation.ALL},
            tuple(examples),
        )

    # --- producers

    def _invoked(self, event: Invoked) -> None:
        user = self._users.setdefault(event.user, _User())
        name = (event.producer, event.number)
        user.messages[name] = _Message(
            *(event.t, event.has_id, event.is_bad, event.key),
            *(event.is_retained, event.is_cleared, event.is_tracked),
        )
        if event.is_bad:
            user.bad.add(name)
        if event.key is not None:
            user.keyed += 1
            user.newest[event.producer, event.key] = event.number
        if event.is_cleared and event.key is not None:
            place = (event.producer, event.key)
            user.cleared[place] = event.number
            user.retained.pop(place, None)  # from now on it may be cleared
            for window in user.windows:
                window.needed.pop(place, None)
        self.counts["messages"] += 1

    def _confirmed(self, event: Confirmed) -> None:
        user = self._users[event.user]
        name = (event.producer, event.number)
        user.messages[name].confirmed_t = event.t
        user.confirmed.add(name)
        if user.messages[name].is_tracked:
            user.outcomes.setdefault(name, {})
        if name in user.bad or name in user.dead_lettered:
            return
        for window in user.windows:
            if name not in window.received:
                window.waiting.add(name)
            self._discard_replaced(user, name, window)
        message = user.messages[name]
        if message.is_retained and message.key is not None:
            user.retained[name[0], message.key] = name
        self.counts["messages confirmed"] += 1

    def _discard_replaced(self, user: _User, name: Name, window: _Window) -> None:
        """Expect no older message with the key of `name` in the window any more."""
        key = user.messages[name].key
        if key is not None:
            window.waiting = {
                other
                for other in window.waiting
                if other >= name
                or other[0] != name[0]
                or user.messages[other].key != key
            }

    def _dead_lettered(self, event: DeadLettered) -> None:
        name = (event.producer, event.number)
        user = self._users.get(event.user)
        if user is None or name not in user.messages:
            self._violate(Violation.UNEXPECTED, event)
            return
        kind = (
            "invalid messages dead-lettered"
            if name in user.bad
            else "valid messages dead-lettered"
        )
        self.counts[kind] += name not in user.dead_lettered
        user.dead_lettered.add(name)
        if not event.reason:  # bridge adds one
            user.unseen.add(name)
        for window in user.windows:
            window.waiting.discard(name)

    # --- workers

    def _reported_outcome(self, event: Reported) -> None:
        user = self._users.get(event.user)
        name = (event.producer, event.number)
        message = None if user is None else user.messages.get(name)
        if user is None or message is None or not message.is_tracked:
            self._violate(Violation.UNEXPECTED, event)
            return
        if user.delays_ms.setdefault(event.event_id, event.delay_ms) != event.delay_ms:
            self._violate(Violation.CHANGED, event)
        outcomes = user.outcomes.setdefault(name, {})
        stored = event.event_id.rpartition(".")[0]
        if event.outcome == ReceiptOutcome.UNDELIVERED:
            self.counts["messages reported as undelivered"] += stored not in user.late
            user.late.add(stored)
            return
        if event.outcome == ReceiptOutcome.DELIVERED:
            user.delivered[stored] = event
        if event.event_id in outcomes:
            self.counts["repeats of receipts"] += 1
        else:
            self.counts[f"receipts: {event.outcome}"] += 1
            # A copy of a message without an id is a message of its own.
            if outcomes and message.has_id:
                self._violate(Violation.OUTCOMES, event)
        outcomes[event.event_id] = event.outcome

    def _problems_of_workers(self) -> Iterator[tuple[str, str]]:
        """Yield kind and description of what workers were told wrongly, or not at all."""
        for user_name, name in self.missing_receipts():
            yield Violation.UNREPORTED, f"{name} of {user_name}"
        for user_name, user in self._users.items():
            for name, outcomes in user.outcomes.items():
                for outcome in outcomes.values():
                    if not self._is_true(outcome, user, name):
                        text = f"{outcome}, {name} of {user_name}"
                        yield Violation.FALSE_OUTCOME, text
            yield from self._false_delays(user)
        yield from self.presence.problems()

    def _false_delays(self, user: _User) -> Iterator[tuple[str, str]]:
        """Yield the deliveries that contradict whether the message was reported before."""
        after_ms = UNDELIVERED_AFTER_S * 1000
        for stored, event in user.delivered.items():
            # It is 0 if the clock was set back.
            is_in_time = 0 < event.delay_ms < after_ms - _DELAY_MARGIN_MS
            if is_in_time and stored in user.late:
                yield Violation.FALSE_LATE, str(event)
            is_late = after_ms + _DELAY_MARGIN_MS < event.delay_ms < _DELAY_MAX_MS
            if is_late and stored not in user.late:
                invoked_t = user.messages[event.producer, event.number].invoked_t
                if not self._is_clock_in_doubt(invoked_t, event.delay_ms / 1000):
                    yield Violation.NOT_LATE, str(event)

    def _is_clock_in_doubt(self, since_t: float, seconds: float) -> bool:
        """Return whether a clock jumped in that time: then bridge judges no deadline."""
        upto_t = since_t + seconds
        return any(
            began_t <= upto_t and since_t <= ended_t
            for began_t, ended_t in self._clock_jumps
        )

    def _is_true(self, outcome: str, user: _User, name: Name) -> bool:
        if outcome == ReceiptOutcome.DELIVERED:
            invoked_t = user.messages[name].invoked_t
            return name in user.received or any(
                0 <= leave_t - invoked_t <= _LEAVE_WITHIN_S for leave_t in user.leaves_t
            )
        if outcome == ReceiptOutcome.DEAD:
            return name in user.dead_lettered
        message = user.messages[name]
        if outcome == ReceiptOutcome.TRIMMED and self._is_clock_in_doubt(
            message.invoked_t - _CLOCK_MARGIN_S, 2 * _CLOCK_MARGIN_S
        ):
            return True
        key = message.key
        is_replaced = key is not None and user.newest[name[0], key] > name[1]
        return outcome == ReceiptOutcome.REPLACED and is_replaced

    # --- faults

    def _fault_ended(self, event: FaultEnded) -> None:
        self.counts["faults" if event.happened else "faults missed"] += 1
        began_t = self._faults_from.pop((event.round, event.kind))
        if _CLOCK in event.kind:
            self._clock_jumps.append((began_t, event.t))
        if _PAGE_NETWORK in event.kind:
            # A page left, and the bridge wrote to it until it learned that, which is now.
            for user in self._users.values():
                if any(began_t <= leave_t for leave_t in user.leaves_t):
                    user.leaves_t.append(event.t)

    # --- windows

    def _opened(self, event: Opened) -> None:
        window = self._windows.get(event.window)
        if window is None:
            user = self._users.setdefault(event.user, _User())
            window = self._windows[event.window] = _Window(event.user, user.wanted())
            user.windows.append(window)
            return
        user = self._users[event.user]
        self.counts["page reloads"] += 1
        self._note_leaving(event, user)
        window.is_in_replay, window.page = True, {}
        window.needed = {
            place: min(user.had.get(place, 0), number)
            for place, (_, number) in user.retained.items()
            if user.had.get(place, 0) > user.cleared.get(place, 0)
        }
        if not event.keeps_position:
            window.epoch = window.last = None
            window.seen = set()
            window.newest = {}
            window.is_first_chain = False

    def _disconnected(self, event: Disconnected) -> None:
        self.counts["disconnects"] += 1
        window = self._windows[event.window]
        window.is_in_replay = True
        if event.reason == LEFT:
            self._note_leaving(event, self._users[window.user])

    def _note_leaving(self, event: Opened | Disconnected, user: _User) -> None:
        if not event.window.endswith(_MANUAL_ACKS):
            user.leaves_t.append(event.t)

    def _connected(self, event: Connected) -> None:
        self.counts["connects"] += 1
        if self._has_faults:  # the test itself paces the first connections
            self._connects.append(event.t)
            while self._connects[0] <= event.t - 1:
                self._connects.popleft()
            most = max(self.counts[MOST_CONNECTS], len(self._connects))
            self.counts[MOST_CONNECTS] = most
        if event.recovered:
            self.counts["recovered by the stock client"] += 1
        elif event.recovered is False:
            self._violate(Violation.NOT_RECOVERED, event)

    def _synced(self, event: Synced) -> None:
        self.counts["syncs"] += 1
        window = self._windows[event.window]
        window.is_synced, window.is_in_replay = True, False
        for place, number in window.needed.items():
            if window.page.get(place, 0) < number:
                self._violate(Violation.RETAINED, event)
        window.needed = {}
        if event.is_complete is False:
            self._violate(Violation.GAP, event)

    def _received(self, event: Received) -> None:
        window = self._windows[event.window]
        self.counts["receptions"] += 1
        name = (event.producer, event.number)
        message = self._users[window.user].messages.get(name)
        if event.user != window.user or message is None or message.is_bad:
            self._violate(Violation.UNEXPECTED, event)
            return
        self._users[window.user].received.add(name)
        is_new_position = not self._take_key(window, message, event) and (
            self._take_position(window, event)
        )
        times = window.received.get(name, 0)
        if is_new_position:
            self._check_repeats(window, event)
        window.received[name] = times + 1
        window.waiting.discard(name)
        self._discard_replaced(self._users[window.user], name, window)
        if times == 0:
            self._check_order(window, message, event)
        elif is_new_position and window.is_first_chain:
            if message.has_id:
                self._violate(Violation.REPEATED_ID, event)
            else:
                self.counts["copies of messages without id"] += 1
        elif not window.is_first_chain:
            # A page without a position receives unacked messages again.
            self.counts["repeats of unacked messages"] += 1

    def _take_key(self, window: _Window, message: _Message, event: Received) -> bool:
        """
        Track the keys of a page; true if the position may not be that of the message.

        So it is with retained messages, which come before the `bridge:sync` of a connection.
        """
        if message.key is None:
            return False
        place = (event.producer, message.key)
        newest = window.page.get(place, 0)
        if event.number < newest:
            self._violate(Violation.STALE, event)
        window.page[place] = max(event.number, newest)
        had = self._users[window.user].had
        had[place] = max(event.number, had.get(place, 0))
        if not (message.is_retained and window.is_in_replay):
            return False
        self.counts["messages of retained keys in replays"] += 1
        if event.producer in window.newest:
            before = window.newest[event.producer]
            window.newest[event.producer] = max(event.number, before)
        return True

    def _take_position(self, window: _Window, event: Received) -> bool:
        """Track the positions of a chain; true if this position is new."""
        epoch, _, digits = event.position.rpartition("-")
        offset = int(digits)
        if window.epoch is not None and epoch != window.epoch:
            self._violate(Violation.EPOCH, event)
            window.last, window.seen = None, set()
        window.epoch = epoch
        if offset in window.seen:
            self._violate(Violation.REPEATED_POSITION, event)
            return False
        window.seen.add(offset)
        user = self._users[window.user]
        has_key = user.messages[event.producer, event.number].key is not None
        user.places[epoch, offset] = has_key
        if not has_key and (epoch, offset) in user.skipped:
            self._violate(Violation.HOLE, user.skipped.pop((epoch, offset)))
        if window.last is not None:
            if offset < window.last:
                self._violate(Violation.ORDER, event)
            for skipped in range(window.last + 1, offset):
                self._skip(user, (epoch, skipped), event)
        window.last = offset
        return True

    def _skip(self, user: _User, place: tuple[str, int], event: Received) -> None:
        """Note that a window skipped a position, which only replaced messages may leave."""
        user.skipped[place] = event
        is_known = user.places.get(place) is False
        if is_known or len(user.skipped) > user.keyed:
            self._violate(Violation.HOLE, event)
        else:
            self.counts["positions skipped for replaced messages"] += 1

    def _check_order(self, window: _Window, message: _Message, event: Received) -> None:
        """
        Compare the order with that of the producer.

        Two messages are ordered only if one was confirmed before the other was published:
        a publish without an answer may arrive at any later time.
        """
        newest_t = window.newest_t.get(event.producer, -1.0)
        if message.confirmed_t is not None and message.confirmed_t < newest_t:
            self._violate(Violation.ORDER, event)
        window.newest_t[event.producer] = max(newest_t, message.invoked_t)

    def _check_repeats(self, window: _Window, event: Received) -> None:
        """
        Compare with the previous message of the same producer in the inbox.

        A redelivery stores a message again together with everything that followed it in
        the queue. If a repeated sequence leaves out a message that was stored before, then
        a bridge has stored old deliveries after another bridge had continued.
        """
        messages = self._users[window.user].messages
        producer, number = event.producer, event.number
        before, invoked_t = (
            window.newest.get(producer),
            messages[producer, number].invoked_t,
        )
        window.newest[producer] = number
        if before is None or number <= before + 1:
            return
        begun_t = messages[producer, before].confirmed_t
        for left_out in range(before + 1, number):
            known = messages.get((producer, left_out))
            if (producer, left_out) not in window.received or known is None:
                continue
            # Messages without a confirm may have arrived in another order.
            is_between = begun_t is not None and begun_t < known.invoked_t
            if is_between and known.confirmed_t and known.confirmed_t < invoked_t:
                self._violate(Violation.ORDER, event)
                return

    def _violate(self, kind: str, event: Event) -> None:
        self._violations[kind] += 1
        if self._violations[kind] <= _EXAMPLES:
            self._examples.append(f"{kind}: {event}")


def check(events: Iterable[Event]) -> Verdict:
    """Return the verdict on a complete history."""
    checker = Checker()
    for event in events:
        checker.feed(event)
    return checker.verdict()
