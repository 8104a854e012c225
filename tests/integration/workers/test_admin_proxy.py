"""The operator port of several workers, with a worker that only answers requests."""

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp import web

from bridge.http.listeners import serve, serve_on_unix_socket
from bridge.settings.load import load_settings
from bridge.workers.admin_proxy import AdminProxy
from bridge.workers.pool import WorkerPool
from tests.conftest import SLOW_FACTOR
from tests.integration.running import OPERATOR_TOKEN

PROGRAM = Path(__file__).with_name("fake_worker.py")


async def test_a_target_with_a_host_is_forwarded_as_a_path(tmp_path: Path) -> None:
    """HTTP lets clients of proxies send such targets, and every server has to accept them."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=f"asked for {request.raw_path}")

    app = web.Application()
    app.router.add_post("/api/publish", answer)
    given = {
        "auth": "open",
        "operator_token": OPERATOR_TOKEN,
        "operator_allowed_hosts": "bridge.example",
    }
    settings = await asyncio.to_thread(load_settings, given)
    (tmp_path / "order").write_text("run")
    pool = WorkerPool(
        str(tmp_path),
        count=1,
        command=lambda _slot, control_fd: [
            *(sys.executable, "-S", str(PROGRAM)),
            *(str(control_fd), str(tmp_path / "order")),
        ],
    )
    proxy = await asyncio.to_thread(AdminProxy, settings, pool)
    stop, listening = asyncio.Event(), asyncio.Event()
    async with AsyncExitStack() as stack:
        socket_path = pool.workers[0].slot.operator_socket
        await serve_on_unix_socket(stack, app, socket_path)
        url = await serve(
            stack,
            proxy.app,
            ("127.0.0.1",),
            0,
            "BRIDGE_OPERATOR_PORT",
            site=web.SockSite,
        )
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        stack.callback(stop.set)
        tasks.create_task(
            pool.run(stop, on_listening=listening.set, drain_s=lambda: 5.0),
            name="pool",
        )
        async with asyncio.timeout(10 * SLOW_FACTOR):
            await listening.wait()
            port = int(url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"POST http://bridge.example:8081/api/publish?a=%2F HTTP/1.1\r\n"
                b"Host: bridge.example:8081\r\nConnection: close\r\n"
                + f"X-API-Key: {OPERATOR_TOKEN}\r\n\r\n".encode()
            )
            text = (await reader.read()).decode()
            writer.close()

    assert text.endswith("asked for /api/publish?a=%2F")
