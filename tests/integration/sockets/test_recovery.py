"""A window that comes back: nothing missed, or an honest word about what is."""

from bridge.inbox.contract import Retention
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.listeners import (
    Door,
    Plan,
    memory_inbox,
    message,
    open_door,
)
from tests.integration.sockets.raw_pages import raw_poller, raw_window
from tests.integration.sockets.test_messages import TRANSPORTS, options
from tests.tokens import token

COMPLETE = {"complete": True, "missed": 0, "reason": None}


@TRANSPORTS
async def test_500_messages_of_an_outage_arrive_once_and_in_order(
    door: Door, pages: Pages, transport: str
) -> None:
    """The stock client says `recovered` by itself; the page need not know of anything."""
    await pages.connected("page", door.url, **options("alice", transport))
    await door.store_numbers("alice", start=0, stop=10)
    await pages.until("page", "event", "message", count=10)

    door.cut("alice")
    await door.store_numbers("alice", start=10, stop=510)

    again = await pages.until("page", "connect", count=2)
    await pages.until("page", "event", "message", count=510)
    await pages.until("page", "event", "bridge:sync", count=2)
    assert again[0]["recovered"] is True
    assert pages.data("page") == list(range(510))
    assert pages.data("page", "bridge:sync")[1] == {"replayed": 500, **COMPLETE}


@TRANSPORTS
async def test_a_window_that_has_received_nothing_yet_recovers_too(
    door: Door, pages: Pages, transport: str
) -> None:
    """Its recovery id holds where it began; the stock client has no offset to send."""
    other = {"auth": {"token": token(), "position": None}, "transports": ["websocket"]}
    await door.store("alice", "before")
    await pages.connected("other", door.url, **other)  # moves the delivered mark
    await pages.connected("page", door.url, **options("alice", transport))
    assert pages.data("page") == []

    door.cut("alice")
    await door.store("alice", "meanwhile")
    await door.store("alice", "and this")

    again = await pages.until("page", "connect", count=2)
    await pages.until("page", "event", "message", count=2)
    assert again[0]["recovered"] is True
    assert pages.data("page") == ["meanwhile", "and this"]


async def test_a_position_of_another_store_is_told_as_reset(pages: Pages) -> None:
    """The memory inbox was lost: what lay between, nobody can know."""
    async with open_door() as first:
        await pages.connected("page", first.url, **options("alice", "websocket"))
        await first.store("alice", "old")
        await pages.until("page", "event", "message")
    async with open_door(Plan(port=first.port)) as second:
        await second.store("alice", "new")

        again = await pages.until("page", "connect", count=2)
        sync = await pages.until("page", "event", "bridge:sync", count=2)

    assert again[0]["recovered"] is False
    assert sync[0]["complete"] is False
    assert (sync[0]["missed"], sync[0]["reason"]) == (None, "reset")
    assert pages.data("page") == ["old", "new"]


async def test_what_was_told_as_missed_is_not_told_again(pages: Pages) -> None:
    """
    The stock client keeps its old offset until a message comes.

    Without a look at the newer recovery id each further reconnect would report the same
    loss, and the page would reload its state each time.
    """
    async with open_door() as first:
        await pages.connected("page", first.url, **options("alice", "websocket"))
        await first.store("alice", "old")
        await pages.until("page", "event", "message")
    async with open_door(Plan(port=first.port)) as second:
        await pages.until("page", "event", "bridge:sync", count=2)
        second.cut("alice")
        again = await pages.until("page", "connect", count=3)
        sync = await pages.until("page", "event", "bridge:sync", count=3)

    assert again[0]["recovered"] is True
    assert sync[0] == {"replayed": 0, **COMPLETE}


async def test_what_the_inbox_had_no_room_for_is_counted_exactly(pages: Pages) -> None:
    """Offsets have no holes, so the page hears how much to fetch elsewhere."""
    async with open_door(inbox=memory_inbox(max_messages=100)) as door:
        await pages.connected("page", door.url, **options("alice", "websocket"))
        await door.store_numbers("alice", start=0, stop=5)
        await pages.until("page", "event", "message", count=5)

        door.cut("alice")
        await door.store_numbers("alice", start=5, stop=155)

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


async def test_what_was_kept_too_long_is_told_as_expired(pages: Pages) -> None:
    """The operator's BRIDGE_INBOX_MAX_AGE."""
    inbox = memory_inbox()
    async with open_door(inbox=inbox) as door:
        await pages.connected("page", door.url, **options("alice", "websocket"))
        inbox.retention = Retention(1000, max_age_s=-1.0, dedupe_s=1)
        door.cut("alice")
        await door.store("alice", "a", "b")
        sync = await pages.until("page", "event", "bridge:sync", count=2)

    assert sync[0] == {
        "replayed": 0,
        "complete": False,
        "missed": 2,
        "reason": "expired",
    }


