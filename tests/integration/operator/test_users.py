"""Users, their inboxes, and kicks, over the API and on the command line."""

import asyncio
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import orjson
import pytest

from bridge.core.message_options import MessageOptions, render_options
from bridge.core.properties import PERSISTENT, Properties
from tests.conftest import eventually
from tests.integration.operator.api_client import ApiAsker, asking
from tests.integration.operator.commands import (
    CommandOutput,
    environment,
    run_command,
    run_with,
)
from tests.integration.running import (
    OPERATOR_TOKEN,
    RunningBridge,
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode

API_KEY = "the-key-of-the-web-tier"
# Difficult names of users: markup, paths, escapes, wildcards, right-to-left text.
HOSTILE = [
    ".",
    "..",
    "../../overview",
    "a/b",
    "a.b",
    "%2F",
    "{ann}",
    "%",
    "100%25",
    "?q=1",
    "#",
    "[red]bold[/red]",
    "[/]",
    ":boom:",
    "<img src=x onerror=alert(1)>",
    "' OR 1=1 --",
    "\u202egnp.exe",
    "ä\U0001f600",
    "a b",
    "+",
    "~",
    "\\",
]


def path_of(user: str) -> str:
    """Return a user as one path segment."""
    return quote(user, safe="").replace(".", "%2E")


async def settled(running: RunningBridge, messages: int) -> None:
    """Wait until `count` messages are stored."""
    await eventually(lambda: running.settled("stored") == messages)


async def all_users(api: ApiAsker, query: str = "") -> list[str]:
    """List users page by page."""
    names: list[str] = []
    cursor = ""
    while True:
        page = await api.get(f"/api/users?limit=4{query}{cursor}")
        names += [item["user"] for item in page["items"]]
        if page["next"] is None:
            return names
        cursor = f"&cursor={page['next']}"


async def test_users_are_listed_with_windows_and_inboxes(
    broker: LocalNode, namespace: str
) -> None:
    """The list has users with and without windows, with and without inboxes."""
    began_s = time.time()
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        open_worker(broker, namespace) as worker,
        asking(running) as api,
        open_windows(
            running.listening.public_url,
            [running.token("ann"), running.token("ann"), running.token("eve")],
        ) as windows,
    ):
        for user in ("ann", "ann", "bob"):
            await worker.publish(user, 1)
        await settled(running, 3)
        await eventually(lambda: len(windows[0].data()) == 2)
        await windows[0].websocket.send_str("3")

        async def is_delivered() -> bool:
            return bool((await api.get("/api/users/ann"))["delivered"] == 2)

        await eventually(is_delivered)
        listed = (await api.get("/api/users"))["items"]
        online = await all_users(api, "&online=true")
        named = await all_users(api, "&q=b")
        detail = await api.get("/api/users/ann")

    facts = {item["user"]: item for item in listed}
    assert list(facts) == ["ann", "bob", "eve"]
    ann, bob, eve = facts.values()
    assert (ann["windows"], ann["depth"], ann["waiting"], ann["delivered"]) == (
        2,
        2,
        0,
        2,
    )
    assert (bob["windows"], bob["depth"], bob["waiting"], bob["delivered"]) == (
        0,
        1,
        1,
        0,
    )
    assert (eve["windows"], eve["depth"], eve["last"]) == (1, 0, 0)
    assert began_s < ann["last_connect_s"] < time.time()
    assert bob["last_connect_s"] is None
    assert online == ["ann", "eve"]
    assert named == ["bob"]
    alone = {"bridges": 1, "silent": 0}
    (came,) = detail.pop("presence")
    assert came == {"at_s": came["at_s"], "change": "connected", "bridge": ""}
    assert detail | {"windows": 2} == ann | alone
    for window in detail["windows"]:
        assert window["transport"] == "websocket"
        assert window["address"] == "127.0.0.1"
        assert began_s < window["connected_s"] < time.time()
        assert (window["offset"], window["acks"], window["live"]) == (2, "auto", True)


