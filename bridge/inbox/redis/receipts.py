"""
Receipts and the event outbox in Redis: who decides, who publishes, and how both are encoded.

Decisions are made by the scripts, in the step of the change that they are about
(scripts/receipts.py). What the passing of time decides is found by any bridge that polls the
tag, and decided once, because a script is one step. It waits for marks that other bridges have
not written yet (bridge_reports.py). A tag's events are published by one bridge at a time: the
first one that asks keeps them as long as it asks again within some seconds.

A bridge polls the tags of which it knows that a message is tracked, and all tags every few
seconds, because another bridge may be gone.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import count
from math import inf
from struct import Struct
from typing import Final

import orjson

from bridge.core.message import Message
from bridge.core.message_options import Tracking
from bridge.core.receipts import Receipt, WorkerEvent, unpack_event
from bridge.enums import EVENT_DEFAULT, ReceiptOutcome
from bridge.inbox.redis.bridge_reports import BridgeReports
from bridge.inbox.redis.encoding import tag_of, unpack
from bridge.inbox.redis.presence import unpack_presence
from bridge.inbox.redis.protocol import Argument, Reply
from bridge.inbox.redis.scripts.receipts import POLL, PUT_EVENT
from bridge.inbox.redis.servers import RedisServers
from bridge.inbox.worker_events import render_event

_LEASE_MS: Final = 5_000
_ALL_TAGS_EVERY_S: Final = 5.0

# Taken, deadline, late, flags, bytes of the message id and of the origin: stored id and event.
# Duplicates have the origin of the first.
_RECEIPT: Final = Struct("<dddBHH")
_WANTED, _HAS_ID = 1, 2
# After a "D": when it was decided, outcome, whether the message was too old, bytes of the user
# and of the receipt. Then the user, the receipt, and the message if it is undelivered.
_DECISION: Final = Struct("<dBBHH")
_OUTCOMES: Final = tuple(ReceiptOutcome)

# Tag, and number of the event in it.
_Key = tuple[int, int]


def pack_receipt(message: Message, tracking: Tracking, stored_id: str) -> bytes:
    """
    Encode a receipt as the scripts read it.

    No two messages of a user may have the same id, because receipts are a set.
    """
    message_id = (message.id or "").encode()
    origin = f"{stored_id} {message.event}".encode()
    after_s = tracking.undelivered_after_s
    address = (tracking.reply_to, tracking.correlation_id)
    return b"".join(
        (
            _RECEIPT.pack(
                message.taken_s,
                inf if message.deadline_s is None else message.deadline_s,
                inf if after_s is None else message.taken_s + after_s,
                tracking.wants_receipt + _HAS_ID * (message.id is not None),
                len(message_id),
                len(origin),
            ),
            message_id,
            origin,
            orjson.dumps(address),
        )
    )


def pack_event(event: WorkerEvent) -> bytes:
    """Encode an event that no script has decided."""
    return b"E" + event.pack()


def unpack_receipt(user: str, packed: bytes, *, offset: int) -> Receipt:
    """Return the receipt that was packed; the message has no data."""
    taken_s, deadline_s, late_s, flags, id_length, length = _RECEIPT.unpack_from(packed)
    id_end = _RECEIPT.size + id_length
    origin_end = id_end + length
    stored_id, _, event = packed[id_end:origin_end].decode().partition(" ")
    # Earlier versions stored the event here.
    *older, reply_to, correlation_id = orjson.loads(packed[origin_end:])
    message_id = packed[_RECEIPT.size : id_end].decode() if flags & _HAS_ID else None
    tracking = Tracking(
        bool(flags & _WANTED),
        reply_to,
        correlation_id,
        None if late_s == inf else late_s - taken_s,
    )
    message = Message(
        user,
        event or next(iter(older), None) or EVENT_DEFAULT,
        b"",
        taken_s,
        message_id,
        None if deadline_s == inf else deadline_s,
    )
    return Receipt(message, offset, tracking, stored_id)


def unpack_element(element: bytes, key: _Key | None = None) -> WorkerEvent:
    """Return the event in an element of the outbox."""
    if element[:1] == b"P":
        return replace(unpack_presence(element), key=key)
    if element[:1] == b"E":
        return unpack_event(element[1:], key=key)
    at_s, number, is_old, user_length, length = _DECISION.unpack_from(element, 1)
    user_end = 1 + _DECISION.size + user_length
    user = element[user_end - user_length : user_end].decode()
    packed = element[user_end : user_end + length]
    receipt = unpack_receipt(user, packed, offset=0)
    outcome = _OUTCOMES[number]
    reason = data = None
    if outcome is ReceiptOutcome.TRIMMED:
        reason = "age" if is_old else "limit"
    if len(element) > user_end + length:
        data = unpack(user, element, user_end + length).data
    event = render_event(receipt, outcome, at_s=at_s, reason=reason, data=data)
    return replace(event, key=key)


class RedisReceipts:
    """
    What one bridge knows about tracked messages.

    Args:
        servers: The servers.
        rules: Returns the arguments that SETTLE calls the rules.
        real_s: Returns real time.
        is_cluster: Whether a call covers one tag only.
        gone_s: After so long without a report another bridge is not waited for.

    Attributes:
        users: Users here who have windows, and messages whose outcome is open; with the number
            of the newest of these messages, in the order in which they were received.

    """

    def __init__(
        self,
        servers: RedisServers,
        *,
        rules: Callable[[], Sequence[Argument]],
        real_s: Callable[[], float],
        is_cluster: bool,
        gone_s: float,
    ) -> None:
        self.users: dict[str, int] = {}
        self._numbers = count()
        self._turns = count()
        self._servers = servers
        self._rules = rules
        self._real_s = real_s
        self._is_cluster = is_cluster
        self._session = secrets.token_hex(6)
        self._reports = BridgeReports(real_s=real_s, gone_s=gone_s)
        self._tags: set[int] = set()
        self._all_tags_due_s = -inf
        # Of each tag the number of events, and when the oldest was decided.
        self._depths: dict[int, tuple[int, float | None]] = {}
        self._wake: Callable[[], None] | None = None

    def on_events(self, wake: Callable[[], None]) -> None:
        """Call `wake` when there may be an event."""
        self._wake = wake

    def notify(self, *tags: int) -> None:
        """Note that `tags` may have an event to publish."""
        self._tags.update(tags)
        if self._wake is not None:
            self._wake()

    def note_appended(self, messages: Sequence[Message]) -> None:
        """Note which tags have tracked messages."""
        for message in messages:
            if message.options is not None and message.options.tracking is not None:
                self._tags.add(tag_of(message.user))

    def note_received(self, message: Message) -> None:
        """Note a tracked message that windows will receive."""
        self.users[message.user] = next(self._numbers)
        self._tags.add(tag_of(message.user))

    async def pending(
        self, limit: int, *, max_bytes: int, unwritten_s: Callable[[], float]
    ) -> Sequence[WorkerEvent]:
        """
        Decide what is due, and return the oldest events that no other bridge has.

        Args:
            limit: The most events.
            max_bytes: The most bytes of their bodies, unless there is one only.
            unwritten_s: Returns how old the oldest mark is that may decide and is not written.

        """
        now_s = self._real_s()
        # Those that are noted during the poll are in the next one.
        tags, self._tags = sorted(self._tags), set()
        if now_s >= self._all_tags_due_s:
            self._all_tags_due_s = now_s + _ALL_TAGS_EVERY_S
            tags = list(range(len(self._servers.prefixes)))
        if tags:  # a call decides and returns so much, so each begins with another tag
            first = next(self._turns) % len(tags)
            tags = tags[first:] + tags[:first]
        # On a single server the report is for all tags.
        groups = [[tag] for tag in tags] if self._is_cluster else [tags]
        polls = (self._poll(each, limit, max_bytes, unwritten_s) for each in groups)
        events: list[WorkerEvent] = []
        failure: BaseException | None = None
        results = await asyncio.gather(*polls, return_exceptions=True)
        for group, found in zip(groups, results, strict=True):
            if isinstance(found, BaseException):
                self._tags.update(group)
                failure = failure or found
            else:
                events += found
        if failure is not None and not events:  # not all servers of a cluster are away
            raise failure
        return events[:limit]

    async def _poll(
        self,
        tags: Sequence[int],
        limit: int,
        max_bytes: int,
        unwritten_s: Callable[[], float],
    ) -> list[WorkerEvent]:
        at = tags[0] if self._is_cluster else 0
        server_s, *reply = await self._servers.run_script(
            POLL,
            at,
            *self._rules(),
            *(self._session, _LEASE_MS, limit, max_bytes, self._reports_key(at)),
            *self._reports.arguments(at, unwritten_s=unwritten_s()),
            *(self._servers.prefixes[tag] for tag in tags),
        )
        # Empty if the server has no memory left. Other bridges write nothing then, either.
        if server_s:
            self._reports.note(at, float(server_s))
        events: list[WorkerEvent] = []
        for tag, (open_count, waiting, elements) in zip(tags, reply, strict=True):
            events += self._note_polled(tag, limit, open_count, waiting, elements)
        return events

    def _note_polled(
        self,
        tag: int,
        limit: int,
        open_count: int,
        waiting: int,
        elements: Sequence[Reply],
    ) -> list[WorkerEvent]:
        if open_count or waiting:
            self._tags.add(tag)
        found = [
            unpack_element(elements[index], (tag, int(elements[index + 1])))
            for index in range(0, len(elements), 2)
        ]
        oldest_s = found[0].at_s if found else None
        if not limit:  # the poll has read none
            _, oldest_s = self._depths.get(tag, (0, None))
        self._depths[tag] = (waiting, oldest_s)
        if not waiting:
            del self._depths[tag]
        return found

    async def release(self) -> None:
        """Let other bridges decide and publish without waiting for this one."""
        tags = self._reports.tags
        keys = map(self._reports_key, tags)
        commands = [(b"ZREM", key, self._session) for key in keys]
        await self._servers.ask_each(list(zip(tags, commands, strict=True)))

    def _reports_key(self, tag: int) -> str:
        return f"{self._servers.prefixes[tag]}a"

    async def confirm(self, events: Iterable[WorkerEvent]) -> None:
        """Delete events from the outbox."""
        commands: list[tuple[int, Sequence[Argument]]] = []
        for event in events:
            if isinstance(event.key, tuple):
                tag, number = event.key
                key = f"{self._servers.prefixes[tag]}e"
                commands.append((tag, (b"ZREMRANGEBYSCORE", key, number, number)))
        await self._servers.ask_each(commands)

    async def add(self, event: WorkerEvent) -> None:
        """Add an event to the outbox."""
        tag = tag_of(event.user)
        prefix = self._servers.prefixes[tag]
        await self._servers.run_script(PUT_EVENT, tag, prefix, pack_event(event))
        self.notify(tag)

    def depth(self, now_s: float) -> tuple[int, float | None]:
        """Return the number of events at the last poll, and the age of the oldest."""
        times = [at_s for _, at_s in self._depths.values() if at_s is not None]
        total = sum(number for number, _ in self._depths.values())
        return total, now_s - min(times) if times else None
