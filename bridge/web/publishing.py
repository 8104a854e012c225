"""What the HTTP doors ask of the broker's side."""

from typing import Protocol


class MessagePublisher(Protocol):
    """Publishes to the exchange of messages, as any worker does."""

    async def publish_message(
        self,
        *,
        user: str,
        event: str | None,
        data: bytes,
        message_id: str | None,
        ttl_s: float | None,
    ) -> None:
        """Publish one message; safe when this returns (broker/messages.py says more)."""