async def test_presence_of_a_thousand_users_is_one_request(
    broker: LocalNode, namespace: str
) -> None:
    """With the key of the web tier; one user more is refused, with the limit in the answer."""
    # The longest names, all of whose bytes are escaped in the URL.
    users = [f"{n:03}" + "ä" * 126 for n in range(1000)]
    async with (
        running_bridge(settings_for(broker, namespace, api_key=API_KEY)) as running,
        aiohttp.ClientSession(headers={"X-API-Key": API_KEY}) as web_tier,
        open_windows(
            running.listening.public_url, [running.token(users[n]) for n in (3, 999, 3)]
        ),
    ):
        url = f"{running.listening.operator_url}/api/presence"

        async def ask(names: list[str]) -> tuple[int, dict[str, Any]]:
            async with web_tier.get(
                f"{url}?{urlencode({'user': names}, doseq=True)}"
            ) as got:
                return got.status, await got.json()

        status, found = await ask(users)
        refused, problem = await ask([*users, "one-more"])

    assert (status, [each["user"] for each in found["items"]]) == (200, users)
    assert (found["bridges"], found["silent"]) == (1, 0)
    assert {n: each for n, each in enumerate(found["items"]) if each["online"]} == {
        3: {"user": users[3], "online": True, "windows": 2},
        999: {"user": users[999], "online": True, "windows": 1},
    }
    assert (refused, problem["pointer"]) == (422, "user")
    assert problem["detail"] == (
        "user is given 1,001 times, allowed are 1,000: ask in several requests"
    )


