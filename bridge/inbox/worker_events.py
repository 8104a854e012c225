"""The bodies of what is published: about messages, deliveries that never were stored, and users."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from math import inf

import orjson

from bridge.core.clock_reading import ClockReading
from bridge.core.message import Delivery, Message, message_id_of, tracking_for
from bridge.core.message_options import Tracking, asks_for_receipt
from bridge.core.receipts import Receipt, WorkerEvent, decide
from bridge.core.settlement import trial_key
from bridge.enums import EVENT_DEFAULT, DeadLetterReason, PresenceChange, ReceiptOutcome


def render_event(
    receipt: Receipt,
    outcome: ReceiptOutcome,
    *,
    at_s: float,
    reason: str | None = None,
    data: bytes | None = None,
) -> WorkerEvent:
    """
    Return what is published about a message.

    Args:
        receipt: The message.
        outcome: What happened to it.
        at_s: Unix time at which that was decided.
        reason: Why, if that is not obvious.
        data: The data of the message, which only an undelivered one needs; ``None`` if it
            is not known.

    """
    message, tracking = receipt.message, receipt.tracking
    name = outcome.value  # a member of an enum is slow to format
    body: dict[str, object] = {
        "message_id": message.id,
        "user": message.user,
        "event": message.event,
        "outcome": name,
        "at": datetime.fromtimestamp(at_s, UTC),
        "delay_ms": max(0, round((at_s - message.taken_s) * 1000)),
    }
    is_final = outcome is not ReceiptOutcome.UNDELIVERED
    if is_final and reason is not None:
        body["reason"] = reason
    if not is_final and data is not None:
        body["data"] = orjson.Fragment(data)
    return WorkerEvent(
        f"{receipt.id}.{name}",
        f"message.{name}",
        message.user,
        _dumps(body),
        at_s,
        tracking.reply_to if is_final else None,
        tracking.correlation_id,
        message.id,
    )


def unstored_id(delivery: Delivery) -> str:
    """
    Return an id for what is published about a delivery that was never in an inbox.

    It is the same if the delivery is repeated.
    """
    properties = delivery.properties
    digest = blake2b(trial_key(delivery), digest_size=8)
    for part in (properties.correlation_id, properties.reply_to, properties.timestamp):
        digest.update(b"\0" + (part or b""))
    return digest.hexdigest()


def dead_event(
    delivery: Delivery, reason: DeadLetterReason, *, at_s: float
) -> WorkerEvent | None:
    """
    Return what is published about a delivery that became a dead letter.

    Args:
        delivery: May be invalid in any way.
        reason: Why it is a dead letter.
        at_s: Unix time.

    Returns:
        ``None`` if it does not ask for a receipt.

    """
    properties = delivery.properties
    if not asks_for_receipt(properties.headers):
        return None
    user = delivery.routing_key.decode(errors="backslashreplace")
    event = (properties.type or b"").decode(errors="backslashreplace") or EVENT_DEFAULT
    message = Message(user, event, b"", at_s, message_id_of(delivery))
    asked = Tracking(wants_receipt=True)
    tracking = tracking_for(properties, asked)
    receipt = Receipt(message, 0, tracking, unstored_id(delivery))
    return render_event(receipt, ReceiptOutcome.DEAD, at_s=at_s, reason=reason)


def expired_events(
    delivery: Delivery, message: Message, at: ClockReading
) -> Sequence[WorkerEvent]:
    """Return what is published about a message that expired before it could be stored."""
    options = message.options
    if options is None or options.tracking is None:
        return ()
    receipt = Receipt(message, 0, options.tracking, unstored_id(delivery))
    verdict = decide(receipt, delivered=0, at=at, oldest_s=-inf, absence=None)
    return [
        render_event(receipt, outcome, at_s=at.now_s, data=message.data)
        for outcome in verdict.outcomes
    ]


def presence_event(user: str, *, windows: int, at_s: float, seq: int) -> WorkerEvent:
    """
    Return `user.online`, or `user.offline` if the user has no windows.

    Args:
        user: The user.
        windows: How many windows of the user the bridge that decided it has.
        at_s: Unix time at which it was decided.
        seq: Larger than in all earlier events about this user.

    """
    body = {
        "user": user,
        "windows": windows,
        "at": datetime.fromtimestamp(at_s, UTC),
        "seq": seq,
    }
    # The name of a user may be too long for the id of a message.
    digest = blake2b(user.encode(), digest_size=8).hexdigest()
    change = PresenceChange.ONLINE if windows else PresenceChange.OFFLINE
    return WorkerEvent(f"{digest}.{seq}", change, user, _dumps(body), at_s)


def _dumps(body: Mapping[str, object]) -> bytes:
    # A copy, because orjson's bytes keep a larger buffer alive.
    return bytes(memoryview(orjson.dumps(body)))
