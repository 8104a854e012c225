"""Polls of several clients over one connection, as from a proxy that reuses connections."""

import gc

from yarl import URL

from bridge.sockets.engineio.polling import PollQueue
from tests.conftest import eventually
from tests.integration.sockets.raw_pages import RawPoller, raw_poller, raw_tcp
from tests.integration.sockets.running_server import Plan, open_server


def request_of(page: RawPoller) -> bytes:
    """Return a poll as a proxy forwards it."""
    return f"GET {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_a_slow_client_does_not_affect_others_on_the_same_connection() -> None:
    """
    Its response waits in the connection that carried a response to the other before.

    If it counted for the other, a session that has read everything would be closed.
    """
    async with (
        open_server(Plan(outbound_bytes=64_000_000)) as server,
        raw_tcp(server, receive_bytes=4096) as proxy,
        raw_poller(server) as page,
        raw_poller(server) as slow,
    ):
        await page.join("alice")
        await slow.join("bob")
        await server.store("alice", "first")
        await proxy.send(request_of(page))
        await proxy.receive_until(b"first")
        # A large amount, because kernel buffers hold a lot.
        await server.store("bob", *("x" * 1_000_000 for _ in range(10)))
        await proxy.send(request_of(slow))
        (of_bob,) = server.windows("bob")
        await eventually(lambda: of_bob.session.waiting_bytes > 0)

        (of_alice,) = server.windows("alice")
        assert of_alice.session.waiting_bytes == 0
        await server.store("alice", "second")
        assert '42["message","second"' in (await page.poll())[0]


async def test_closed_connections_and_sessions_are_forgotten() -> None:
    """A client polls for days, each time over another connection."""
    gc.collect()
    before = len(PollQueue._last_responses)
    async with open_server() as server, raw_poller(server) as page:
        await page.join("alice")
        for number in range(5):
            await server.store("alice", number)
            async with raw_tcp(server) as connection:
                await connection.send(request_of(page))
                await connection.receive_until(b"message")
        assert len(PollQueue._last_responses) <= before + 1
        server.cut("alice")
        server.tick(later_s=5)
    del server, page
    gc.collect()
    assert len(PollQueue._last_responses) <= before