async def test_the_presence_of_some_users_is_a_command(
    broker: LocalNode, namespace: str
) -> None:
    """It agrees with the list of users online, and one name alone stays the detail."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        open_windows(
            running.listening.public_url, [running.token(u) for u in ("ann", "..")]
        ),
    ):

        async def run(*words: str, expect: int = 0) -> CommandOutput:
            return await asyncio.to_thread(run_command, running, *words, expect=expect)

        shown = await run("users", "bob", "ann", "..", "--online")
        as_json = await run("users", "ann", "--online", "--json")
        listed = await run("users", "--online", "--json")
        refused = await run("users", "ann", "bob", expect=2)

    lines = [line.split() for line in shown.stdout.splitlines()]
    assert lines == [
        ["user", "online", "windows"],
        ["bob", "no", "0"],
        ["ann", "yes", "1"],
        ["..", "yes", "1"],
    ]
    (ann,) = orjson.loads(as_json.stdout)["items"]
    assert ann == {"user": "ann", "online": True, "windows": 1}
    online = [each["user"] for each in orjson.loads(listed.stdout)["items"]]
    assert online == ["..", "ann"]
    assert "--online" in refused.stderr


async def test_users_may_have_difficult_names(
    broker: LocalNode, namespace: str
) -> None:
    """Slashes, dots, wildcards and markup have no special meaning."""
    async with (
        running_bridge(settings_for(broker, namespace, inbox="memory:")) as running,
        open_worker(broker, namespace) as worker,
        asking(running) as api,
    ):
        for user in HOSTILE:
            await worker.publish(user, 1)
        await settled(running, len(HOSTILE))

        assert await all_users(api) == sorted(HOSTILE)
        for user in HOSTILE:
            assert await all_users(api, f"&q={quote(user, safe='')}") == sorted(
                each for each in HOSTILE if each.startswith(user)
            )
            detail = await raw_get(running, f"/api/users/{path_of(user)}")
            assert (detail["user"], detail["depth"]) == (user, 1)
            page = await raw_get(running, f"/api/users/{path_of(user)}/inbox")
            assert len(page["items"]) == 1
        for user in (".", ".."):
            # Browsers resolve dot segments before they send a request.
            assert (await api.get(f"/api/users/{user}%7F"))["user"] == user

        table = await asyncio.to_thread(run_command, running, "users")
        one = await asyncio.to_thread(run_command, running, "inbox", "[red]bold[/red]")
        dots = await asyncio.to_thread(run_command, running, "inbox", "..", "--json")

    for user in HOSTILE:
        shown = "\\u202egnp.exe" if user.startswith("\u202e") else user
        assert any(line.startswith(shown) for line in table.stdout.splitlines()), user
    assert "\u202e" not in table.stdout
    assert "waiting" in one.stdout
    assert orjson.loads(dots.stdout)["items"][0]["offset"] == 1


async def raw_get(running: RunningBridge, path: str) -> dict[str, Any]:
    """GET a path without normalization, unlike most clients."""
    host, _, port = running.listening.operator_url.removeprefix("http://").partition(
        ":"
    )
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Bearer {OPERATOR_TOKEN}\r\n\r\n".encode()
    )
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), answer
    found: dict[str, Any] = orjson.loads(body)
    return found


@pytest.mark.parametrize("inbox", ["memory:", "sqlite:{}/inbox.sqlite3"])
async def test_an_inbox_is_read_page_by_page(
    broker: LocalNode,
    namespace: str,
    inbox: str,
    tmp_path: Path,
) -> None:
    """Newest first, with state and size, and with data only on request."""
    properties = Properties(
        delivery_mode=PERSISTENT, message_id=b"m\x1b[31m", type=b"note"
    )
    async with (
        running_bridge(
            settings_for(broker, namespace, inbox=inbox.format(tmp_path))
        ) as running,
        open_worker(broker, namespace) as worker,
        asking(running) as api,
    ):
        async with open_windows(
            running.listening.public_url, [running.token("ann")]
        ) as windows:
            for n in range(3):
                await worker.publish("ann", {"n": n})
            await eventually(lambda: len(windows[0].data()) == 3)
        position = windows[0].events[-1][2]
        await eventually(lambda: not len(running.bridge.components.sockets.rooms))
        await worker.publish("ann", {"n": 3}, properties=properties)
        await settled(running, 4)

        first = await api.get("/api/users/ann/inbox?limit=2")
        second = await api.get(f"/api/users/ann/inbox?limit=2&cursor={first['next']}")
        whole = await api.get("/api/users/ann/inbox?data=true")
        table = await asyncio.to_thread(run_command, running, "inbox", "ann", "--data")
        as_json = await asyncio.to_thread(
            run_command, running, "inbox", "ann", "--json", "--limit", "3"
        )
        nobody = await api.ask("GET", "/api/users/nobody/inbox")

    items = [*first["items"], *second["items"]]
    assert second["next"] is None
    assert [item["offset"] for item in items] == [4, 3, 2, 1]
    assert [item["state"] for item in items] == ["waiting", *["delivered"] * 3]
    assert items[1]["position"] == position
    newest = items[0]
    assert (newest["event"], newest["message_id"], newest["bytes"]) == (
        "note",
        "m\x1b[31m",
        7,
    )
    assert {item["data"] for item in items} == {None}
    assert [item["data"] for item in whole["items"]] == [
        f'{{"n":{n}}}' for n in (3, 2, 1, 0)
    ]
    assert "m\\x1b[31m" in table.stdout
    assert "\x1b[31m" not in table.stdout
    assert '{"n":3}' in table.stdout
    printed = orjson.loads(as_json.stdout)
    assert ([item["offset"] for item in printed["items"]], nobody.status) == (
        [4, 3, 2],
        404,
    )


async def test_retained_messages_are_listed(broker: LocalNode, namespace: str) -> None:
    """Oldest first, page by page, also those that the inbox no longer has."""
    async with (
        running_bridge(
            settings_for(broker, namespace, inbox_max_messages=1)
        ) as running,
        open_worker(broker, namespace) as worker,
        asking(running) as api,
    ):
        for key in "abc":
            options = MessageOptions(key=key, is_retained=True)
            headers = Properties(
                delivery_mode=PERSISTENT, headers=render_options(options)
            )
            await worker.publish("ann", key, properties=headers)
        await worker.publish("ann", "plain")
        await settled(running, 4)

        path = "/api/users/ann/inbox?retained=true&data=true&limit=2"
        first = await api.get(path)
        second = await api.get(f"{path}&cursor={first['next']}")
        command = ("inbox", "ann", "--retained", "--data", "--json")
        printed = await asyncio.to_thread(run_command, running, *command)
        shown = await asyncio.to_thread(run_command, running, *command[:3])
        few_columns = environment(running) | {"COLUMNS": "80"}
        narrow = await asyncio.to_thread(run_with, few_columns, *command[:3])

    items = [*first["items"], *second["items"]]
    assert second["next"] is None
    assert [item["offset"] for item in items] == [1, 2, 3]
    assert [item["data"] for item in items] == ['"a"', '"b"', '"c"']
    assert [item["key"] for item in items] == ["a", "b", "c"]
    assert orjson.loads(printed.stdout)["items"] == items
    header, *rows = shown.stdout.splitlines()
    assert "key" in header.split()
    assert [row.split()[-2] for row in rows] == ["a", "b", "c"]
    assert narrow.stdout.splitlines()[0].split()[-1] == "key"


async def test_an_empty_list_is_a_sentence(broker: LocalNode, namespace: str) -> None:
    """A header alone looks like a fault of the command; JSON stays what it is."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        asking(running) as api,
    ):
        said = {}
        for line in ("users", "users --online --begins a", "revocations --user ann"):
            shown = await asyncio.to_thread(run_command, running, *line.split())
            assert shown.stdout == ""
            said[line] = shown.stderr.splitlines()[0]
        body = {"user": "ann", "data": 1, "id": "m"}
        assert (await api.ask("POST", "/api/publish", body)).status == 202
        await settled(running, 1)
        for line in ("users ann", "inbox ann --retained"):
            shown = await asyncio.to_thread(run_command, running, *line.split())
            assert shown.stdout == ""
            said[line] = shown.stderr.splitlines()[-1]
        as_json = await asyncio.to_thread(run_command, running, "users", "--json")

    assert said == {
        "users": "no users",
        "users --online --begins a": "no users are online with a name that begins with a",
        "revocations --user ann": "no revocations for ann",
        "users ann": "no window is connected",
        "inbox ann --retained": "no retained messages for ann",
    }
    assert len(orjson.loads(as_json.stdout)["items"]) == 1


