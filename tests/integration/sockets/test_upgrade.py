"""From polling to a websocket, when one of the two is late or the session ends meanwhile."""

import asyncio

from tests.integration.sockets.listeners import Door
from tests.integration.sockets.raw_pages import raw_poller, raw_window


async def test_a_page_whose_websocket_says_nothing_polls_as_before(door: Door) -> None:
    """
    As behind a proxy that lets the handshake through and holds back what follows.

    Answered at once, its polls would be as many as the network carries, and its messages
    would wait, until the probe's deadline.
    """
    async with raw_poller(door) as page:
        await page.join("alice")
        async with raw_window(door, sid=page.sid) as upgrade:
            await door.store("alice", 1)
            assert '42["message",1' in (await page.poll())[0]
            poll = asyncio.create_task(page.poll())

            await upgrade.send("2probe")

            assert await upgrade.receive() == "3probe"
            assert await poll == ["6"]  # so that the page can go over
            await upgrade.send("5")
            await door.store("alice", 2)
            assert '42["message",2' in await upgrade.receive()


async def test_a_page_that_is_closed_while_it_goes_over_gets_its_last_words(
    door: Door,
) -> None:
    """Without them a stock client takes it for a bad network, and comes back."""
    async with raw_poller(door) as page:
        await page.join("alice")
        async with raw_window(door, sid=page.sid) as upgrade:
            await upgrade.send("2probe")
            assert await upgrade.receive() == "3probe"
            assert await page.poll() == ["6"]  # it polls no more

            door.server.kick("alice")
            await upgrade.send("5")

            packets, _ = await upgrade.ended()
    assert '"kicked"' in packets[0]
    assert packets[-1] == "41"