async def test_a_message_past_its_own_deadline_is_left_out_and_told(
    door: Door,
) -> None:
    """The producer's `expiration`; its neighbours come."""
    await door.inbox.append(
        [
            message("alice", "a"),
            message("alice", "late", deadline_s=1.0),
            message("alice", "b"),
        ]
    )
    async with raw_window(door) as window:
        await window.join("alice")
        events, sync = await window.synced()

    assert [event[1] for event in events] == ["a", "b"]
    assert sync == {"replayed": 2, "complete": False, "missed": 1, "reason": "expired"}
    assert door.count("left_out_total") == 1


async def test_a_window_that_misses_what_expired_has_not_recovered(
    door: Door, pages: Pages
) -> None:
    """`recovered` means that nothing was missed; what the page has had is not missed."""
    await pages.connected("page", door.url, **options("alice", "websocket"))
    await door.store("alice", "had")
    await pages.until("page", "event", "message")

    door.cut("alice")
    await door.inbox.append([message("alice", "late", deadline_s=1.0)])
    await door.store("alice", "good")
    second = await pages.until("page", "connect", count=2)
    await pages.until("page", "event", "message", count=2)
    door.cut("alice")
    await door.store("alice", "better")
    third = await pages.until("page", "connect", count=3)
    await pages.until("page", "event", "bridge:sync", count=3)

    assert (second[0]["recovered"], third[0]["recovered"]) == (False, True)
    complete = [sync["complete"] for sync in pages.data("page", "bridge:sync")]
    assert complete == [True, False, True]


async def test_a_message_that_expires_before_the_feed_is_not_emitted(
    door: Door,
) -> None:
    """And what follows it is, without a hole in the order."""
    async with raw_window(door) as window:
        await window.join("alice")
        await window.synced()
        await door.inbox.append(
            [message("alice", "late", deadline_s=1.0), message("alice", "b")]
        )
        assert '"b"' in await window.receive()
    assert door.count("left_out_total") == 1


# --- somebody else's position


async def test_a_page_that_logs_in_as_another_user_misses_nothing(
    door: Door, pages: Pages
) -> None:
    """
    The stock client keeps position and recovery id when its token changes.

    In the other user's inbox they must not count: the messages below would be skipped,
    and the page told that it has recovered.
    """
    await door.store_numbers("alice", start=0, stop=50)
    await door.store_numbers("bob", start=100, stop=200)
    await pages.connected("page", door.url, **options("alice", "websocket"))

    pages.command("close", "page")
    pages.command("auth", "page", {"token": token(sub="bob")})
    pages.command("connect", "page")

    again = await pages.until("page", "connect", count=2)
    sync = await pages.until("page", "event", "bridge:sync", count=2)
    assert again[0]["recovered"] is False
    assert sync[0]["complete"] is False
    assert pages.data("page") == [*range(50), *range(100, 200)]


async def test_hostile_recovery_ids_and_offsets_are_no_harm(door: Door) -> None:
    """Anything that is none counts as another store's: `reset`, never an error."""
    bad = ["", "x", 7, [], {}, "a-1.", "zz-1.n", "a-99999999999999999999.n", "\x00"]
    for number, value in enumerate(bad):
        async with raw_window(door) as window:
            auth = {"pid": value} if number % 2 else {"pid": "aa-1.n", "offset": value}
            reply = await window.join("alice", **auth)
            _, sync = await window.synced()
            assert reply["pid"] != value
            assert sync["reason"] == "reset"


async def test_a_page_may_keep_its_position_itself(door: Door) -> None:
    """Over a reload, in `auth.position`."""
    await door.store_numbers("alice", start=0, stop=5)
    async with raw_window(door) as window:
        await window.join("alice")
        events, _ = await window.synced()
    async with raw_window(door) as window:
        await window.join("alice", position=events[1][-1])
        events, sync = await window.synced()

    assert [event[1] for event in events] == [2, 3, 4]
    assert sync["complete"]


async def test_a_polling_replay_goes_on_behind_an_answer_larger_than_its_bound() -> (
    None
):
    """What is on its way counts as waiting; once it was read the next must come."""
    async with open_door(Plan(outbound_bytes=40_000)) as door, raw_poller(door) as page:
        await door.store("alice", *("x" * 30_000 for _ in range(50)))
        packets = await page.join("alice")

    assert sum(packet.startswith('42["message"') for packet in packets) == 50
