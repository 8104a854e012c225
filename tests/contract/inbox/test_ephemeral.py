"""Ephemeral messages: published to the windows that are open, and stored nowhere."""

from bridge.core.message import Message
from tests.conftest import eventually
from tests.contract.inbox.conftest import StoreUnderTest


async def test_an_ephemeral_message_is_published_and_not_stored(
    store: StoreUnderTest,
) -> None:
    """Nothing in the inbox changes, and no id is remembered."""
    announced: list[Message] = []
    store.inbox.subscribe(store.fed.extend, None, announced.extend)
    await store.inbox.follow("alice")
    await store.append("alice", b"1")
    before = await store.inbox.state("alice")

    twice = [store.message("alice", b"2", message_id="m") for _ in range(2)]
    await store.inbox.announce([*twice, store.message("bob", b"3")])

    await eventually(lambda: len(announced) == 2)
    assert [message.data for message in announced] == [b"2", b"2"]
    assert await store.inbox.state("alice") == before
    assert await store.inbox.append([store.message("alice", b"4", message_id="m")]) == [
        2
    ]
    await eventually(lambda: len(store.fed) == 2)
    assert [each.message.data for each in store.fed] == [b"1", b"4"]
