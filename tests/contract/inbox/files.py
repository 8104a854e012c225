"""Helpers for tests of SQLite inboxes: a clock, messages, and direct access to files."""

import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any

from bridge.clock import SteadyClock
from bridge.core.message import Message, Stored
from bridge.inbox.sqlite.store import SqliteInbox

# Opens the inbox file for the duration of a block.
OpenInbox = Callable[..., AbstractAsyncContextManager[SqliteInbox]]


class Clock:
    """
    A clock that moves only when a test sets it.

    Attributes:
        now_s: Unix time.
        jumped_s: How much of it is no real time, but jumps of the wall clock.

    """

    def __init__(self) -> None:
        self.now_s = 1_000_000.0
        self.jumped_s = 0.0

    def jump(self, seconds: float) -> None:
        """Set the wall clock ahead by `seconds`, or back."""
        self.now_s += seconds
        self.jumped_s += seconds

    @property
    def steady(self) -> SteadyClock:
        """A steady clock of a new process, which follows this clock."""
        return SteadyClock(wall=self, real=lambda: self.now_s - self.jumped_s)

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


def message(user: str, data: bytes, message_id: str | None = None) -> Message:
    """Return a message received at the start time of the clock."""
    return Message(user, "message", data, 1_000_000.0, message_id)


async def read_all(inbox: SqliteInbox, user: str) -> list[Stored]:
    """Read all kept messages of `user`."""
    page = await inbox.read(user, after=0, max_messages=10_000, max_bytes=1 << 30)
    return list(page.messages)


def rows(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """Run a query on the file with a connection of its own."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def remove(path: Path) -> None:
    """Delete a file."""
    path.unlink()


def contents(path: Path) -> bytes:
    """Return the contents of a file."""
    return path.read_bytes()


def exists(path: Path) -> bool:
    """Return whether the file exists."""
    return path.exists()
