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
        """
        Publish one message; it is safe when this returns.

        Args:
            user: Who is to get it.
            event: Under which name; `None` for the default.
            data: One JSON value in UTF-8.
            message_id: What makes publishing it again harmless.
            ttl_s: After which it is not delivered any more.

        Raises:
            BrokerUnavailableError: If the broker did not confirm it in time. It may
                have it nevertheless: publish again with the same id.
            PublishRefusedError: If the broker will not take it.

        """
