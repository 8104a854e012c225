"""Publish to the exchange of messages, as producers do."""

from bridge.amqp.publish.publisher import Publisher
from bridge.core.broker_names import BrokerNames
from bridge.core.message_options import MessageOptions, render_options
from bridge.core.properties import PERSISTENT, Properties


def message_properties(
    *,
    event: str | None,
    message_id: str | None,
    ttl_s: float | None,
    options: MessageOptions,
) -> Properties:
    """Return the properties of a message; the arguments are those of `publish_message`."""
    tracking = options.tracking
    reply_to = tracking.reply_to if tracking else None
    return Properties(
        content_type=b"application/json",
        headers=render_options(options),
        delivery_mode=PERSISTENT,
        reply_to=None if reply_to is None else reply_to.encode(),
        expiration=None if ttl_s is None else str(int(ttl_s * 1000)).encode(),
        message_id=None if message_id is None else message_id.encode(),
        type=None if event is None else event.encode(),
    )


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
        options: MessageOptions = MessageOptions(),  # noqa: B008 - never modified
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
        properties = message_properties(
            event=event, message_id=message_id, ttl_s=ttl_s, options=options
        )
        await self._publisher.publish(
            self._exchange, user.encode(), body=data, properties=properties
        )
