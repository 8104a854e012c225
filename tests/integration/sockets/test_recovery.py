"""A window that reconnects misses nothing, or is notified of what it missed."""

from bridge.inbox.contract import Retention
from tests.conftest import eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import raw_poller, raw_window
from tests.integration.sockets.running_server import (
    Plan,
    RunningServer,
    memory_inbox,
    message,
    open_server,
)
from tests.integration.sockets.test_messages import TRANSPORTS, options
from tests.tokens import token

COMPLETE = {"complete": True, "missed": 0, "reason": None}


@TRANSPORTS
async def test_500_messages_of_an_outage_arrive_once_and_in_order(
    server: RunningServer, pages: Pages, transport: str
) -> None:
    """The stock client reports `recovered`; the page needs no code for it."""
    await pages.connected("page", server.url, **options("alice", transport))
    await server.store_numbers("alice", start=0, stop=10)
    await pages.until("page", "event", "message", count=10)

    server.cut("alice")
    await server.store_numbers("alice", start=10, stop=510)

    again = await pages.until("page", "connect", count=2)
    await pages.until("page", "event", "message", count=510)
    await pages.until("page", "event", "bridge:sync", count=2)
    assert again[0]["recovered"] is True
    assert pages.data("page") == list(range(510))
    assert pages.data("page", "bridge:sync")[1] == {"replayed": 500, **COMPLETE}


async def test_only_a_client_that_says_where_it_was_is_told_that_it_is_complete(
    server: RunningServer,
) -> None:
    """
    Clients before socket.io 4.6 send nothing; they may have lost what was on its way.

    What a user has never received is sent from the first message on: that is complete.
    """
    await server.store_numbers("alice", start=0, stop=5)
    results, last = [], ""
    for position in (None, None, "last"):
        async with raw_window(server) as window:
            auth = {"position": last} if position else {}
            await window.join("alice", **auth)
            events, sync = await window.synced()
            results.append((sync["replayed"], sync["complete"], sync["missed"]))
            last = events[-1][-1] if events else last
            await window.send("3")
        await eventually(lambda: not server.windows("alice"))
        await server.store("alice", "one more")

    assert results == [(5, True, 0), (1, None, None), (1, True, 0)]


@TRANSPORTS
async def test_a_window_that_has_received_nothing_yet_recovers_too(
    server: RunningServer, pages: Pages, transport: str
) -> None:
    """Its recovery id holds the position of its connect; the client has no offset to send."""
    other = {"auth": {"token": token(), "position": None}, "transports": ["websocket"]}
    await server.store("alice", "before")
    await pages.connected("other", server.url, **other)
    pages.command("send", "other", "moves the delivered mark")
    await eventually(lambda: server.windows("alice")[0]._delivered == 1)
    await pages.connected("page", server.url, **options("alice", transport))
    assert pages.data("page") == []

    server.cut("alice")
    await server.store("alice", "meanwhile")
    await server.store("alice", "and this")

    again = await pages.until("page", "connect", count=2)
    await pages.until("page", "event", "message", count=2)
    assert again[0]["recovered"] is True
    assert pages.data("page") == ["meanwhile", "and this"]


async def test_a_position_of_another_store_is_reported_as_reset(pages: Pages) -> None:
    """The memory inbox was lost: the number of missed messages is unknown."""
    async with open_server() as first:
        await pages.connected("page", first.url, **options("alice", "websocket"))
        await first.store("alice", "old")
        await pages.until("page", "event", "message")
    async with open_server(Plan(port=first.port)) as second:
        await second.store("alice", "new")

        again = await pages.until("page", "connect", count=2)
        sync = await pages.until("page", "event", "bridge:sync", count=2)

    assert again[0]["recovered"] is False
    assert sync[0]["complete"] is False
    assert (sync[0]["missed"], sync[0]["reason"]) == (None, "reset")
    assert pages.data("page") == ["old", "new"]


async def test_a_loss_is_reported_only_once(pages: Pages) -> None:
    """
    The stock client keeps its old offset until the next message.

    If the newer recovery id were ignored, each reconnect would report the same loss, and
    the page would reload its state each time.
    """
    async with open_server() as first:
        await pages.connected("page", first.url, **options("alice", "websocket"))
        await first.store("alice", "old")
        await pages.until("page", "event", "message")
    async with open_server(Plan(port=first.port)) as second:
        await pages.until("page", "event", "bridge:sync", count=2)
        second.cut("alice")
        again = await pages.until("page", "connect", count=3)
        sync = await pages.until("page", "event", "bridge:sync", count=3)

    assert again[0]["recovered"] is True
    assert sync[0] == {"replayed": 0, **COMPLETE}


async def test_trimmed_messages_are_counted_exactly(pages: Pages) -> None:
    """Offsets have no gaps, so the number of missing messages is known."""
    async with open_server(inbox=memory_inbox(max_messages=100)) as server:
        await pages.connected("page", server.url, **options("alice", "websocket"))
        await server.store_numbers("alice", start=0, stop=5)
        await pages.until("page", "event", "message", count=5)

        server.cut("alice")
        await server.store_numbers("alice", start=5, stop=155)

        again = await pages.until("page", "connect", count=2)
        sync = await pages.until("page", "event", "bridge:sync", count=2)

    assert again[0]["recovered"] is False
    assert sync[0] == {
        "replayed": 100,
        "complete": False,
        "missed": 50,
        "reason": "limit",
    }
    assert pages.data("page") == [*range(5), *range(55, 155)]


