"""How often letters were looked at: RabbitMQ counts it, and drops them at its limit."""

from collections.abc import Callable
from typing import Final

import structlog

from bridge.core.message import Delivery
from bridge.core.properties import header_int
from bridge.errors import BrokerUnavailableError

log = structlog.get_logger(__name__)

# RabbitMQ drops a letter at its limit of 1,000,000 (topology.py).
_LOOKS_MAX: Final = 900_000
# Somebody may have emptied the queue by other means: one look in so long finds out.
LOOK_AGAIN_S: Final = 3600.0


class LetterWear:
    """Watches the count of one queue's letters."""

    def __init__(self, queue: str, now: Callable[[], float]) -> None:
        self._queue = queue
        self._now = now
        self._refused_until_s = float("-inf")

    def watch(self, oldest: Delivery) -> None:
        """Note what the broker counted for the letter at the head: it has the most."""
        if not oldest.redelivered:
            return  # the broker has counted nothing yet, and anybody can publish the header
        count = header_int(oldest.properties.headers, "x-delivery-count")
        if count is not None and count >= _LOOKS_MAX:
            self._refused_until_s = self._now() + LOOK_AGAIN_S
            log.error("dead_letters.worn_out", looks=count)

    def forget(self) -> None:
        """Letters were taken off: the next look tells how it is now."""
        self._refused_until_s = float("-inf")

    def refuse_if_worn_out(self) -> None:
        """
        Let nobody look when the broker would soon drop letters for it.

        Raises:
            BrokerUnavailableError: If it is so.

        """
        if self._now() < self._refused_until_s:
            raise BrokerUnavailableError(
                f"look at {self._queue}",
                f"its oldest letters were looked at {_LOOKS_MAX:,} times, and RabbitMQ "
                "drops them soon after; redrive or discard all of them",
            )
