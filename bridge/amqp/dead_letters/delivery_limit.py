"""
Stop browsing before RabbitMQ drops dead letters at the queue's delivery limit.

Browsing returns messages to the queue, and before 4.3 RabbitMQ counts each return in
`x-delivery-count`. At the delivery limit of the queue (topology.py) it drops the message.
"""

from collections.abc import Callable
from typing import Final

import structlog

from bridge.core.message import Delivery
from bridge.core.properties import header_int
from bridge.errors import BrokerUnavailableError

log = structlog.get_logger(__name__)

# Well below the delivery limit of 1,000,000.
DELIVERIES_MAX: Final = 900_000
# Another client may have emptied the queue meanwhile: one browse per hour checks that.
CHECK_AGAIN_S: Final = 3600.0


class DeliveryLimitGuard:
    """Tracks the delivery count at the head of one queue."""

    def __init__(
        self, queue: str, now: Callable[[], float], *, limit: int = DELIVERIES_MAX
    ) -> None:
        self._queue = queue
        self._now = now
        self._limit = limit
        self._refused_until_s = float("-inf")

    def inspect(self, oldest: Delivery) -> None:
        """Read the delivery count of the message at the head, which has the highest one."""
        if not oldest.redelivered:
            return  # RabbitMQ has not counted yet, and any producer can set the header
        count = header_int(oldest.properties.headers, "x-delivery-count")
        if count is not None and count >= self._limit:
            self._refused_until_s = self._now() + CHECK_AGAIN_S
            log.error("dead_letters.delivery_limit_near", deliveries=count)

    def reset(self) -> None:
        """Allow browsing again, because dead letters were removed."""
        self._refused_until_s = float("-inf")

    def refuse_near_limit(self) -> None:
        """
        Refuse to browse the queue if that could make RabbitMQ drop messages.

        Raises:
            BrokerUnavailableError: If the delivery limit is near.

        """
        if self._now() < self._refused_until_s:
            raise BrokerUnavailableError(
                f"browse {self._queue}",
                f"its oldest messages were browsed {self._limit:,} times and RabbitMQ "
                "drops them soon after that; redrive or discard all of them",
            )