async def test_messages_over_the_maximum_age_are_reported_as_expired(
    pages: Pages,
) -> None:
    """The operator's BRIDGE_INBOX_MAX_AGE."""
    inbox = memory_inbox()
    async with open_server(inbox=inbox) as server:
        await pages.connected("page", server.url, **options("alice", "websocket"))
        inbox.retention = Retention(1000, max_age_s=-1.0, dedupe_s=1)
        server.cut("alice")
        await server.store("alice", "a", "b")
        sync = await pages.until("page", "event", "bridge:sync", count=2)

    assert sync[0] == {
        "replayed": 0,
        "complete": False,
        "missed": 2,
        "reason": "expired",
    }


async def test_a_message_past_its_deadline_is_skipped_and_reported(
    server: RunningServer,
) -> None:
    """The producer's `expiration`. The messages around it arrive."""
    await server.inbox.append(
        [
            message("alice", "a"),
            message("alice", "late", deadline_s=1.0),
            message("alice", "b"),
        ]
    )
    async with raw_window(server) as window:
        await window.join("alice")
        events, sync = await window.synced()

    assert [event[1] for event in events] == ["a", "b"]
    assert sync == {"replayed": 2, "complete": False, "missed": 1, "reason": "expired"}
    assert server.count("left_out_total") == 1


async def test_a_window_that_misses_expired_messages_has_not_recovered(
    server: RunningServer, pages: Pages
) -> None:
    """`recovered` means that nothing was missed. Messages received before do not count."""
    await pages.connected("page", server.url, **options("alice", "websocket"))
    await server.store("alice", "had")
    await pages.until("page", "event", "message")

    server.cut("alice")
    await server.inbox.append([message("alice", "late", deadline_s=1.0)])
    await server.store("alice", "good")
    second = await pages.until("page", "connect", count=2)
    await pages.until("page", "event", "message", count=2)
    server.cut("alice")
    await server.store("alice", "better")
    third = await pages.until("page", "connect", count=3)
    await pages.until("page", "event", "bridge:sync", count=3)

    assert (second[0]["recovered"], third[0]["recovered"]) == (False, True)
    complete = [sync["complete"] for sync in pages.data("page", "bridge:sync")]
    assert complete == [True, False, True]


async def test_a_message_that_expires_before_the_feed_is_not_emitted(
    server: RunningServer,
) -> None:
    """The next message is, without a gap."""
    async with raw_window(server) as window:
        await window.join("alice")
        await window.synced()
        await server.inbox.append(
            [message("alice", "late", deadline_s=1.0), message("alice", "b")]
        )
        assert '"b"' in await window.receive()
    assert server.count("left_out_total") == 1


# --- positions of other users


async def test_a_client_that_signs_in_as_another_user_misses_nothing(
    server: RunningServer, pages: Pages
) -> None:
    """
    The stock client keeps position and recovery id when its token changes.

    In the inbox of the other user they must be ignored: messages below the offset would
    be skipped, and the client would report `recovered`.
    """
    await server.store_numbers("alice", start=0, stop=50)
    await server.store_numbers("bob", start=100, stop=200)
    await pages.connected("page", server.url, **options("alice", "websocket"))

    pages.command("close", "page")
    pages.command("auth", "page", {"token": token(sub="bob")})
    pages.command("connect", "page")

    again = await pages.until("page", "connect", count=2)
    sync = await pages.until("page", "event", "bridge:sync", count=2)
    assert again[0]["recovered"] is False
    assert sync[0]["complete"] is False
    assert pages.data("page") == [*range(50), *range(100, 200)]


async def test_invalid_recovery_ids_and_offsets_cause_a_reset(
    server: RunningServer,
) -> None:
    """They count as positions of another store, never as an error."""
    bad = ["", "x", 7, [], {}, "a-1.", "zz-1.n", "a-99999999999999999999.n", "\x00"]
    for number, value in enumerate(bad):
        async with raw_window(server) as window:
            auth = {"pid": value} if number % 2 else {"pid": "aa-1.n", "offset": value}
            reply = await window.join("alice", **auth)
            _, sync = await window.synced()
            assert reply["pid"] != value
            assert sync["reason"] == "reset"


async def test_a_page_may_store_its_position_itself(server: RunningServer) -> None:
    """It passes the position in `auth.position` after a reload."""
    await server.store_numbers("alice", start=0, stop=5)
    async with raw_window(server) as window:
        await window.join("alice")
        events, _ = await window.synced()
    async with raw_window(server) as window:
        await window.join("alice", position=events[1][-1])
        events, sync = await window.synced()

    assert [event[1] for event in events] == [2, 3, 4]
    assert sync["complete"]


async def test_a_polling_replay_continues_after_a_response_over_the_limit() -> None:
    """An unread response counts as waiting bytes; when it is read, the replay continues."""
    async with (
        open_server(Plan(outbound_bytes=40_000)) as server,
        raw_poller(server) as page,
    ):
        await server.store("alice", *("x" * 30_000 for _ in range(50)))
        packets = await page.join("alice")

    assert sum(packet.startswith('42["message"') for packet in packets) == 50
