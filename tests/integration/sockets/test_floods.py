"""A window that sends too much is told and closed; one that answers all it gets is not."""

import json

import aiohttp
import pytest

from bridge.enums import Closing
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.listeners import Plan, open_door
from tests.integration.sockets.raw_pages import (
    raw_poller,
    raw_window,
)
from tests.integration.sockets.test_bad_packets import still_serves
from tests.integration.sockets.test_messages import options

# --- too much


@pytest.mark.parametrize(
    "kind", ["event", "pong", "websocket ping", "binary", "connect"]
)
async def test_a_window_that_floods_is_told_and_closed(kind: str) -> None:
    """Whatever it sends: all of it costs the same loop that serves the others."""
    async with (
        open_door(Plan(events_per_second=10)) as door,
        raw_window(door) as window,
        raw_window(door) as neighbour,
    ):
        await neighbour.join("alice")
        await neighbour.synced()
        await window.join("alice")
        await window.synced()
        for _ in range(40):
            try:
                match kind:
                    case "event":
                        await window.emit("nonsense")
                    case "pong":
                        await window.send("3")
                    case "websocket ping":
                        await window.websocket.ping()
                    case "binary":
                        await window.websocket.send_bytes(b"x")
                    case "connect":
                        await window.send("40")
            except aiohttp.ClientConnectionResetError:
                break

        packets, _ = await window.ended()
        notices = [packet for packet in packets if "bridge:closing" in packet]
        notice = json.loads(notices[0][2:])[1]
        assert notice["code"] == "flooding"
        assert notice["reconnect"] is False
        assert packets[-1] == "41"  # so that the stock client stays away
        assert len(door.windows("alice")) == 1
        await still_serves(door, neighbour)
        assert door.count("windows_closed_total", code=Closing.FLOODING) == 1


async def test_a_page_may_answer_every_message_it_is_sent(pages: Pages) -> None:
    """Hundreds of acks in an instant, after a replay, are no flood: they were asked for."""
    async with open_door(Plan(events_per_second=10)) as door:
        await door.store("alice", *range(300))
        await pages.connected("page", door.url, **options("alice", "websocket"))
        for number in range(300):
            pages.command("emit", "page", "ack", f"nowhere-{number}")
        await pages.until("page", "answer", "ack", count=300, within_s=10)


async def test_a_burst_within_the_allowance_passes(pages: Pages) -> None:
    """A page that starts up sends several events at once."""
    async with open_door(Plan(events_per_second=10)) as door:
        await pages.connected("page", door.url, **options("alice", "websocket"))
        for _ in range(15):
            pages.command("emit", "page", "ack", "a-1")
        await pages.until("page", "answer", "ack", count=15)


async def test_a_flood_in_polling_bodies_is_told_too() -> None:
    """Many packets in one body count one by one; the last words wait for the next poll."""
    async with (
        open_door(Plan(events_per_second=10)) as small,
        raw_poller(small) as page,
    ):
        await page.join("alice")

        assert await page.post(*['42["nonsense"]'] * 100) == 200

        last_words = await page.poll()
        assert any('"flooding"' in packet for packet in last_words)
        assert last_words[-1] == "41"
        assert await page.post('42["nonsense"]') == 400
        with pytest.raises(AssertionError):
            await page.poll()
