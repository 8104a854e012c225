"""Commands on the control exchange, and revocations by operators, with a real broker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiormq
import orjson
import pytest

from bridge.amqp.connection import BrokerAddress, Purpose, open_connection
from bridge.amqp.frame_reader import FrameReader
from bridge.core.broker_names import BrokerNames
from tests.conftest import eventually
from tests.integration.control import (
    back_end,
    closed,
    commands,
    in_one_hour,
    refusal,
)
from tests.integration.operator.api_client import asking
from tests.integration.operator.commands import run_command
from tests.integration.programs import command
from tests.integration.running import (
    SECRET,
    RunningBridge,
    open_windows,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode
from tests.redis_server import RedisServer


@asynccontextmanager
async def open_channel(broker: LocalNode) -> AsyncIterator[aiormq.Channel]:
    """Open a channel of an administrator."""
    connection = await open_connection(
        BrokerAddress((broker.url,)), purpose=Purpose.CHECK, reader=FrameReader
    )
    try:
        yield await connection.open_channel(confirms=False)
    finally:
        await connection.disconnect()


async def delete_consumed(channel: aiormq.Channel, queue: str) -> None:
    """
    Delete a queue that the bridge consumes.

    RabbitMQ 3.10 closes the connection if the queue is deleted while a consumer begins.
    """

    async def is_consumed() -> bool:
        return (await channel.queue_declare(queue, passive=True)).consumer_count == 1

    await eventually(is_consumed)
    await channel.queue_delete(queue)


@pytest.mark.parametrize("store", ["memory:", "sqlite:"])
async def test_a_published_revocation_closes_windows_and_refuses_their_tokens(
    broker: LocalNode, namespace: str, tmp_path: Path, store: str
) -> None:
    """Others keep their windows; a token that is issued later is accepted."""
    inbox = store if store == "memory:" else f"sqlite:{tmp_path / 'inbox.sqlite3'}"
    settings = settings_for(broker, namespace, inbox=inbox)
    async with (
        running_bridge(settings) as running,
        back_end(broker, namespace) as workers,
    ):
        old = running.token("ann")
        async with open_windows(
            running.listening.public_url, [old, running.token("bob")]
        ) as (ann, bob):
            before = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
            await workers.send(
                "revoke",
                {"user": "ann", "issued_before": before, "until": in_one_hour()},
            )
            notice = await closed(ann)
            assert not bob.websocket.closed

        assert (notice["code"], notice["reconnect"]) == ("revoked", False)
        await eventually(lambda: commands(running, "done") == 1)
        assert await refusal(running, old) == "token_revoked"
        assert await refusal(running, running.token("bob")) is None


async def test_a_published_kick_closes_windows_with_its_reason(
    broker: LocalNode, namespace: str
) -> None:
    """The token stays valid."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        back_end(broker, namespace) as workers,
    ):
        token = running.token("ann")
        async with open_windows(running.listening.public_url, [token]) as (window,):
            await workers.send("kick", {"user": "ann", "reason": "signed in elsewhere"})
            notice = await closed(window)

        assert notice == {
            "code": "kicked",
            "reason": "signed in elsewhere",
            "reconnect": False,
        }
        assert await refusal(running, token) is None


async def test_a_command_that_cannot_be_carried_out_becomes_a_dead_letter(
    broker: LocalNode, namespace: str
) -> None:
    """It is counted, blocks no other, and a redrive does not make a message of it."""
    later = in_one_hour()
    invalid: list[tuple[str, bytes]] = [
        ("ban", b'{"user": "ann"}'),
        ("kick", b"no JSON"),
        ("kick", b"{}"),
        ("kick", b'{"user": ""}'),
        ("kick", b"[" * 100_000),
        ("revoke", orjson.dumps({"user": "ann"})),
        ("revoke", orjson.dumps({"user": "ann", "until": "tomorrow"})),
        ("revoke", orjson.dumps({"user": "ann", "until": "2020-01-31T12:00:00Z"})),
        ("revoke", orjson.dumps({"user": "ann", "until": later, "issuedBefore": 1})),
        (
            "revoke",
            orjson.dumps(
                {"user": "ann", "until": later, "jti": "7", "issued_before": later}
            ),
        ),
    ]
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        back_end(broker, namespace) as workers,
        asking(running) as api,
    ):
        for command, body in invalid:
            await workers.send(command, body=body)
        async with open_windows(
            running.listening.public_url, [running.token("ann")]
        ) as (window,):
            await workers.send("kick", {"user": "ann"})
            await closed(window)
        await eventually(lambda: commands(running, "refused") == len(invalid))

        async def are_dead() -> bool:
            return len((await api.get("/api/dead"))["items"]) == len(invalid)

        await eventually(are_dead)
        started = await api.ask("POST", "/api/dead/redrive", {"all": True})
        assert started.status == 202

        async def has_ended() -> bool:
            job = await api.get(f"/api/jobs/{started.body['job']['id']}")
            return bool(job["failed"] == len(invalid) and not job["done"])

        await eventually(has_ended)
        assert await are_dead()
        assert (await api.get("/api/users"))["items"] == []


