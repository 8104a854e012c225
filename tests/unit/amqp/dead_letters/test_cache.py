"""The memory of the last look answers while the head of the queue is as it was."""

from bridge.amqp.dead_letters.cache import KEPT_S, LetterIndex, Recording
from bridge.core.dead_letter import Letter
from bridge.enums import DeadLetterCause


def letter(number: int, *, error: str = "") -> Letter:
    return Letter(
        id=f"{number:024x}",
        reason=DeadLetterCause.OTHER,
        error=error,
        user="ann",
        event="message",
        message_id=None,
        dead_s=None,
        origin_exchange="",
        origin_queue="",
        attempts=0,
        redrives=0,
        body_bytes=2,
    )


def recorded(count: int) -> Recording:
    recording = Recording()
    for number in range(count):
        recording.add(letter(number))
    return recording


def test_letters_that_come_later_leave_the_head_as_it_was() -> None:
    """They stand behind; what is known stays true."""
    index = LetterIndex(lambda: 0.0)
    index.keep(recorded(3), depth=3)

    assert len(index.known(depth=3)) == 3
    assert len(index.known(depth=5)) == 3
    assert not index.is_empty


def test_a_queue_that_was_longer_is_another_one() -> None:
    """Also one that only grew since and shrank again: somebody took letters."""
    index = LetterIndex(lambda: 0.0)
    index.keep(recorded(3), depth=3)
    index.known(depth=5)

    assert not index.known(depth=4)
    assert index.is_empty


def test_what_is_known_is_forgotten_after_a_while() -> None:
    """Others may have taken as many as came, which counting does not show."""
    now_s = 0.0
    index = LetterIndex(lambda: now_s)
    index.keep(recorded(3), depth=3)

    now_s = KEPT_S
    assert index.is_empty
    assert not index.known(depth=3)


def test_memory_is_bounded_by_bytes_and_holds_the_first() -> None:
    """Texts are the sender's; the letters behind them are read from the queue again."""
    recording = Recording(max_bytes=10_000)
    for number in range(50):
        recording.add(letter(number, error=f"{number}" + "x" * 1000))

    assert 5 <= len(recording.letters) <= 9
    assert [int(one.id, 16) for one in recording.letters] == list(
        range(len(recording.letters))
    )
    assert recording.is_round


def test_a_text_that_many_share_is_counted_once() -> None:
    """A queue full of one fault must not count it for each letter."""
    shared = "x" * 5_000
    recording = Recording(max_bytes=10_000)
    for number in range(10):
        recording.add(letter(number, error=shared))

    assert len(recording.letters) == 10
