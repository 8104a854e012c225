"""Errors over HTTP: one form for all, and no word too many."""

import asyncio
import io

import pytest
from aiohttp import ClientConnectionResetError, web

from bridge.http.problems import answer_with_problems, harden, problem
from bridge.http.request_body import read_body
from bridge.logging import configure_logs
from tests.conftest import SLOW_FACTOR
from tests.unit.http.conftest import Client, Open


async def client_of(open_app: Open, failure: Exception) -> Client:
    """Return a client of an app whose one handler raises `failure`."""

    async def fail(_request: web.Request) -> web.Response:
        raise failure

    app = web.Application(middlewares=[answer_with_problems], client_max_size=10)
    app.on_response_prepare.append(harden)
    app.router.add_get("/", fail)

    async def read(request: web.Request) -> web.Response:
        await request.read()
        return web.Response()

    app.router.add_post("/", read)
    return await open_app(app)


def test_a_problem_says_what_and_where() -> None:
    """RFC 9457, with the place in the body that it is about."""
    response = problem(
        422, "user is empty", pointer="/user", headers={"Retry-After": "2"}
    )

    assert response.status == 422
    assert response.content_type == "application/problem+json"
    assert response.headers["Retry-After"] == "2"
    assert response.body == (
        b'{"type":"about:blank","title":"Unprocessable Entity","status":422,'
        b'"detail":"user is empty","pointer":"/user"}'
    )


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("DELETE", "/", 405)]
)
async def test_the_frameworks_own_refusals_are_problems_too(
    open_app: Open, method: str, path: str, status: int
) -> None:
    """A client parses one form."""
    client = await client_of(open_app, ValueError())

    async with client.request(method, path) as response:
        assert response.status == status
        assert response.content_type == "application/problem+json"
        assert (await response.json())["status"] == status
        if status == 405:
            assert "POST" in response.headers["Allow"]


async def test_a_body_over_the_bound_is_a_problem(open_app: Open) -> None:
    """413, before it is kept."""
    client = await client_of(open_app, ValueError())

    async with client.post("/", data=b"x" * 11) as response:
        assert response.status == 413
        assert response.content_type == "application/problem+json"


async def test_a_redirect_stays_a_redirect(open_app: Open) -> None:
    """It is an answer, no error."""
    client = await client_of(open_app, web.HTTPFound("/there"))

    async with client.get("/", allow_redirects=False) as response:
        assert response.status == 302


async def test_a_fault_of_ours_tells_the_log_and_not_the_client(open_app: Open) -> None:
    """What an exception says may hold anything."""
    stream = io.StringIO()
    configure_logs(level="info", log_format="json", stream=stream)
    client = await client_of(open_app, ValueError("an inner secret"))

    async with client.get("/") as response:
        assert response.status == 500
        assert "secret" not in await response.text()
    assert "web.request_failed" in stream.getvalue()
    assert "an inner secret" in stream.getvalue()


async def test_a_client_that_is_gone_is_no_fault_of_ours(open_app: Open) -> None:
    """It happens at every reload of a page; a traceback for each would hide the rest."""
    stream = io.StringIO()
    configure_logs(level="debug", log_format="json", stream=stream)
    client = await client_of(open_app, ClientConnectionResetError("gone"))

    async with client.get("/") as response:
        assert response.status == 400
    assert "gone" not in stream.getvalue()


@pytest.mark.parametrize(
    ("headers", "is_answered"),
    [
        (b"Content-Length: 9\r\nContent-Encoding: gzip\r\n\r\nnot gzip.", True),
        (b"Content-Length: 9\r\n\r\nthe rest", False),
        (b"Transfer-Encoding: chunked\r\n\r\n9\r\nthe rest", False),
    ],
)
async def test_a_body_that_cannot_be_read_is_no_fault_of_ours(
    open_app: Open, headers: bytes, *, is_answered: bool
) -> None:
    """Anybody may send one, to the door where one signs in too, and fill the log."""
    stream = io.StringIO()
    configure_logs(level="debug", log_format="json", stream=stream)
    has_begun, is_over = asyncio.Event(), asyncio.Event()

    async def read(request: web.Request) -> web.Response:
        has_begun.set()
        try:
            await read_body(request, max_bytes=10)
        finally:
            is_over.set()
        return web.Response()

    app = web.Application(middlewares=[answer_with_problems], client_max_size=0)
    app.router.add_post("/", read)
    client = await open_app(app)
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n" + headers)
    if is_answered:
        assert await reader.readline() == b"HTTP/1.1 400 Bad Request\r\n"
    await asyncio.wait_for(has_begun.wait(), 10 * SLOW_FACTOR)
    writer.close()
    await asyncio.wait_for(is_over.wait(), 10 * SLOW_FACTOR)
    await client.close()

    assert "exception" not in stream.getvalue()


async def test_every_answer_carries_the_headers_that_keep_it_in_its_place(
    open_app: Open,
) -> None:
    """Errors too: no sniffing, no caching, no word on versions."""
    client = await client_of(open_app, ValueError())

    for path in ("/", "/nowhere"):
        async with client.get(path) as response:
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["Server"] == "bridge"
