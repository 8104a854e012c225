"""Fences: what keeps a bridge from storing messages of a queue that another one has by now."""

from typing import NamedTuple


class Fence(NamedTuple):
    """
    A bridge's turn at a queue.

    Attributes:
        queue: The inbound queue that the messages came from.
        token: Larger than that of every turn before.

    """

    queue: str
    token: int
