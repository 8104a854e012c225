"""A Socket.IO server on a free port, the official client in Node, and all log lines."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from bridge.logging import configure_logs
from tests.integration.sockets.js_pages import Pages, open_pages
from tests.integration.sockets.running_server import RunningServer, open_server
from tests.integration.sockets.security import Security, new_security, using


def pytest_asyncio_loop_factories() -> Mapping[
    str, Callable[[], asyncio.AbstractEventLoop]
]:
    """Use the event loop of the bridge."""
    return {"uvloop": uvloop.new_event_loop}


class Log:
    """The log of the bridge and of all libraries, at level debug."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.may_hold_errors = False

    @property
    def text(self) -> str:
        """The log as text."""
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The parsed lines."""
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    """Collect all log lines; the test fails if one of them holds an exception."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    log = Log()
    configure_logs(level="debug", log_format="json", stream=log.stream)
    # The bridge silences this library, because it logs input of clients. Its errors are
    # checked here nevertheless.
    logging.getLogger("socketio").setLevel(logging.ERROR)
    try:
        yield log
    finally:
        root.handlers, root.level = handlers, level
        logging.getLogger("socketio").setLevel(logging.NOTSET)
    if log.may_hold_errors:
        return
    errors = [
        line
        for line in log.lines
        if "exception" in line
        # The library logs refusals as errors; these are not log lines of the bridge.
        or (line["level"] in {"error", "critical"} and line["logger"] != "socketio")
    ]
    assert not errors, "\n".join(line.get("exception", str(line)) for line in errors)
    assert "Traceback" not in log.text


@pytest.fixture(scope="session")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Security, Path]:
    """A certificate, clients that trust it, and the file of its authority."""
    return new_security(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True)
def security(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Security | None]:
    """Servers and clients without TLS, or with it if the parameter is `tls`."""
    if getattr(request, "param", "plain") == "plain":
        yield None
        return
    security, authority = request.getfixturevalue("trusted")
    # What Node, requests and websocket-client read.
    for name in ("NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(authority))
    with using(security):
        yield security


@pytest_asyncio.fixture
async def server(log: Log) -> AsyncIterator[RunningServer]:  # noqa: ARG001 - it must be set up first
    """A server with generous limits."""
    async with open_server() as server:
        yield server


@pytest_asyncio.fixture
async def pages(log: Log) -> AsyncIterator[Pages]:  # noqa: ARG001 - as above
    """A Node process with the official client."""
    async with open_pages() as pages:
        yield pages
