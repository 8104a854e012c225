"""
A position in a user's inbox, and its form on the wire.

A position is an epoch and an offset, `EPOCH-OFFSET` on the wire, opaque to clients. The
epoch changes when the store is lost or created again, so a position from before is
recognized as such instead of pointing to an unrelated message. Offsets count from 1 for
each user, without gaps: the messages missing between two offsets are exactly those that
were deleted.
"""

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

_POSITION: Final = re.compile(r"([a-z0-9]{1,16})-(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two messages: after `offset` and before the next one."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"


def parse_position(text: object) -> Position:
    """
    Parse a position that a client sent.

    Raises:
        ValueError: If `text` does not have the form of a position.

    """
    match = _POSITION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        message = "not a position"
        raise ValueError(message)
    return Position(match[1], int(match[2]))


def user_epoch(store_epoch: str, user: str) -> str:
    """
    Return the epoch of one user's positions.

    It differs between users because the Socket.IO client keeps its position when the
    page logs in as another user. In that user's inbox the position must be invalid.
    """
    return blake2b(f"{store_epoch} {user}".encode(), digest_size=8).hexdigest()


# --- the recovery id of the Socket.IO client -----------------------------------------------------

_RECOVERY_ID: Final = re.compile(rf"({_POSITION.pattern})\.[A-Za-z0-9_-]{{1,32}}")


def render_recovery_id(began_at: Position, nonce: str) -> str:
    """
    Return the `pid` of a new window.

    The Socket.IO client sends it back when it reconnects. It contains the position at
    which the window started, so a window that has received nothing yet can recover too,
    and the server keeps no state for it.
    """
    return f"{began_at}.{nonce}"


def parse_recovery_id(text: object) -> Position:
    """
    Return the position at which the window with this `pid` started.

    Raises:
        ValueError: If `text` does not have the form of a recovery id.

    """
    match = _RECOVERY_ID.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        message = "not a recovery id"
        raise ValueError(message)
    return parse_position(match[1])
