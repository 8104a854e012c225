"""
A position in a user's inbox, and its form on the wire.

A position is an epoch and an offset, `EPOCH-OFFSET` on the wire, opaque to clients. The
epoch changes when the store is lost or created again, so a position from before is
recognized as such instead of pointing to an unrelated message. Offsets count from 1 for
each user, without gaps: the messages missing between two offsets are exactly those that
were deleted.

While messages are held back from a window (core/held_values.py), the positions of newer ones
have the form `EPOCH-SEEN-BEHIND-BEHIND…`: the window has received everything up to the offset
SEEN, except the messages that are so far behind it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

# The most messages that are held back from a window.
HELD_MAX: Final = 100
_OFFSET: Final = r"(0|[1-9][0-9]{0,17})"
_POSITION: Final = re.compile(
    rf"([a-z0-9]{{1,16}})-{_OFFSET}((?:-{_OFFSET}){{0,{HELD_MAX}}})"
)


@dataclass(frozen=True, slots=True)
class Position:
    """
    A place between two messages: after `offset` and before the next one.

    Attributes:
        epoch: The epoch.
        offset: The window has everything up to it.
        seen: The window has everything up to it, except `late`; ``None`` if none is late.
        late: The offsets of messages that were held back from the window, in order.

    """

    epoch: str
    offset: int
    seen: int | None = None
    late: tuple[int, ...] = ()

    @classmethod
    def with_late(cls, epoch: str, seen: int, late: Iterable[int]) -> "Position":
        """Return the position of a window that has all up to `seen`, except `late`."""
        older = tuple(offset for offset in late if offset <= seen)
        return cls(epoch, older[0] - 1, seen, older) if older else cls(epoch, seen)

    @property
    def newest(self) -> int:
        """The newest offset that the window has received."""
        return self.offset if self.seen is None else self.seen

    def __str__(self) -> str:
        behind = (f"-{self.newest - offset}" for offset in self.late)
        return f"{self.epoch}-{self.newest}{''.join(behind)}"


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
    seen = int(match[2])
    late = [seen - int(behind) for behind in match[3].split("-")[1:]]
    if late != sorted(set(late)) or min(late, default=1) < 1:
        message = "not a position"
        raise ValueError(message)
    return Position.with_late(match[1], seen, late)


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
