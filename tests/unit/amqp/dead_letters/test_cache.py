"""The cache answers while the head of the dead-letter queue is unchanged."""

from bridge.amqp.dead_letters.cache import KEPT_S, CacheRecording, DeadLetterCache
from bridge.core.dead_letter import StoredDeadLetter
from bridge.enums import DeadLetterReason


def stored(number: int, *, error: str = "") -> StoredDeadLetter:
    return StoredDeadLetter(
        id=f"{number:024x}",
        reason=DeadLetterReason.OTHER,
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


def recorded(count: int) -> CacheRecording:
    recording = CacheRecording()
    for number in range(count):
        recording.add(stored(number))
    return recording


def test_the_head_stays_cached_while_the_queue_grows() -> None:
    """New dead letters arrive at the end of the queue."""
    cache = DeadLetterCache(lambda: 0.0)
    cache.fill(recorded(3), depth=3)

    assert len(cache.head(depth=3)) == 3
    assert len(cache.head(depth=5)) == 3
    assert not cache.is_empty


def test_the_cache_is_cleared_when_the_queue_shrinks() -> None:
    """Another client took messages, even if the queue is longer than when it was read."""
    cache = DeadLetterCache(lambda: 0.0)
    cache.fill(recorded(3), depth=3)
    cache.head(depth=5)

    assert not cache.head(depth=4)
    assert cache.is_empty


def test_the_cache_expires() -> None:
    """The depth does not show that another client took as many as arrived."""
    now_s = 0.0
    cache = DeadLetterCache(lambda: now_s)
    cache.fill(recorded(3), depth=3)

    now_s = KEPT_S
    assert cache.is_empty
    assert not cache.head(depth=3)


def test_a_recording_keeps_the_first_entries_up_to_its_limit() -> None:
    """Producers choose the texts; later messages are read from the queue again."""
    recording = CacheRecording(max_bytes=10_000)
    for number in range(50):
        recording.add(stored(number, error=f"{number}" + "x" * 1000))

    assert 5 <= len(recording.entries) <= 9
    assert [int(entry.id, 16) for entry in recording.entries] == list(
        range(len(recording.entries))
    )
    assert recording.is_block_complete


def test_a_text_shared_by_many_entries_is_counted_once() -> None:
    """A queue full of the same error must not count its text for each entry."""
    shared = "x" * 5_000
    recording = CacheRecording(max_bytes=10_000)
    for number in range(10):
        recording.add(stored(number, error=shared))

    assert len(recording.entries) == 10
