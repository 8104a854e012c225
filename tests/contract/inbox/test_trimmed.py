"""Every store counts the messages that the limit of an inbox deletes."""

from tests.contract.inbox.conftest import StoreUnderTest

LIMIT = 100


async def test_messages_over_the_limit_are_counted(store: StoreUnderTest) -> None:
    """Each of them once, for every user, in small and in large batches."""
    await store.append("ann", *[b"1"] * LIMIT)
    await store.append("bob", *[b"1"] * (LIMIT - 1))
    assert store.inbox.trimmed == 0

    batch = [store.message(user, b"2") for user in ("ann", "bob", "ann", "cid")]
    await store.inbox.append(batch)
    assert store.inbox.trimmed == 2

    for _ in range(30):
        await store.append("bob", b"3")
    await store.append("cid", *[b"3"] * (2 * LIMIT))
    assert store.inbox.trimmed == 2 + 30 + 1 + LIMIT


async def test_what_is_deleted_for_its_age_is_not_counted(
    store: StoreUnderTest,
) -> None:
    """The inbox of a user who receives a message a day never reaches the limit."""
    for _ in range(3):
        await store.append("ann", *[b"1"] * (LIMIT - 1))
        store.advance(2000)
        await store.inbox.sweep()
    assert (await store.inbox.state("ann")).first > 2 * LIMIT

    await store.append("ann", *[b"2"] * LIMIT)
    assert store.inbox.trimmed == 0
    await store.append("ann", b"3")
    assert store.inbox.trimmed == 1


async def test_a_duplicate_deletes_nothing(store: StoreUnderTest) -> None:
    """A repeated publish is not stored, so nothing makes room for it."""
    await store.append("ann", *[b"1"] * LIMIT)
    message = store.message("ann", b"2", message_id="7")
    await store.inbox.append([message])
    again = store.message("ann", b"2", message_id="7")

    assert await store.inbox.append([again]) == [None]
    assert store.inbox.trimmed == 1


async def test_messages_with_keys_are_counted(store: StoreUnderTest) -> None:
    """A message that a newer one replaces is not; SQLite deletes the others in blocks."""
    await store.append("ann", *[b"1"] * 10)
    for number in range(LIMIT):
        message = store.message("ann", b"2", key=str(number % 5))
        await store.inbox.append([message])
    assert store.inbox.trimmed == 0

    await store.append("ann", *[b"3"] * (5 * LIMIT))
    deleted = 10 + 5 + 5 * LIMIT - LIMIT
    assert deleted - 10 - 2 * 16 <= store.inbox.trimmed <= deleted
    if store.inbox.description.startswith(("memory", "redis")):
        assert store.inbox.trimmed == deleted