async def test_a_command_that_comes_while_no_bridge_runs_is_carried_out_later(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """The confirm means that it will be; the store keeps it over a restart."""
    settings = settings_for(
        broker, namespace, inbox=f"sqlite:{tmp_path / 'inbox.sqlite3'}"
    )
    async with running_bridge(settings) as running:
        token = running.token("ann")
        assert await refusal(running, token) is None
    async with back_end(broker, namespace) as workers:
        await workers.send("revoke", {"user": "ann", "until": in_one_hour()})
    for _ in range(2):
        async with running_bridge(settings) as running:

            async def is_refused(running: RunningBridge = running) -> bool:
                return await refusal(running, token) == "token_revoked"

            await eventually(is_refused)


async def test_commands_are_consumed_again_after_their_queue_was_deleted(
    broker: LocalNode, namespace: str
) -> None:
    """
    Until then they become dead letters, because the exchange has an alternate.

    Messages are delivered all the time: only the consumer of commands is replaced.
    """
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        back_end(broker, namespace) as workers,
        open_windows(running.listening.public_url, [running.token("ann")]) as (window,),
    ):
        async with open_channel(broker) as channel:
            await delete_consumed(channel, BrokerNames(namespace).control)

        async def kick() -> bool:
            await workers.send("kick", {"user": "ann"})
            return window.websocket.closed

        await eventually(kick, within_s=30)
        assert running.sample("bridge_broker_reconnects_total", purpose="consume") == 0


async def test_commands_are_carried_out_after_the_number_of_shards_has_changed(
    broker: LocalNode, namespace: str
) -> None:
    """The consumer of the session before must not keep a share of them."""
    settings = {"amqp_url": broker.url, "namespace": namespace, "jwt_secret": SECRET}
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        back_end(broker, namespace) as workers,
    ):
        changed = await command("shards", "set", "2", **settings)
        assert changed.code == 0, changed.err
        intake = running.bridge.components.intake
        await eventually(lambda: intake.is_consuming, within_s=30)
        for _ in range(20):
            await workers.send("kick", {"user": "ann"})
        await eventually(lambda: commands(running, "done") == 20, within_s=30)


async def test_a_problem_with_the_queue_of_commands_is_a_warning(
    broker: LocalNode, namespace: str
) -> None:
    """Users are served, so the bridge is ready; commands wait until it is resolved."""
    name = BrokerNames(namespace).control
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        back_end(broker, namespace) as workers,
        open_windows(running.listening.public_url, [running.token("ann")]) as (window,),
        open_channel(broker) as channel,
    ):
        readiness = running.bridge.components.readiness
        assert readiness.warnings() == []
        await channel.exchange_delete(name)
        await channel.exchange_declare(name, exchange_type="fanout")
        await delete_consumed(channel, name)
        await eventually(lambda: "commands" in "".join(readiness.warnings()))
        assert readiness.unready_reasons() == []

        await channel.exchange_delete(name)
        await eventually(lambda: not readiness.warnings())
        await workers.send("kick", {"user": "ann"})
        await closed(window)


