"""How often letters were looked at: RabbitMQ counts it, and drops them at its limit."""

from typing import Final

import structlog

from bridge.core.message import Delivery
from bridge.core.properties import header_int
from bridge.errors import BrokerUnavailableError

log = structlog.get_logger(__name__)

# RabbitMQ drops a letter at its limit of 1,000,000 (topology.py).
_LOOKS_MAX: Final = 900_000


class LetterWear:
    """Watches the count of one queue's letters."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._is_worn_out = False

    def watch(self, oldest: Delivery) -> None:
        """Note what the broker counted for the letter at the head: it has the most."""
        count = header_int(oldest.properties.headers, "x-delivery-count")
        if count is not None and count >= _LOOKS_MAX and not self._is_worn_out:
            self._is_worn_out = True
            log.error("dead_letters.worn_out", looks=count)

    def refuse_if_worn_out(self) -> None:
        """
        Let nobody look when the broker would soon drop letters for it.

        Raises:
            BrokerUnavailableError: If it is so.

        """
        if self._is_worn_out:
            raise BrokerUnavailableError(
                f"look at {self._queue}",
                f"its oldest letters were looked at {_LOOKS_MAX:,} times, and RabbitMQ "
                "drops them soon after; redrive or discard all of them",
            )
