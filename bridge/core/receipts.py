"""
What bridge reports to workers about a message: its final outcome, or that it is late.

A tracked message asked for a receipt, or has a time after which it counts as undelivered.
Until its outcome is decided, the store keeps a `Receipt` for it. A store decides in the
transaction that moves the delivered mark, deletes or replaces messages, and it adds the event
to its outbox in the same transaction. So an outcome is decided once, and an event cannot
differ from what the inbox did.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

import orjson

from bridge.core.clock_reading import ClockReading
from bridge.core.message import Message
from bridge.core.message_options import Tracking
from bridge.enums import PresenceChange, ReceiptOutcome

# The most addresses that the outcome of one message is sent to: of it and of its duplicates.
ADDRESSES_MAX: Final = 10


@dataclass(slots=True)
class WorkerEvent:
    """
    One publication on the exchange of events that is not confirmed yet.

    Attributes:
        id: The message id of the publication, the same at each repeat.
        routing_key: `message.delivered`, `user.online` and so on.
        user: The user.
        body: JSON, rendered when the event was decided.
        at_s: Unix time at which it was decided.
        reply_to: It is also published there, by the default exchange.
        correlation_id: Of both publications.
        message_id: Of the message that it is about; ``None`` if that has none, or if it is about
            presence.
        key: The handle by which the store finds it again; ``None`` with `memory:`, which needs
            none.

    """

    id: str
    routing_key: str
    user: str
    body: bytes
    at_s: float
    reply_to: str | None = None
    correlation_id: str | None = None
    message_id: str | None = None
    key: object = None

    @property
    def is_presence(self) -> bool:
        """Whether it says that a user came online or went offline."""
        return self.routing_key in (PresenceChange.ONLINE, PresenceChange.OFFLINE)

    def pack(self) -> bytes:
        """Return the bytes that `unpack_event` reads, without the key."""
        facts = (self.id, self.routing_key, self.user, self.at_s)
        address = (self.reply_to, self.correlation_id)
        head = orjson.dumps((*facts, *address, self.message_id))
        return b"%b\n%b" % (head, self.body)

    def copy_for(self, duplicate: Tracking) -> "WorkerEvent":
        """Return the same event for the producer of a duplicate."""
        return replace(
            self, reply_to=duplicate.reply_to, correlation_id=duplicate.correlation_id
        )


def unpack_event(packed: bytes, *, key: object) -> WorkerEvent:
    """Return the event that was packed."""
    head, _, body = packed.partition(b"\n")
    id_, routing_key, user, at_s, *rest = orjson.loads(head)
    # Events that an earlier version stored have no message id.
    reply_to, correlation_id, message_id = (*rest, None)[:3]
    address = (reply_to, correlation_id)
    return WorkerEvent(id_, routing_key, user, body, at_s, *address, message_id, key)


def fit_events(events: Iterable[WorkerEvent], *, max_bytes: int) -> list[WorkerEvent]:
    """Return the first of `events`, at least one, with bodies of at most `max_bytes`."""
    found: list[WorkerEvent] = []
    size_bytes = 0
    for event in events:
        size_bytes += len(event.body)
        if found and size_bytes > max_bytes:
            break
        found.append(event)
    return found


@dataclass(slots=True)
class Receipt:
    """
    A tracked message in an inbox whose final outcome is not decided yet.

    Attributes:
        message: The message. Its data may be missing.
        offset: Where it is in the inbox.
        tracking: What the producer asked for; without `undelivered_after_s` if that
            was published already.
        stored_id: Its `id`, if the store has one of its own for it.

    """

    message: Message
    offset: int
    tracking: Tracking
    stored_id: str = ""

    @property
    def id(self) -> str:
        """
        How the ids of all publications about the message begin: a consumer drops repeats.

        The time makes a difference where a store lost messages and gives offsets again.
        """
        if self.stored_id:
            return self.stored_id
        message = self.message
        facts = f"{self.offset} {message.taken_s!r} {message.user}"
        return blake2b(facts.encode(), digest_size=8).hexdigest()

    @property
    def late_s(self) -> float | None:
        """Unix time from which it counts as undelivered; ``None`` if never, or reported."""
        after_s = self.tracking.undelivered_after_s
        return None if after_s is None else self.message.taken_s + after_s

    def is_late(self, at: ClockReading) -> bool:
        """Return whether it has waited so long that it counts as undelivered."""
        late_s = self.late_s
        return late_s is not None and at.has_passed(
            late_s, since_s=self.message.taken_s
        )


def due_s(message: Message, tracking: Tracking) -> float | None:
    """Return when time alone next decides about a message; ``None`` if it does not."""
    deadline_s, after_s = message.deadline_s, tracking.undelivered_after_s
    if after_s is None:
        return deadline_s
    late_s = message.taken_s + after_s
    return late_s if deadline_s is None or late_s < deadline_s else deadline_s


def pack_receipt(message: Message, tracking: Tracking, stored_id: str = "") -> bytes:
    """Return the bytes that `unpack_receipt` reads; the data is not part of them."""
    receipt = (
        message.event, message.taken_s, message.id, message.deadline_s,
        tracking.wants_receipt, tracking.reply_to, tracking.correlation_id,
        tracking.undelivered_after_s, stored_id,
    )  # fmt: skip
    return orjson.dumps(receipt)


def unpack_receipt(packed: bytes, *, user: str, offset: int) -> Receipt:
    """Return the receipt that was packed; the message has no data."""
    event, taken_s, message_id, deadline_s, *asked, stored_id = orjson.loads(packed)
    message = Message(user, event, b"", taken_s, message_id, deadline_s)
    return Receipt(message, offset, Tracking(*asked), stored_id)


@dataclass(slots=True)
class Verdict:
    """
    What was decided about a receipt.

    Attributes:
        outcomes: What is to be published, in order.
        rest: The receipt that remains; ``None`` if the outcome is final.
        reason: Why the message was deleted, `age` or `limit`; ``None`` if it was not.

    """

    outcomes: Sequence[ReceiptOutcome]
    rest: Receipt | None
    reason: str | None


def decide(
    receipt: Receipt,
    *,
    delivered: int,
    at: ClockReading,
    oldest_s: float,
    absence: ReceiptOutcome | None,
) -> Verdict:
    """
    Decide about a receipt.

    Args:
        receipt: The receipt.
        delivered: The delivered mark.
        at: When that mark was moved, or now.
        oldest_s: Messages that were taken before it are too old.
        absence: Why the message is not in the inbox any more, TRIMMED or REPLACED; ``None``
            if it is.

    """
    final = absence
    if final is None:
        if receipt.message.taken_s < oldest_s:
            final = ReceiptOutcome.TRIMMED
        elif receipt.message.is_expired(at):
            # Also if a mark passes it now: a replay leaves it out.
            final = ReceiptOutcome.EXPIRED
        elif receipt.offset <= delivered:
            final = ReceiptOutcome.DELIVERED
    outcomes: list[ReceiptOutcome] = []
    tracking = receipt.tracking
    if tracking.undelivered_after_s is not None and (
        # It cannot be delivered any more. One that was replaced has a successor with a time
        # of its own.
        final in (ReceiptOutcome.TRIMMED, ReceiptOutcome.EXPIRED)
        or (final is not ReceiptOutcome.REPLACED and receipt.is_late(at))
    ):
        outcomes.append(ReceiptOutcome.UNDELIVERED)
        tracking = replace(tracking, undelivered_after_s=None)
    if final is not None and tracking.wants_receipt:
        outcomes.append(final)
    is_open = tracking.wants_receipt or tracking.undelivered_after_s is not None
    rest = replace(receipt, tracking=tracking) if final is None and is_open else None
    reason = None
    if final is ReceiptOutcome.TRIMMED:
        reason = "age" if receipt.message.taken_s < oldest_s else "limit"
    return Verdict(outcomes, rest, reason)


def duplicate_tracking(
    originals: Iterable[Tracking], duplicate: Tracking
) -> Tracking | None:
    """
    Return how a duplicate is tracked while the outcome of its message is open.

    Args:
        originals: Of the message, and of duplicates before this one.
        duplicate: What the producer of the duplicate wants.

    Returns:
        ``None`` if the address receives the outcome already, if the message has
        `ADDRESSES_MAX` addresses, or if it is not tracked.

    """
    known = list(originals)
    wanted = replace(duplicate, undelivered_after_s=None)
    if not duplicate.wants_receipt or not 0 < len(known) < ADDRESSES_MAX:
        return None
    if wanted in (replace(each, undelivered_after_s=None) for each in known):
        return None
    return wanted