async def test_waiting_revocations_hold_up_no_kick(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """A kick needs no store, so it is carried out while more revocations wait than run."""
    async with RedisServer.start(tmp_path / "redis") as redis:
        settings = settings_for(broker, namespace, inbox=redis.url)
        async with (
            running_bridge(settings) as running,
            back_end(broker, namespace) as workers,
            open_windows(running.listening.public_url, [running.token("ann")]) as (
                window,
            ),
        ):
            await asyncio.to_thread(redis.stop)
            await eventually(lambda: running.bridge.components.inbox.problem)
            for _ in range(120):
                await workers.send("revoke", {"user": "bob", "until": in_one_hour()})
            await workers.send("kick", {"user": "ann"})
            assert (await closed(window))["code"] == "kicked"

            await asyncio.to_thread(redis.restart)
            await eventually(lambda: commands(running, "done") == 121, within_s=30)


async def test_a_revocation_waits_while_the_store_is_away(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """By AMQP it is carried out later; by HTTP it is refused, and nothing is half done."""
    async with RedisServer.start(tmp_path / "redis") as redis:
        settings = settings_for(broker, namespace, inbox=redis.url)
        async with (
            running_bridge(settings) as running,
            back_end(broker, namespace) as workers,
            asking(running) as api,
            open_windows(
                running.listening.public_url,
                [running.token("ann"), running.token("bob")],
            ) as (ann, bob),
        ):
            await asyncio.to_thread(redis.stop)
            await eventually(lambda: running.bridge.components.inbox.problem)
            path = "/api/users/ann/revoke"
            answer = await api.ask("POST", path, {"until": in_one_hour()})
            listed = await api.ask("GET", "/api/revocations")
            await asyncio.to_thread(
                run_command, running, "revoke", "ann", "--for", "1h", expect=3
            )
            await workers.send("revoke", {"user": "bob", "until": in_one_hour()})
            assert await refusal(running, running.token("cid")) == "not_available"

            await asyncio.to_thread(redis.restart)
            notice = await closed(bob)

            assert (answer.status, listed.status) == (503, 503)
            assert notice["code"] == "revoked"
            assert not ann.websocket.closed
            assert [
                each["user"] for each in (await api.get("/api/revocations"))["items"]
            ] == ["bob"]


async def test_an_operator_revokes_while_the_broker_is_away(
    tmp_path: Path,
) -> None:
    """The store is enough for it."""
    async with LocalNode.start() as node:
        inbox = f"sqlite:{tmp_path / 'inbox.sqlite3'}"
        settings = settings_for(node, "bridge", inbox=inbox)
        async with running_bridge(settings) as running, asking(running) as api:
            token = running.token("ann")
            async with open_windows(running.listening.public_url, [token]) as (window,):
                await node.kill()
                body = {"until": in_one_hour()}
                answer = await api.ask("POST", "/api/users/ann/revoke", body)
                assert (await closed(window))["code"] == "revoked"
            assert answer.status == 200
            assert await refusal(running, token) == "token_revoked"


async def test_the_commands_revoke_and_list(broker: LocalNode, namespace: str) -> None:
    """Each form; the list is in the order of users, and in pages for --json."""
    async with running_bridge(settings_for(broker, namespace)) as running:

        async def run(*words: str, expect: int = 0) -> tuple[str, str]:
            shown = await asyncio.to_thread(run_command, running, *words, expect=expect)
            return shown.stdout, shown.stderr

        async with open_windows(
            running.listening.public_url, [running.token("ann")]
        ) as (window,):
            await run("revoke", "ann", "--jti", "of another token", "--for", "1h")
            _, note = await run("revoke", "ann", "--for", "1h")
            assert (await closed(window))["code"] == "revoked"
        assert "revoked until" in note
        assert note.endswith(": all tokens\n")
        await run("revoke", "b/..", "--issued-before", "now", "--for", "30d")
        before = ("--issued-before", "2026-01-31T12:00")
        made, _ = await run("revoke", "cid", *before, "--for", "1h", "--json")
        for wrong in (
            ("--for", "soon"),
            ("--for", "1h", "--issued-before", "then"),
            ("--for", "1h", "--issued-before", "now", "--jti", "7"),
        ):
            await run("revoke", "ann", *wrong, expect=2)

        table, _ = await run("revocations")
        page, _ = await run("revocations", "--user", "ann", "--json")
        async with asking(running) as api:
            first = await api.get("/api/revocations?limit=3")
            rest = await api.get(f"/api/revocations?limit=3&cursor={first['next']}")
            refused = await api.ask(
                "POST", "/api/users/ann/revoke", {"until": "2020-01-31T12:00:00Z"}
            )

    users = [each["user"] for each in (*first["items"], *rest["items"])]
    assert users == ["ann", "ann", "b/..", "cid"]
    assert rest["next"] is None
    assert orjson.loads(made)["issued_before_s"] > 1_700_000_000
    assert {each["jti"] for each in orjson.loads(page)["items"]} == {
        "of another token",
        None,
    }
    for text in ("with jti of another token", "all", "issued before"):
        assert text in table
    assert refused.status == 422
    assert refused.body["pointer"] == "/until"
