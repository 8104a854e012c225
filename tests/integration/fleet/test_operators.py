"""Two bridges with one Redis: the API of each covers the users of both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from tests.conftest import eventually
from tests.integration.operator.api_client import ApiAsker, asking
from tests.integration.operator.commands import run_command
from tests.integration.running import (
    RunningBridge,
    open_windows,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode
from tests.redis_server import RedisServer


@dataclass(frozen=True)
class Pair:
    """Two bridges, their Redis, and an operator at the first."""

    first: RunningBridge
    second: RunningBridge
    redis: RedisServer
    api: ApiAsker
    stack: AsyncExitStack


@pytest_asyncio.fixture
async def pair(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> AsyncIterator[Pair]:
    """Start both; each can ask the other when the block is entered."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(
            RedisServer.start(tmp_path / "redis", is_durable=False)
        )
        first, second = [
            await stack.enter_async_context(
                running_bridge(
                    settings_for(broker, namespace, inbox=redis.url, name=f"bridge-{n}")
                )
            )
            for n in (1, 2)
        ]
        api = await stack.enter_async_context(asking(first))

        async def hear_each_other() -> bool:
            return bool((await api.get("/api/users"))["bridges"] == 2)

        await eventually(hear_each_other)
        yield Pair(first, second, redis, api, stack)


async def test_users_of_both_bridges_are_in_one_list(pair: Pair) -> None:
    """By name, each once, with the windows on both bridges, also across pages."""
    first, second = pair.first, pair.second
    async with (
        open_windows(
            first.listening.public_url, [first.token(u) for u in ("ann", "cid", "eve")]
        ),
        open_windows(
            second.listening.public_url, [first.token(u) for u in ("ann", "bob", "dan")]
        ),
    ):
        pages = []
        cursor = ""
        while True:
            page = await pair.api.get(f"/api/users?online=true&limit=2{cursor}")
            assert (page["bridges"], page["silent"]) == (2, 0)
            pages.append([(each["user"], each["windows"]) for each in page["items"]])
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        presence = await pair.api.get(
            "/api/presence?user=fay&user=" + "&user=".join(["ann", "bob", "eve"])
        )
        ann = await pair.api.get("/api/users/ann")
        bob = await pair.api.get("/api/users/bob")
        shown = await asyncio.to_thread(run_command, first, "users", "ann")

    assert pages == [[("ann", 2), ("bob", 1)], [("cid", 1), ("dan", 1)], [("eve", 1)]]
    assert [(each["user"], each["windows"]) for each in presence["items"]] == [
        ("fay", 0),
        ("ann", 2),
        ("bob", 1),
        ("eve", 1),
    ]
    assert [each["online"] for each in presence["items"]] == [False, True, True, True]
    assert (presence["bridges"], presence["silent"]) == (2, 0)
    assert [each["bridge"] for each in ann["windows"]] == ["bridge-1", "bridge-2"]
    assert [each["bridge"] for each in bob["windows"]] == ["bridge-2"]
    assert bob["last_connect_s"] == pytest.approx(
        bob["windows"][0]["connected_s"], abs=5
    )
    assert (ann["bridges"], ann["silent"]) == (2, 0)
    assert "from 2 bridges" in shown.stderr


async def test_a_kick_at_one_bridge_closes_the_windows_on_both(pair: Pair) -> None:
    """Windows of other users stay open."""
    first, second = pair.first, pair.second
    users = [first.token(user) for user in ("ann", "bob")]
    async with (
        open_windows(first.listening.public_url, users) as here,
        open_windows(second.listening.public_url, users) as there,
    ):
        kicked = await asyncio.to_thread(run_command, first, "kick", "ann", "--json")
        for windows in (here, there):
            await eventually(lambda windows=windows: windows[0].websocket.closed)  # type: ignore[misc] # mypy does not see through the default
        assert [w.websocket.closed for w in (here[1], there[1])] == [False, False]

    assert orjson.loads(kicked.stdout) == {"kicked": 2, "bridges": 2, "silent": 0}
    for windows in (here, there):
        (notice,) = windows[0].data("bridge:closing")
        assert isinstance(notice, dict)
        assert (notice["code"], notice["reconnect"]) == ("kicked", False)


