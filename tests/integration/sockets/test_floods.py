"""A window that floods is closed with a notice; one that acks every message is not."""

import json

import aiohttp
import pytest

from bridge.core.client_address import parse_networks
from bridge.enums import Closing
from tests.conftest import eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import raw_poller, raw_window
from tests.integration.sockets.running_server import Plan, RunningServer, open_server
from tests.integration.sockets.security import http_session
from tests.integration.sockets.test_bad_packets import still_serves
from tests.integration.sockets.test_messages import options

# --- floods


@pytest.mark.parametrize("kind", ["event", "pong", "websocket ping", "connect"])
async def test_a_window_that_floods_is_closed_with_a_notice(kind: str) -> None:
    """Any packet counts: all of them use the loop that serves the other windows."""
    async with (
        open_server(Plan(events_per_second=10)) as server,
        raw_window(server) as window,
        raw_window(server) as neighbour,
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
                    case "connect":
                        await window.send("40")
            except aiohttp.ClientConnectionResetError:
                break

        packets, _ = await window.ended()
        notices = [packet for packet in packets if "bridge:closing" in packet]
        notice = json.loads(notices[0][2:])[1]
        assert notice["code"] == "flooding"
        assert notice["reconnect"] is False
        assert packets[-1] == "41"  # the stock client does not reconnect
        assert len(server.windows("alice")) == 1
        await still_serves(server, neighbour)
        assert server.count("windows_closed_total", code=Closing.FLOODING) == 1


async def test_a_page_in_the_middle_of_a_flood_gets_the_notice_every_time(
    pages: Pages,
) -> None:
    """
    A socket that is closed with unread input is reset, and the reset overtakes the notice.

    The page would see `transport close`, reconnect, and flood again.
    """
    async with open_server(Plan(events_per_second=10)) as server:
        for start in range(0, 100, 10):
            names = [f"page {number}" for number in range(start, start + 10)]
            for name in names:
                await pages.connected(name, server.url, **options(name, "websocket"))
            for name in names:
                pages.command("flood", name, "nonsense", 300)
            for name in names:
                assert await pages.until(name, "disconnect") == ["io server disconnect"]
                assert pages.data(name, "bridge:closing")[0]["code"] == "flooding"


async def test_a_window_may_ack_every_message_it_received(pages: Pages) -> None:
    """Hundreds of acks in an instant after a replay are not a flood."""
    async with open_server(Plan(events_per_second=10)) as server:
        await server.store("alice", *range(300))
        await pages.connected("page", server.url, **options("alice", "websocket"))
        for number in range(300):
            pages.command("emit", "page", "ack", f"nowhere-{number}")
        await pages.until("page", "answer", "ack", count=300, within_s=10)


async def test_a_burst_within_the_limit_passes(pages: Pages) -> None:
    """A page that starts up sends several events at once."""
    async with open_server(Plan(events_per_second=10)) as server:
        await pages.connected("page", server.url, **options("alice", "websocket"))
        for _ in range(15):
            pages.command("emit", "page", "ack", "a-1")
        await pages.until("page", "answer", "ack", count=15)


async def test_a_flood_in_polling_bodies_is_closed_with_a_notice() -> None:
    """Packets in one body count one by one; the notice waits for the next poll."""
    async with (
        open_server(Plan(events_per_second=10)) as small,
        raw_poller(small) as page,
    ):
        await page.join("alice")

        assert await page.post(*['42["nonsense"]'] * 100) == 200

        last_words = await page.poll()
        assert any('"flooding"' in packet for packet in last_words)
        assert last_words[-1] == "41"
        with pytest.raises(AssertionError, match="closed"):
            await page.poll()
        with pytest.raises(AssertionError):
            await page.poll()


# --- refused clients


async def test_a_session_ends_after_a_few_refused_connects(
    server: RunningServer,
) -> None:
    """Otherwise a client could try again at once and for ever, for a verification each."""
    async with raw_window(server) as window:
        for _ in range(5):
            assert (await window.connect(token="forged")).startswith("44")

        packets, _ = await window.ended()
        assert packets == []
    await eventually(lambda: not server.sessions())
    assert not server.io._admission._refusals


async def test_a_page_may_connect_with_a_new_token_on_the_same_session(
    server: RunningServer,
) -> None:
    """A refusal is normal when a token has expired."""
    async with raw_window(server) as window:
        assert (await window.connect(token="forged")).startswith("44")
        await window.join("alice")
        await window.synced()


async def test_an_address_with_many_invalid_tokens_must_wait() -> None:
    """Verifying costs more than refusing, and guesses come by the thousand."""
    plan = Plan(trusted_proxies=parse_networks(("127.0.0.0/8",)))
    attacker = {"X-Forwarded-For": "2001:db8::1"}
    neighbor = {"X-Forwarded-For": "2001:db8:0:1::1"}
    async with open_server(plan, failures_per_second=0.001) as server:
        async with raw_window(server, headers=attacker) as window:
            await window.join("alice")
            await window.synced()
            async with raw_window(server, headers=attacker) as guesser:
                assert "token_invalid" in await guesser.connect(token="forged")
                answer = await guesser.connect(token="forged")
                assert "too_many_attempts" in answer
                assert '"temporary":true' in answer

            # No other address of the network, no renewal and no new session.
            await window.emit("bridge:refresh", "forged", packet_id=1)
            assert (await window.answer(1))["code"] == "not_available"
            async with (
                http_session() as http,
                http.get(
                    server.socket_url(transport="polling"),
                    headers={"X-Forwarded-For": "2001:db8::2"},
                ) as response,
            ):
                assert response.status == 429
        async with raw_window(server, headers=neighbor) as window:
            await window.join("bob")


async def test_valid_tokens_of_one_address_are_not_limited() -> None:
    """After a restart all pages of an office reconnect at once."""
    async with open_server(failures_per_second=0.5) as server:
        for _ in range(10):
            async with raw_window(server) as window:
                await window.join("alice")