async def test_kicking_closes_all_windows_of_one_user(
    broker: LocalNode, namespace: str
) -> None:
    """They receive the reason, other users stay connected, a dry run closes none."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        asking(running) as api,
        open_windows(
            running.listening.public_url,
            [running.token("a/b"), running.token("a/b"), running.token("bob")],
        ) as windows,
    ):
        dry = await asyncio.to_thread(run_command, running, "kick", "a/b", "--dry-run")
        assert len(running.bridge.components.sockets.rooms) == 3
        kicked = await asyncio.to_thread(run_command, running, "kick", "a/b", "--json")
        await eventually(lambda: all(w.websocket.closed for w in windows[:2]))
        again = await api.ask("POST", "/api/users/bob/kick")
        await eventually(lambda: windows[2].websocket.closed)
        nobody = await api.ask("POST", "/api/users/nobody/kick")

    assert "2 windows of a/b would be closed" in dry.stderr
    alone = {"bridges": 1, "silent": 0}
    assert orjson.loads(kicked.stdout) == {"kicked": 2, **alone}
    for window in windows:
        (notice,) = window.data("bridge:closing")
        assert isinstance(notice, dict)
        assert (notice["code"], notice["reconnect"]) == ("kicked", False)
    assert again.body == {"kicked": 1, **alone}
    assert nobody.body == {"kicked": 0, **alone}


async def test_invalid_requests_are_refused(broker: LocalNode, namespace: str) -> None:
    """The answer has the status and the pointer."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        asking(running) as api,
        aiohttp.ClientSession() as stranger,
    ):
        found = [
            (await api.ask(method, path)).status
            for method, path in (
                ("GET", "/api/users?cursor=!"),
                ("GET", "/api/users?cursor=NQ"),
                ("GET", "/api/users?limit=0"),
                ("GET", "/api/users?online=maybe"),
                ("GET", "/api/users?colour=red"),
                ("GET", "/api/users/" + "x" * 256),
                ("GET", "/api/users/a%0Ab"),
                ("GET", "/api/users/ann%7F"),
                ("POST", "/api/users/a%0Ab/kick"),
                ("GET", "/api/users/ann/inbox?cursor=ImEi"),
                ("GET", "/api/users/nobody"),
                ("DELETE", "/api/users/ann"),
            )
        ]
        url = running.listening.operator_url
        async with stranger.post(f"{url}/api/users/ann/kick") as refused:
            assert refused.status == 401

    assert found == [422, 422, 422, 422, 400, 422, 422, 422, 422, 422, 404, 405]