async def test_a_trace_has_the_journals_of_both_bridges(
    pair: Pair,
) -> None:
    """One bridge consumes the message, and each writes it to its own windows."""
    first, second = pair.first, pair.second
    token = first.token("ann")
    async with (
        open_windows(first.listening.public_url, [token]) as here,
        open_windows(second.listening.public_url, [token, token]) as there,
    ):
        body = {"user": "ann", "data": 1, "id": "m-1"}
        published = await pair.api.ask("POST", "/api/publish", body=body)
        assert published.status == 202
        for window in (*here, *there):
            await eventually(lambda window=window: window.data() == [1])  # type: ignore[misc] # mypy does not see through the default
        other = await pair.stack.enter_async_context(asking(second))
        await here[0].websocket.send_str("3")

        async def is_delivered() -> bool:
            told = [await api.get("/api/trace/m-1") for api in (pair.api, other)]
            return all(each["fate"] == "delivered" for each in told)

        await eventually(is_delivered)
        of_both = [await api.get("/api/trace/m-1") for api in (pair.api, other)]
        named = await pair.api.get("/api/trace/m-1?user=ann")
        shown = await asyncio.to_thread(run_command, first, "trace", "m-1")

    for told in (*of_both, named):
        written = {
            step["bridge"]: step["windows"]
            for step in told["story"]
            if step["stage"] == "written"
        }
        assert written == {"bridge-1": 1, "bridge-2": 2}
        (publishing,) = [s for s in told["story"] if s["stage"] == "published"]
        assert publishing["bridge"] == "bridge-1"
        times = [step["at_s"] for step in told["story"] if step["at_s"] is not None]
        assert times == sorted(times)
        assert told["fate"] == "delivered"
        assert not [line for line in told["silent"] if "bridges" in line]
    assert "bridge-1" in shown.stdout
    assert "bridge-2" in shown.stdout


async def test_a_trace_reports_how_many_bridges_did_not_answer(pair: Pair) -> None:
    """Their windows and journals are missing in the story."""

    async def hang(_question: object) -> object:
        await asyncio.Event().wait()
        raise AssertionError

    fleet = pair.second.bridge.components.fleet
    assert fleet is not None
    fleet.serve(hang)
    body = {"user": "ann", "data": 1, "id": "m-2"}
    assert (await pair.api.ask("POST", "/api/publish", body=body)).status == 202

    told = await pair.api.get("/api/trace/m-2")

    unheard = [line for line in told["silent"] if "of the bridges" in line]
    assert unheard == [
        "windows and journals of 1 of the bridges are known, 1 did not answer"
    ]


async def test_a_bridge_that_hangs_is_reported_as_silent(
    pair: Pair,
) -> None:
    """An incomplete answer must not look complete."""

    async def hang(_question: object) -> object:
        await asyncio.Event().wait()
        raise AssertionError

    fleet = pair.second.bridge.components.fleet
    assert fleet is not None
    fleet.serve(hang)

    answer = await pair.api.get("/api/users?online=true")

    assert (answer["items"], answer["bridges"], answer["silent"]) == ([], 1, 1)


async def test_foreign_messages_on_the_channel_are_ignored(pair: Pair) -> None:
    """They are invalid, or questions of a later version."""
    fleet = pair.second.bridge.components.fleet
    assert fleet is not None
    bodies = ["nonsense", "[]", '{"from": 1}', '{"number": 99, "answer": 2}']
    for channel in (fleet._all, fleet._own):
        for body in bodies:
            await asyncio.to_thread(pair.redis.command, "PUBLISH", channel, body)
    heard = await fleet.ask({"do": "something new"})
    assert (heard.answers, heard.silent) == ([None], 0)

    answer = await pair.api.get("/api/users?online=true")

    assert (answer["bridges"], answer["silent"]) == (2, 0)


async def test_without_the_store_an_operator_sees_and_kicks_local_windows(
    pair: Pair,
) -> None:
    """The number of silent bridges is unknown until the store is available again."""
    first = pair.first
    async with open_windows(
        first.listening.public_url, [first.token("ann")]
    ) as windows:
        await asyncio.to_thread(pair.redis.kill)
        kicked = await pair.api.ask("POST", "/api/users/ann/kick")
        await eventually(lambda: windows[0].websocket.closed)
    assert kicked.body == {"kicked": 1, "bridges": 1, "silent": None}

    await asyncio.to_thread(pair.redis.run)

    async def are_together() -> bool:
        answer = await pair.api.get("/api/users?online=true")
        return bool((answer["bridges"], answer["silent"]) == (2, 0))

    await eventually(are_together)
