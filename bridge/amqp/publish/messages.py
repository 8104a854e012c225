"""Publishing to the exchange of messages, as any worker does it."""

from typing import Protocol

from bridge.core.broker_names import BrokerNames
from bridge.core.properties import PERSISTENT, Properties


class RawPublisher(Protocol):
    """Publishes bytes with a confirm (broker/publisher.py)."""

    async def publish(
        self,
        exchange: str,
        routing_key: bytes,
        *,
        body: bytes,
        properties: Properties,
    ) -> None:
        """Publish; confirmed when it returns."""


class MessagePublisher:
    """From a message's parts to what a worker would put on the wire."""

    def __init__(self, publisher: RawPublisher, names: BrokerNames) -> None:
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
        properties = Properties(
            content_type=b"application/json",
            delivery_mode=PERSISTENT,
            expiration=None if ttl_s is None else str(int(ttl_s * 1000)).encode(),
            message_id=None if message_id is None else message_id.encode(),
            type=None if event is None else event.encode(),
        )
        await self._publisher.publish(
            self._exchange, user.encode(), body=data, properties=properties
        )
