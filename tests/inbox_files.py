"""SQLite inboxes with many messages, for tests and measurements."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import time

from bridge.core.message import Message
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.store import SqliteInbox

_BATCH = 5000


@dataclass(frozen=True, slots=True)
class Filling:
    """
    The content of a file.

    Attributes:
        messages: Number of messages, for random users.
        users: Number of users.
        data_bytes: Size of the JSON of each message.
        with_ids: Every n-th message has a message id; 0 = none.
        with_deadline: Every n-th message has a deadline in an hour; 0 = none.
        delivered: The delivered fraction of each inbox.

    """

    messages: int
    users: int
    data_bytes: int = 200
    with_ids: int = 4
    with_deadline: int = 10
    delivered: float = 0.5


async def fill(path: str, filling: Filling, retention: Retention) -> None:
    """Write and close the file at `path`; only the times differ between two calls."""
    inbox = SqliteInbox(path, retention)
    await inbox.open()
    try:
        last: dict[str, int] = {}
        for batch in _batches(filling):
            offsets = await inbox.append(batch)
            last.update(
                (message.user, offset)
                for message, offset in zip(batch, offsets, strict=True)
                if offset is not None
            )
        for user, offset in last.items():
            inbox.mark_delivered(user, int(offset * filling.delivered))
    finally:
        await inbox.close()


def _batches(filling: Filling) -> Iterator[Sequence[Message]]:
    generator = random.Random(7)  # noqa: S311 - reproducible
    data = b'{"text":"' + b"x" * (filling.data_bytes - 11) + b'"}'
    now_s = time()
    for start in range(0, filling.messages, _BATCH):
        yield [
            Message(
                f"user-{generator.randrange(filling.users)}",
                "message",
                data,
                now_s,
                f"id-{number}" if _is_due(number, filling.with_ids) else None,
                now_s + 3600 if _is_due(number, filling.with_deadline) else None,
            )
            for number in range(start, min(start + _BATCH, filling.messages))
        ]


def _is_due(number: int, each: int) -> bool:
    return bool(each) and number % each == 0
