"""Redis fails in every way it can: acked messages stay, and none is stored twice."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bridge.core.redis_address import parse_redis
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.redis.timing import RedisTiming
from tests.conftest import SLOW_FACTOR, eventually
from tests.redis_bridges import RETENTION, bridge_on, cut_off, messages, of_each
from tests.redis_fleet_servers import join_cluster
from tests.redis_server import RedisServer


async def test_acked_messages_survive_a_kill(tmp_path: Path) -> None:
    """With appendfsync always the epoch survives, too, so clients notice nothing."""
    async with RedisServer.start(tmp_path) as server, bridge_on(server.url) as bridge:
        await bridge.inbox.follow("ann")
        await bridge.append(messages("ann", b"1", b"2", message_id="m"))
        before = await bridge.inbox.state("ann")

        await asyncio.to_thread(server.restart)
        assert await bridge.append(messages("ann", b"3")) == [2]
        again = messages("ann", b"1", message_id="m")
        assert await bridge.append(again) == [None]

        assert await bridge.texts("ann") == [b"1", b"3"]
        assert (await bridge.inbox.state("ann")).epoch == before.epoch
        assert bridge.renewed == []
        await eventually(lambda: bridge.received("ann") == [b"1", b"3"])


@pytest.mark.parametrize("is_durable", [True, False])
async def test_a_store_that_lost_its_data_has_a_new_epoch(
    tmp_path: Path, *, is_durable: bool
) -> None:
    """Otherwise windows would ignore messages whose offsets they have already seen."""
    async with (
        RedisServer.start(tmp_path, is_durable=is_durable) as server,
        bridge_on(server.url) as bridge,
    ):
        await bridge.inbox.follow("ann")
        await bridge.append(messages("ann", b"1", b"2"))
        before = await bridge.inbox.state("ann")

        await asyncio.to_thread(server.restart, is_empty=is_durable)
        await eventually(lambda: bridge.renewed == ["ann"])
        await bridge.until_usable()

        after = await bridge.inbox.state("ann")
        assert (after.first, after.last) == (1, 0)
        assert after.epoch != before.epoch
        assert await bridge.append(messages("ann", b"3")) == [1]


async def test_a_store_that_is_flushed_has_a_new_epoch(
    tmp_path: Path,
) -> None:
    """After FLUSHALL the next append starts a new epoch, and windows are notified."""
    async with RedisServer.start(tmp_path) as server, bridge_on(server.url) as bridge:
        await bridge.inbox.follow("ann")
        await bridge.append(messages("ann", b"1"))
        server.command("FLUSHALL")

        assert await bridge.append(messages("ann", b"2")) == [1]

        await eventually(lambda: bridge.renewed == ["ann"])
        await eventually(lambda: bridge.received("ann") == [b"1", b"2"])


@pytest.mark.parametrize(
    ("limit", "fix", "code"),
    [
        (("maxmemory", "100kb"), ("maxmemory", "0"), "OOM"),
        (("min-replicas-to-write", "1"), ("min-replicas-to-write", "0"), "NOREPLICAS"),
    ],
)
async def test_a_server_that_refuses_writes_makes_the_pipeline_wait(
    tmp_path: Path, limit: tuple[str, str], fix: tuple[str, str], code: str
) -> None:
    """No message of the batch is stored, readiness says why, and reads still work."""
    async with RedisServer.start(tmp_path) as server, bridge_on(server.url) as bridge:
        await bridge.append(messages("ann", b"1"))
        server.command("CONFIG", "SET", *limit)

        batch = messages("ann", b"2") + messages("bob", b"1")
        with pytest.raises(StoreUnavailableError, match=code):
            await bridge.inbox.append(batch)
        assert code in str(bridge.inbox.problem)
        assert await bridge.texts("ann") == [b"1"]

        server.command("CONFIG", "SET", *fix)
        await bridge.until_usable()
        assert await bridge.append(batch) == [2, 1]
        assert await bridge.texts("ann") == [b"1", b"2"]


async def test_a_demoted_master_is_not_written_to(tmp_path: Path) -> None:
    """The bridge is not ready until the server is a master again."""
    async with RedisServer.start(tmp_path) as server, bridge_on(server.url) as bridge:
        server.command("REPLICAOF", "127.0.0.1", "1")

        with pytest.raises(StoreUnavailableError):
            await bridge.inbox.append(messages("ann", b"1"))
        await eventually(lambda: "READONLY" in str(bridge.inbox.problem))

        server.command("REPLICAOF", "NO", "ONE")
        assert await bridge.append(messages("ann", b"1")) == [1]


async def test_a_promoted_replica_begins_a_new_epoch(tmp_path: Path) -> None:
    """It may lack messages that clients have seen, and assigns their offsets again."""
    async with (
        RedisServer.start(tmp_path / "old") as old,
        RedisServer.start(tmp_path / "new") as new,
        cut_off(old) as (proxy, url),
        bridge_on(url) as bridge,
    ):
        # By default the master waits five seconds for more replicas.
        old.command("CONFIG", "SET", "repl-diskless-sync-delay", "0")
        new.command("REPLICAOF", old.host, str(old.port))
        await eventually(lambda: "master_link_status:up" in new.command("INFO"))
        await bridge.inbox.follow("ann")
        await bridge.append(messages("ann", b"1"))
        before = (await bridge.inbox.state("ann")).epoch
        await eventually(lambda: new.command("DBSIZE") == old.command("DBSIZE"))

        new.command("REPLICAOF", "NO", "ONE")
        proxy._target_port = new.port
        proxy.cut()
        await eventually(lambda: bridge.renewed == ["ann"])
        await bridge.until_usable()

        assert (await bridge.inbox.state("ann")).epoch != before
        assert await bridge.texts("ann") == [b"1"]


async def test_a_batch_without_a_reply_is_stored_once_and_in_order(
    tmp_path: Path,
) -> None:
    """A frozen server has received the batch; it is sent again before the reply comes."""
    async with RedisServer.start(tmp_path) as server, bridge_on(server.url) as bridge:
        await bridge.append(messages("ann", b"1"))
        batch = messages("ann", b"2", b"3") + messages("bob", b"1")
        server.pause()
        try:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(bridge.inbox.append(batch), 0.2)
        finally:
            server.resume()

        assert await bridge.append(batch) == [2, 3, 1]
        assert await bridge.append(messages("ann", b"4")) == [4]
        assert await bridge.texts("ann") == [b"1", b"2", b"3", b"4"]
        assert await bridge.texts("bob") == [b"1"]


async def test_a_batch_that_is_sent_again_counts_its_deleted_messages_once(
    tmp_path: Path,
) -> None:
    """The first reply was lost, and the second one repeats it."""
    retention = Retention(max_messages=2, max_age_s=1000, dedupe_s=60)
    async with RedisServer.start(tmp_path) as server:
        inbox = RedisInbox(parse_redis(server.url), retention)
        await inbox.open()
        try:
            await inbox.append(messages("ann", b"1", b"2"))
            batch = messages("ann", b"3") + messages("bob", b"1", b"2", b"3", b"4")
            server.pause()
            try:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(inbox.append(batch), 0.2)
            finally:
                server.resume()
            assert inbox.trimmed == 0

            assert await inbox.append(batch) == [3, 1, 2, 3, 4]
            assert inbox.trimmed == 3
        finally:
            await inbox.close()


async def test_the_newest_message_missed_by_the_feed_is_handed_over(
    tmp_path: Path,
) -> None:
    """After a lost connection rooms detect the gap before it, and read the rest."""
    async with (
        RedisServer.start(tmp_path) as server,
        cut_off(server) as (proxy, url),
        bridge_on(url) as far,
        bridge_on(server.url) as near,
    ):
        await far.inbox.follow("ann")
        await near.append(messages("ann", b"1"))
        await eventually(lambda: far.received("ann") == [b"1"])

        proxy.refuse()
        proxy.cut()
        await near.append(messages("ann", b"2"))
        await near.append(messages("ann", b"3"))
        proxy.heal()

        await eventually(lambda: far.received("ann") == [b"1", b"3"])
        assert far.fed[-1].offset == 3


async def test_the_highest_delivered_mark_of_all_bridges_counts(tmp_path: Path) -> None:
    """Each bridge reports its own windows; a lower mark changes nothing."""
    async with (
        RedisServer.start(tmp_path) as server,
        bridge_on(server.url) as one,
        bridge_on(server.url) as other,
    ):
        await one.append(messages("ann", b"1", b"2", b"3"))
        one.inbox.mark_delivered("ann", 3)

        async def delivered() -> bool:
            return (await other.inbox.state("ann")).delivered == 3

        await eventually(delivered)
        other.inbox.mark_delivered("ann", 1)
        await other.inbox.close()
        assert (await one.inbox.state("ann")).delivered == 3


async def test_trials_are_counted_by_all_bridges_together(tmp_path: Path) -> None:
    """A message that crashes processes moves from bridge to bridge."""
    async with (
        RedisServer.start(tmp_path) as server,
        bridge_on(server.url) as one,
        bridge_on(server.url) as other,
    ):
        assert await one.inbox.note_trials([b"\x00key"]) == [1]
        assert await other.inbox.note_trials([b"\x00key"]) == [2]
        other.inbox.forget_trial(b"\x00key")

        async def is_first() -> bool:
            count = await one.inbox.note_trials([b"\x00key"])
            one.inbox.forget_trial(b"\x00key")
            return count == [1]

        await eventually(is_first)


async def test_a_wrong_password_is_retried_and_never_shown(tmp_path: Path) -> None:
    """The error may be in the configuration of the server."""
    options = {"requirepass": "right"}
    async with RedisServer.start(tmp_path, options=options) as server:
        inbox = RedisInbox(
            parse_redis(f"redis://:secret-word@{server.host}:{server.port}"), RETENTION
        )
        with pytest.raises(StoreUnavailableError, match="WRONGPASS") as caught:
            await inbox.open()
        assert "secret-word" not in f"{caught.value} {inbox.problem}"
        await inbox.close()

        async with bridge_on(f"redis://:right@{server.host}:{server.port}") as bridge:
            assert await bridge.append(messages("ann", b"1")) == [1]


async def test_a_revoked_permission_to_subscribe_confuses_no_replies(
    tmp_path: Path,
) -> None:
    """
    Messages are stored once, and no reply is matched to another command.

    An error replaces the push that confirms a subscription.
    """
    users = [f"user-{number}" for number in range(20)]
    with RedisServer.started(tmp_path) as server:
        words = ("ACL", "SETUSER", "nosub")
        server.command(*words, "on", ">secret", "~*", "&*", "+@all")
        url = server.url.replace("redis://", "redis://nosub:secret@")
        async with bridge_on(url, timing=RedisTiming(subscribe_s=0.5)) as bridge:
            for number, user in enumerate(users):
                offsets = await bridge.append(messages(user, *[b"1"] * number, b"2"))
                assert offsets == list(range(1, number + 2))
            server.command(*words, "-subscribe")
            following = asyncio.create_task(bridge.inbox.follow("ann"))
            await asyncio.sleep(0)  # its command is sent first
            answers = await asyncio.gather(
                *map(bridge.inbox.state, users), return_exceptions=True
            )
            with pytest.raises(StoreUnavailableError):
                await following

    for number, answer in enumerate(answers):
        if isinstance(answer, BaseException):
            assert isinstance(answer, StoreUnavailableError)
        else:
            assert answer.last == number + 1
    assert any(isinstance(answer, BaseException) for answer in answers)


async def test_a_cluster_that_loses_a_master_waits_for_its_replica(
    tmp_path: Path,
) -> None:
    """The other masters keep working; a batch for all is completed after the failover."""
    options = {"cluster-enabled": "yes", "cluster-node-timeout": "1000"}
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                RedisServer.start(tmp_path / str(number), options=options)
            )
            for number in range(4)
        ]
        await asyncio.to_thread(join_cluster, nodes[:3], nodes[3])
        bridge = await stack.enter_async_context(
            bridge_on(f"redis+cluster://127.0.0.1:{nodes[1].port}")
        )
        users = [f"user-{number}" for number in range(40)]
        for user in users:
            await bridge.inbox.follow(user)
        assert set(await bridge.append(of_each(users, b"1"))) == {1}
        count = await asyncio.to_thread(nodes[0].command, "DBSIZE")
        await asyncio.to_thread(nodes[3].wait_until, count, "DBSIZE")

        nodes[0].kill()
        batch = of_each(users, b"2")
        async with asyncio.timeout(25 * SLOW_FACTOR):
            offsets = await bridge.append(batch)

        assert set(offsets) == {2}
        for user in users:
            assert await bridge.texts(user) == [b"1", b"2"]
        await eventually(lambda: all(bridge.received(u)[-1] == b"2" for u in users))
        # Users of the lost master have a new epoch: its replica may lack messages.
        await eventually(lambda: bridge.renewed)
        assert len(bridge.renewed) < len(users)


async def test_sentinels_locate_the_master(tmp_path: Path) -> None:
    """An unavailable Sentinel is skipped; an unknown service is reported."""
    async with (
        RedisServer.start(tmp_path / "master") as master,
        RedisServer.start(
            tmp_path / "sentinel", is_durable=False, is_sentinel=True
        ) as sentinel,
    ):
        sentinel.command(
            "SENTINEL", "MONITOR", "main", master.host, str(master.port), "1"
        )
        hosts = f"127.0.0.1:1,127.0.0.1:{sentinel.port}"

        async with bridge_on(f"redis+sentinel://{hosts}/main") as bridge:
            assert await bridge.append(messages("ann", b"1")) == [1]
        with pytest.raises(StoreUnavailableError, match="does not know 'other'"):
            async with bridge_on(f"redis+sentinel://{hosts}/other"):
                pass
