"""
The line between the supervisor and one worker: a socket pair, and one word a line.

Not signals, because whoever ends a bridge (a service manager, a terminal) often signals
every process of it, and a worker could not tell the second word from the first. And a
line has an end: a worker whose supervisor is gone, however it went, hears that.
"""

import asyncio
from enum import Enum


class Word(Enum):
    """What is said."""

    LISTENING = b"listening\n"  # the worker: windows may come
    DRAIN = b"drain\n"  # the supervisor: go in order
    INSIST = b"insist\n"  # the supervisor: go at once
    RELOAD = b"reload\n"  # the supervisor: read the settings again


async def hear(reader: asyncio.StreamReader) -> Word | None:
    """Wait for the next word; ``None`` at the end. Cancellation: safe."""
    try:
        return word_of(await reader.readline())
    except ConnectionError:  # the other one has ended without hearing all that we said
        return None


def word_of(line: bytes) -> Word | None:
    """Return what was said; the end of the line, or of a half line, is ``None``."""
    return Word(line) if line.endswith(b"\n") else None
