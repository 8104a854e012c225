"""What tests of SQLite inboxes share: a clock, messages, and files looked at from outside."""

import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any

from bridge.core.message import Message, Stored
from bridge.inbox.sqlite.store import SqliteInbox

# Opens the store once more, for as long as a block lasts.
Opened = Callable[..., AbstractAsyncContextManager[SqliteInbox]]


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now_s


def message(user: str, data: bytes, message_id: str | None = None) -> Message:
    """Return a message of the clock's first moment."""
    return Message(user, "message", data, 1_000_000.0, message_id)


async def read_all(inbox: SqliteInbox, user: str) -> list[Stored]:
    """Read all that is kept for `user`."""
    page = await inbox.read(user, after=0, max_messages=10_000, max_bytes=1 << 30)
    return list(page.messages)


def rows(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """Ask a file that no bridge has open."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def remove(path: Path) -> None:
    """Delete a file."""
    path.unlink()


def contents(path: Path) -> bytes:
    """Return all of a file."""
    return path.read_bytes()


def is_there(path: Path) -> bool:
    """Whether there is such a file."""
    return path.exists()
