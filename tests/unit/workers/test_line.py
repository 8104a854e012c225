"""What is said between supervisor and worker."""

import pytest

from bridge.workers.line import Word, word_of


@pytest.mark.parametrize("word", list(Word))
def test_a_word_is_understood_as_it_was_said(word: Word) -> None:
    """Both ends have one list."""
    assert word_of(word.value) is word


@pytest.mark.parametrize("line", [b"", b"dra"])
def test_the_end_of_the_line_is_no_word(line: bytes) -> None:
    """A supervisor that was killed has said nothing, or half a word."""
    assert word_of(line) is None
