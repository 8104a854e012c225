"""Polls of several pages over one connection, as a proxy sends them that keeps connections."""

import gc

from yarl import URL

from bridge.sockets.engineio.polling import PollQueue
from tests.conftest import eventually
from tests.integration.sockets.listeners import Plan, open_door
from tests.integration.sockets.raw_pages import RawPoller, raw_poller, raw_tcp


def request_of(page: RawPoller) -> bytes:
    """Return a poll, as a proxy passes it on."""
    return f"GET {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_a_page_that_reads_slowly_is_no_others_fault() -> None:
    """
    Its answer waits in the connection over which the other was answered before.

    Taken for the other's, it would end a session that has read all it was sent.
    """
    async with (
        open_door(Plan(outbound_bytes=64_000_000)) as door,
        raw_tcp(door, receive_bytes=4096) as proxy,
        raw_poller(door) as page,
        raw_poller(door) as slow,
    ):
        await page.join("alice")
        await slow.join("bob")
        await door.store("alice", "first")
        await proxy.send(request_of(page))
        await proxy.receive_until(b"first")
        # Much, because the kernel takes a lot out of our sight.
        await door.store("bob", *("x" * 1_000_000 for _ in range(10)))
        await proxy.send(request_of(slow))
        (of_bob,) = door.windows("bob")
        await eventually(lambda: of_bob.session.waiting_bytes > 0)

        (of_alice,) = door.windows("alice")
        assert of_alice.session.waiting_bytes == 0
        await door.store("alice", "second")
        assert '42["message","second"' in (await page.poll())[0]


async def test_nothing_is_remembered_of_connections_and_sessions_that_ended() -> None:
    """A page polls for days, each time over another connection."""
    gc.collect()
    before = len(PollQueue._last_responses)
    async with open_door() as door, raw_poller(door) as page:
        await page.join("alice")
        for number in range(5):
            await door.store("alice", number)
            async with raw_tcp(door) as connection:
                await connection.send(request_of(page))
                await connection.receive_until(b"message")
        assert len(PollQueue._last_responses) <= before + 1
        door.cut("alice")
        door.tick(later_s=5)
    del door, page
    gc.collect()
    assert len(PollQueue._last_responses) <= before
