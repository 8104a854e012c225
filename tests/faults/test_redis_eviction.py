"""Redis evicts keys: bridges do not work with it, and windows learn what is gone."""

from pathlib import Path

import pytest

from bridge.core.message import Message
from bridge.core.position import Position
from bridge.core.redis_address import parse_redis
from bridge.core.replay import ReplayPlan, plan_replay
from bridge.enums import SyncReason
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.encoding import key_prefixes, tag_of
from bridge.inbox.redis.store import RedisInbox
from tests.conftest import eventually
from tests.redis_bridges import RETENTION, BridgeInbox, bridge_on, messages
from tests.redis_server import RedisServer


def key_of(user: str, kind: str) -> str:
    """Return the name of a key of the user."""
    return key_prefixes("bridge", 0)[tag_of(user)] + kind


async def plan_of(
    bridge: BridgeInbox, user: str, position: Position | None = None
) -> ReplayPlan:
    """Return what a window of the user would be told."""
    return plan_replay(position, await bridge.inbox.state(user))


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
async def test_a_server_that_evicts_inboxes_is_not_used(
    tmp_path: Path, policy: str
) -> None:
    """It would delete messages that were acked to the broker."""
    options = {"maxmemory": "100mb", "maxmemory-policy": policy}
    async with RedisServer.start(tmp_path, options=options) as server:
        inbox = RedisInbox(parse_redis(server.url), RETENTION)
        with pytest.raises(StoreUnavailableError, match=f"{policy}.*noeviction"):
            await inbox.open()

        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await eventually(lambda: inbox.problem is None)
        await inbox.close()


@pytest.mark.parametrize(
    ("limit", "policy"), [("0", "allkeys-lru"), ("100mb", "volatile-lru")]
)
async def test_a_server_that_cannot_evict_inboxes_is_used(
    tmp_path: Path, limit: str, policy: str
) -> None:
    """Without a limit nothing is evicted, and inboxes have no time to live."""
    options = {"maxmemory": limit, "maxmemory-policy": policy}
    async with (
        RedisServer.start(tmp_path, options=options) as server,
        bridge_on(server.url) as bridge,
    ):
        assert await bridge.append(messages("ann", b"1")) == [1]


async def test_a_policy_that_changes_is_noticed_by_the_next_sweep(
    tmp_path: Path,
) -> None:
    """An operator may change it while bridges are connected."""
    async with RedisServer.start(tmp_path) as server, bridge_on(server.url) as bridge:
        server.command("CONFIG", "SET", "maxmemory", "100mb")
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        await bridge.inbox.sweep()

        await eventually(lambda: "allkeys-lru" in str(bridge.inbox.problem))


@pytest.mark.parametrize("later", [0, 1])
async def test_an_evicted_inbox_is_reported_as_a_reset(
    tmp_path: Path, later: int
) -> None:
    """Also if messages were stored after the eviction."""
    async with RedisServer.start(tmp_path) as server, bridge_on(server.url) as bridge:
        await bridge.append(messages("ann", b"1", b"2", b"3"))
        server.command("DEL", key_of("ann", "m:ann"))
        for _ in range(later):
            await bridge.append(messages("ann", b"4"))
        await bridge.inbox.sweep()

        plan = await plan_of(bridge, "ann")

    assert plan == ReplayPlan(after=3, missed=3, reason=SyncReason.RESET)


async def test_an_inbox_that_became_too_old_is_no_reset(tmp_path: Path) -> None:
    """Its list is gone as well, but because the retention says so; the user is forgotten."""
    async with RedisServer.start(tmp_path) as server, bridge_on(server.url) as bridge:
        await bridge.append(
            [Message("ann", "message", each, 1.0) for each in (b"1", b"2")]
        )
        await bridge.inbox.sweep()
        plan = await plan_of(bridge, "ann")
        await bridge.append(messages("ann", b"3"))

        assert plan.reason is None
        assert not plan.is_start_known
        assert await plan_of(bridge, "ann") == plan


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("later", [0, 1])
async def test_evicted_heads_lose_no_messages(
    tmp_path: Path, later: int, *, restarts: bool
) -> None:
    """The messages are still there: windows get them again, and are told to reload."""
    async with RedisServer.start(tmp_path) as server:
        async with bridge_on(server.url) as bridge:
            await bridge.append(messages("ann", b"1", b"2"))
            await (
                bridge.inbox.sweep()
            )  # stores the clock: the store is known from now on
            before = await bridge.inbox.state("ann")
            server.command("DEL", key_of("ann", "h"))
            if not restarts:
                await evicted_and_read(bridge, later)
                plan = await plan_of(bridge, "ann")
        if restarts:
            async with bridge_on(server.url) as bridge:
                await evicted_and_read(bridge, later)
                plan = await plan_of(bridge, "ann")

        old = Position(before.epoch, 2)
        async with bridge_on(server.url) as bridge:
            told = await plan_of(bridge, "ann", old)

    assert plan == ReplayPlan(after=0, missed=None, reason=SyncReason.RESET)
    assert told == ReplayPlan(after=0, missed=None, reason=SyncReason.RESET)


async def evicted_and_read(bridge: BridgeInbox, later: int) -> None:
    """Append some more, and read all messages of ann."""
    for _ in range(later):
        await bridge.append(messages("ann", b"3"))
    await eventually_texts(bridge, [b"1", b"2", b"3"][: 2 + later])


async def eventually_texts(bridge: BridgeInbox, expected: list[bytes]) -> None:
    """Wait until ann's inbox can be read, because a lost epoch ends the connection."""
    found: list[bytes] = []

    async def has_read() -> bool:
        nonlocal found
        try:
            found = await bridge.texts("ann")
        except StoreUnavailableError:
            return False
        return True

    await eventually(has_read)
    assert found == expected


async def test_a_user_of_whom_nothing_is_left_is_told(tmp_path: Path) -> None:
    """The other users of the hash tag had messages, perhaps: they are told until one comes."""
    async with RedisServer.start(tmp_path) as server, bridge_on(server.url) as bridge:
        await bridge.append(messages("ann", b"1"))
        await bridge.append(messages("bob", b"1"))
        server.command(
            "DEL", *(key_of("ann", kind) for kind in ("h", "m:ann", "i:ann"))
        )
        await eventually_texts(bridge, [])

        lost, kept = await plan_of(bridge, "ann"), await plan_of(bridge, "bob")
        await bridge.append(messages("ann", b"2"))
        after = await plan_of(bridge, "ann")
        bridge.inbox.mark_delivered("ann", 1)

        assert lost == ReplayPlan(after=0, missed=None, reason=SyncReason.RESET)
        assert kept.is_complete
        assert not after.is_complete
        assert await plan_of(bridge, "ann") == ReplayPlan(
            after=1, missed=0, reason=None, is_start_known=False
        )
