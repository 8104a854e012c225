"""The token under which a bridge stores messages from a queue; see fencing.py."""

from typing import NamedTuple


class FencingToken(NamedTuple):
    """
    The fencing token of one consumer.

    Attributes:
        queue: The inbound queue of the consumer.
        number: Larger than the number of every earlier token of the queue.

    """

    queue: str
    number: int
