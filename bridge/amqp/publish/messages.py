"""Publish to the exchange of messages, as producers do."""

from bridge.amqp.publish.publisher import Publisher
from bridge.core.broker_names import BrokerNames
from bridge.core.message_options import MessageOptions, render_options
from bridge.core.properties import PERSISTENT, Properties


class MessagePublisher:
    """Publishes messages with the properties that a producer would set."""

    def __init__(self, publisher: Publisher, names: BrokerNames) -> None:
        self._publisher = publisher
        self._exchange = names.messages

    async def publish_message(
        self,
        *,
        user: str,
        event: str | None,
        data: bytes,
        message_id: str | None,
        ttl_s: float | None,
        options: MessageOptions = MessageOptions(),  # noqa: B008 - frozen
    ) -> None:
        """
        Publish one message; the broker has stored it when this returns.

        Args:
            user: The receiving user.
            event: The name of the event; ``None`` = the default.
            data: One JSON value in UTF-8.
            message_id: Makes a repeated publish a duplicate, which the inbox drops.
            ttl_s: The time after which it expires; ``None`` = never.
            options: How it is delivered.

        Raises:
            BrokerUnavailableError: If the broker did not confirm it in time. It may have
                stored it nevertheless: publish again with the same id.
            PublishRefusedError: If the broker refuses it.

        """
        properties = Properties(
            content_type=b"application/json",
            headers=render_options(options),
            delivery_mode=PERSISTENT,
            expiration=None if ttl_s is None else str(int(ttl_s * 1000)).encode(),
            message_id=None if message_id is None else message_id.encode(),
            type=None if event is None else event.encode(),
        )
        await self._publisher.publish(
            self._exchange, user.encode(), body=data, properties=properties
        )
