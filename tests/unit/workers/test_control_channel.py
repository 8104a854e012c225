"""What is said between supervisor and worker."""

import asyncio
import socket

import pytest

from bridge.workers.control_channel import Word, hear, word_of


@pytest.mark.parametrize("word", list(Word))
def test_a_word_is_understood_as_it_was_said(word: Word) -> None:
    """Both ends have one list."""
    assert word_of(word.value) is word


@pytest.mark.parametrize("line", [b"", b"dra"])
def test_the_end_of_the_line_is_no_word(line: bytes) -> None:
    """A supervisor that was killed has said nothing, or half a word."""
    assert word_of(line) is None


async def test_an_end_before_all_was_heard_is_an_end_too() -> None:
    """The kernel calls it a reset: a supervisor that was killed, a worker that has crashed."""
    ours, its = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    writer.write(Word.RELOAD.value)
    its.sendall(Word.LISTENING.value)
    assert await hear(reader) is Word.LISTENING

    its.close()

    assert await hear(reader) is None
    writer.close()
