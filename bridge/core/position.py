"""
A place in a user's inbox, and how it is written.

A position is an epoch and an offset, `EPOCH-OFFSET` on the wire, opaque to pages. The
epoch names the store's life: it changes when the store was lost or made anew, so that
a position from before is recognised instead of pointing at some other message.
Offsets count from 1 for each user, without holes: what lies between two of them and
is not there any more is exactly what was missed.
"""

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

_POSITION: Final = re.compile(r"([a-z0-9]{1,16})-(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two messages: everything up to `offset` lies behind it."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"


def parse_position(text: object) -> Position:
    """
    Read a position that a page sent.

    Raises:
        ValueError: If it is not one that any bridge has given out.

    """
    match = _POSITION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        message = "not a position"
        raise ValueError(message)
    return Position(match[1], int(match[2]))


def user_epoch(store_epoch: str, user: str) -> str:
    """
    Return the epoch of one user's positions.

    Each user has one of its own, because the stock client keeps its position when the
    page logs in as somebody else: in another user's inbox it must mean nothing.
    """
    return blake2b(f"{store_epoch} {user}".encode(), digest_size=8).hexdigest()


# --- the stock client's recovery id -----------------------------------------------------

_RECOVERY_ID: Final = re.compile(rf"({_POSITION.pattern})\.[A-Za-z0-9_-]{{1,32}}")


def render_recovery_id(began_at: Position, nonce: str) -> str:
    """
    Make the `pid` of a new window.

    The stock client sends it back when it reconnects. It holds where the window began,
    so that one that has received nothing yet can recover too, and the server needs to
    remember nothing.
    """
    return f"{began_at}.{nonce}"


def parse_recovery_id(text: object) -> Position:
    """
    Read where the window with this `pid` began.

    Raises:
        ValueError: If it is not a recovery id of any bridge.

    """
    match = _RECOVERY_ID.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        message = "not a recovery id"
        raise ValueError(message)
    return parse_position(match[1])
