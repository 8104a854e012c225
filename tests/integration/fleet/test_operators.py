"""Two bridges with one Redis: an operator at either sees and reaches the users of both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from bridge.broker.local_node import LocalNode
from tests.conftest import eventually
from tests.integration.operator.asking import ApiAsker, asking
from tests.integration.operator.commands import run_command
from tests.integration.running import (
    RunningBridge,
    open_windows,
    running_bridge,
    settings_for,
)
from tests.redis_server import RedisServer


@dataclass(frozen=True)
class Pair:
    """Two bridges, their Redis, and an operator at the first."""

    first: RunningBridge
    second: RunningBridge
    redis: RedisServer
    api: ApiAsker


@pytest_asyncio.fixture
async def pair(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> AsyncIterator[Pair]:
    """Both ready, and each heard by the other."""
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
        yield Pair(first, second, redis, api)


async def test_users_of_both_bridges_are_in_one_list(pair: Pair) -> None:
    """By name, each once, with all of their windows; page by page as ever."""
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
        ann = await pair.api.get("/api/users/ann")
        bob = await pair.api.get("/api/users/bob")
        shown = await asyncio.to_thread(run_command, first, "users", "ann")

    assert pages == [[("ann", 2), ("bob", 1)], [("cid", 1), ("dan", 1)], [("eve", 1)]]
    assert [each["bridge"] for each in ann["windows"]] == ["bridge-1", "bridge-2"]
    assert [each["bridge"] for each in bob["windows"]] == ["bridge-2"]
    assert bob["last_connect_s"] == pytest.approx(
        bob["windows"][0]["connected_s"], abs=5
    )
    assert (ann["bridges"], ann["silent"]) == (2, 0)
    assert "from 2 bridges" in shown.stderr


async def test_a_kick_at_one_bridge_closes_the_windows_at_both(pair: Pair) -> None:
    """A user who has to go has to go everywhere; others stay."""
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


async def test_a_bridge_that_hangs_is_told_apart_from_one_without_windows(
    pair: Pair,
) -> None:
    """An answer from a part must not look like the whole."""

    async def hang(_question: object) -> object:
        await asyncio.Event().wait()
        raise AssertionError

    fleet = pair.second.bridge.fleet
    assert fleet is not None
    fleet.serve(hang)

    answer = await pair.api.get("/api/users?online=true")

    assert (answer["items"], answer["bridges"], answer["silent"]) == ([], 1, 1)


async def test_nothing_that_others_publish_there_disturbs_it(pair: Pair) -> None:
    """Neither nonsense nor the words of a later version."""
    fleet = pair.second.bridge.fleet
    assert fleet is not None
    bodies = ["nonsense", "[]", '{"from": 1}', '{"number": 99, "answer": 2}']
    for channel in (fleet._all, fleet._mine):
        for body in bodies:
            await asyncio.to_thread(pair.redis.command, "PUBLISH", channel, body)
    heard = await fleet.ask({"do": "something new"})
    assert (heard.answers, heard.silent) == ([None], 0)

    answer = await pair.api.get("/api/users?online=true")

    assert (answer["bridges"], answer["silent"]) == (2, 0)


async def test_without_the_store_an_operator_still_sees_and_kicks_here(
    pair: Pair,
) -> None:
    """And is told that nobody knows of others; when it is back all is as before."""
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
