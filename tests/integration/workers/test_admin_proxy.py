"""The operator door of several workers, with a worker behind it that is only a door."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
from aiohttp import web

from bridge.http.listeners import serve, serve_on_unix_socket
from bridge.settings.load import load_settings
from bridge.workers.admin_proxy import Door
from bridge.workers.pool import Crew
from tests.conftest import SLOW_FACTOR


async def test_an_address_with_its_host_is_asked_for_as_one_without(
    tmp_path: Path,
) -> None:
    """HTTP lets clients of proxies write it so, and every server has to take it."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=f"asked for {request.raw_path}")

    worker = web.Application()
    worker.router.add_post("/api/publish", answer)
    settings = await asyncio.to_thread(load_settings, {"auth": "open"})
    crew = Crew(str(tmp_path), count=1, command=lambda _place, _line: [])
    (member,) = crew.members
    door = await asyncio.to_thread(Door, settings, crew)
    async with AsyncExitStack() as stack:
        path = member.place.operator_socket
        await serve_on_unix_socket(stack, worker, path)
        member.session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=path))
        )
        member.is_listening = True
        url = await serve(stack, door.app, "127.0.0.1", 0, "BRIDGE_OPERATOR_PORT")
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST http://bridge.example:8081/api/publish?a=%2F HTTP/1.1\r\n"
            b"Host: bridge.example:8081\r\nConnection: close\r\n\r\n"
        )
        async with asyncio.timeout(10 * SLOW_FACTOR):
            text = (await reader.read()).decode()
        writer.close()

    assert text.endswith("asked for /api/publish?a=%2F")
