"""The upgrade from polling to a WebSocket when it stalls or the session is closed."""

import asyncio
import time

from tests.integration.sockets.raw_pages import raw_poller, raw_window
from tests.integration.sockets.running_server import RunningServer


async def test_a_client_with_a_stalled_upgrade_continues_to_poll(
    server: RunningServer,
) -> None:
    """
    As behind a proxy that forwards the handshake and nothing after it.

    If its polls returned at once, it would poll in a busy loop, and its messages would
    wait until the deadline of the upgrade.
    """
    async with raw_poller(server) as page:
        await page.join("alice")
        async with raw_window(server, sid=page.sid) as upgrade:
            await server.store("alice", 1)
            assert '42["message",1' in (await page.poll())[0]
            poll = asyncio.create_task(page.poll())

            await upgrade.send("2probe")

            assert await upgrade.receive() == "3probe"
            assert await poll == ["6"]  # so that the client can finish the upgrade
            await upgrade.send("5")
            await server.store("alice", 2)
            assert '42["message",2' in await upgrade.receive()


async def test_a_window_closed_during_its_upgrade_gets_the_notice(
    server: RunningServer,
) -> None:
    """Without the notice the stock client would assume a bad network and reconnect."""
    async with raw_poller(server) as page:
        await page.join("alice")
        async with raw_window(server, sid=page.sid) as upgrade:
            await upgrade.send("2probe")
            assert await upgrade.receive() == "3probe"
            assert await page.poll() == ["6"]  # it no longer polls

            server.io.kick("alice")
            await upgrade.send("5")

            packets, _ = await upgrade.ended()
    assert '"kicked"' in packets[0]
    assert packets[-1] == "41"


async def test_polls_during_an_upgrade_do_not_return_at_once(
    server: RunningServer,
) -> None:
    """A client whose upgrade gets stuck half-way would poll in a busy loop."""
    async with raw_poller(server) as page:
        await page.join("alice")
        async with raw_window(server, sid=page.sid) as upgrade:
            await upgrade.send("2probe")
            assert await upgrade.receive() == "3probe"
            began_s = time.monotonic()
            for _ in range(3):
                assert await page.poll() == ["6"]
            assert time.monotonic() - began_s > 0.25

            await server.store("alice", 1)
            assert '42["message",1' in (await page.poll())[0]  # not held back
            await upgrade.send("5")
            await server.store("alice", 2)
            assert '42["message",2' in await upgrade.receive()
            assert await page.post("3") == 400  # only the WebSocket is used now
            await server.store("alice", 3)
            assert '42["message",3' in await upgrade.receive()
