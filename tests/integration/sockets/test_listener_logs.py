"""No log line holds message data or credentials, at any level."""

import asyncio
import json
import logging

import pytest
from aiohttp import ClientSession

from tests.conftest import eventually
from tests.integration.sockets.conftest import Log
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import raw_poller, raw_window
from tests.integration.sockets.running_server import COOKIE, RunningServer
from tests.integration.sockets.test_messages import options
from tests.tokens import SECRET, token

DATA = "what-the-message-says"


@pytest.mark.parametrize("are_libraries_loud", [False, True])
async def test_no_log_line_holds_data_or_token(
    server: RunningServer, pages: Pages, log: Log, *, are_libraries_loud: bool
) -> None:
    """At level debug, through the whole life of several windows."""
    if are_libraries_loud:
        # An operator may raise the level for diagnosis; payloads must stay out of the log.
        logging.getLogger("asyncio").setLevel(logging.DEBUG)
        logging.getLogger("aiohttp").setLevel(logging.DEBUG)
    used = token()
    for transport in ("websocket", "polling"):
        await pages.connected(
            transport, server.url, auth={"token": used}, transports=[transport]
        )
    await server.store("alice", DATA, {"deep": [DATA]})
    for transport in ("websocket", "polling"):
        await pages.until(transport, "event", "message", count=2)
        pages.command("send", transport, "upload", DATA, {"bytes": [1]})
        pages.command("emit", transport, "ack", DATA)
        pages.command("emit", transport, "bridge:refresh", used)
    server.cut("alice")
    async with raw_window(server, headers={"Cookie": f"{COOKIE}={used}"}) as window:
        await window.connect()
        await window.send(f'42["{DATA}"')
        await window.ended()
    async with raw_window(server, token=used) as window:
        await window.connect(token=used + "x")
        await window.connect(token=[DATA])
        await window.send(f"40/{DATA},{json.dumps({'token': used})}")
    async with raw_poller(server) as page:
        await page.join("alice")
        async with page.http.post(page.url, data=DATA) as response:
            await response.read()
        sid = page.sid
    server.io.kick("alice")
    await asyncio.sleep(0)

    for secret in (DATA, SECRET, used, used.rpartition(".")[2], sid, "alice"):
        assert secret not in log.text
    assert "window.disconnected" in log.text  # the log was captured


async def test_refused_windows_are_logged_with_code_and_address_only(
    server: RunningServer, log: Log
) -> None:
    """Enough to see an attack, without any input of the attacker."""
    async with raw_window(server) as window:
        await window.connect(token="forged\nline")

    (line,) = [line for line in log.lines if line["event"] == "window.refused"]
    assert line["code"] == "token_invalid"
    assert line["address"] == "127.0.0.1"
    assert "forged" not in log.text


async def test_a_client_of_another_version_is_logged_once_a_minute_and_counted(
    server: RunningServer, pages: Pages, log: Log
) -> None:
    """Socket.IO 2 repeats its request forever, and its developer sees a 400 only."""
    pages.open("old", server.url, version="2.5", transports=["polling"])
    await eventually(
        lambda: server.count("clients_unsupported_total", version="3") >= 2
    )
    async with ClientSession() as http:
        for number in range(3):
            await http.get(f"{server.url}/socket.io/?EIO=<{number}>&transport=polling")

    lines = [line for line in log.lines if line["event"] == "client.unsupported"]
    assert [(line["version"], line["address"]) for line in lines] == [
        ("3", "127.0.0.1")
    ]
    assert "socket.io-client 2" in lines[0]["problem"]
    assert server.count("clients_unsupported_total", version="other") == 3


async def test_a_closed_window_is_logged_once_with_the_hash_of_its_user(
    server: RunningServer, pages: Pages, log: Log
) -> None:
    """The log distinguishes users without naming them."""
    await pages.connected("page", server.url, **options("alice", "websocket"))
    server.io.kick("alice")

    lines = [line for line in log.lines if line["event"] == "window.closed"]
    assert [line["code"] for line in lines] == ["kicked"]
    assert len(lines[0]["user"]) == 12
