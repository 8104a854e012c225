"""Events that workers receive from the exchange `bridge.events`."""

from typing import Annotated

from pydantic import Field

from bridge.core.contracts.base import (
    Absent,
    AnyJson,
    Contract,
    Event,
    User,
    examples,
    listed,
)
from bridge.core.contracts.control import Time
from bridge.enums import ReceiptOutcome


class MessageEvent(Contract):
    """
    What happened to a message that asked for a receipt; the routing key is `message.OUTCOME`.

    The property `message_id` of the event is the same at each repeat of it.
    """

    model_config = examples(
        {
            "message_id": "0b7c2a1e-order-17-3",
            "user": "alice",
            "event": "order.changed",
            "outcome": "delivered",
            "at": "2026-01-31T12:00:00.250+00:00",
            "delay_ms": 250,
        }
    )

    message_id: str | None = Field(
        description="The `message_id` of the message; null without one."
    )
    user: User = Field(description="The user of the message.")
    event: Event = Field(description="The event of the message.")
    outcome: Annotated[ReceiptOutcome, listed(ReceiptOutcome)] = Field(
        description="What happened."
    )
    at: Time = Field(description="When it was decided (RFC 3339).")
    delay_ms: Annotated[int, Field(ge=0)] = Field(
        description="Milliseconds since bridge received the message."
    )
    reason: str | Absent = Field(
        None, description="Of `dead`: the reason of the dead letter."
    )
    data: AnyJson | Absent = Field(
        None, description="Of `undelivered`: the data of the message."
    )


class PresenceEvent(Contract):
    """
    A user came online or went offline: the routing key is `user.online` or `user.offline`.

    The property `message_id` of the event is the same at each repeat of it.
    """

    model_config = examples(
        {
            "user": "alice",
            "windows": 1,
            "at": "2026-01-31T12:00:00.250+00:00",
            "seq": 1769860800250,
        }
    )

    user: User = Field(description="The user.")
    windows: Annotated[int, Field(ge=0)] = Field(
        description="How many windows the user has on the bridge that reports it; "
        "0 = offline."
    )
    at: Time = Field(description="When it was decided (RFC 3339).")
    seq: Annotated[int, Field(ge=1)] = Field(
        description="Larger than in all earlier events about this user. "
        "An event with a lower one than the last is late: drop it."
    )
