"""Errors over HTTP have one form and reveal nothing internal."""

import asyncio
import io

import pytest
from aiohttp import ClientConnectionResetError, web

from bridge.http.request_body import read_body
from bridge.http.responses import answer_with_problems, harden, problem
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


def test_a_problem_has_a_detail_and_a_pointer() -> None:
    """The form is that of RFC 9457, with a pointer into the body."""
    response = problem(
        422, "user is empty", pointer="/user", headers={"Retry-After": "2"}
    )

    assert response.status == 422
    assert response.content_type == "application/problem+json"
    assert response.headers["Retry-After"] == "2"
    assert response.body == (
        b'{"type":"about:blank","title":"Unprocessable Content","status":422,'
        b'"detail":"user is empty","pointer":"/user"}'
    )


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("DELETE", "/", 405)]
)
async def test_refusals_of_the_framework_are_problems(
    open_app: Open, method: str, path: str, status: int
) -> None:
    """Clients have to parse only one form of error."""
    client = await client_of(open_app, ValueError())

    async with client.request(method, path) as response:
        assert response.status == status
        assert response.content_type == "application/problem+json"
        assert (await response.json())["status"] == status
        if status == 405:
            assert "POST" in response.headers["Allow"]


async def test_a_body_over_the_limit_is_a_problem(open_app: Open) -> None:
    """413, before the body is kept in memory."""
    client = await client_of(open_app, ValueError())

    async with client.post("/", data=b"x" * 11) as response:
        assert response.status == 413
        assert response.content_type == "application/problem+json"


async def test_a_redirect_stays_a_redirect(open_app: Open) -> None:
    """A redirect is not an error."""
    client = await client_of(open_app, web.HTTPFound("/there"))

    async with client.get("/", allow_redirects=False) as response:
        assert response.status == 302


async def test_the_text_of_a_bug_goes_to_the_log_and_not_to_the_client(
    open_app: Open,
) -> None:
    """The text of an exception may contain secrets."""
    stream = io.StringIO()
    configure_logs(level="info", log_format="json", stream=stream)
    client = await client_of(open_app, ValueError("an inner secret"))

    async with client.get("/") as response:
        assert response.status == 500
        assert "secret" not in await response.text()
    assert "http.request_failed" in stream.getvalue()
    assert "an inner secret" in stream.getvalue()


async def test_a_client_that_disconnects_is_not_logged(open_app: Open) -> None:
    """Every reload of a page does; tracebacks for it would hide other log entries."""
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
async def test_a_body_that_cannot_be_read_is_not_logged(
    open_app: Open, headers: bytes, *, is_answered: bool
) -> None:
    """Anyone can send one, also to the sign-in, and could fill the log."""
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


async def test_every_answer_has_the_security_headers(
    open_app: Open,
) -> None:
    """Errors have them too: no sniffing, no caching, no version."""
    client = await client_of(open_app, ValueError())

    for path in ("/", "/nowhere"):
        async with client.get(path) as response:
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["Server"] == "bridge"
