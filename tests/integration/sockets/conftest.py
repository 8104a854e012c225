"""A door on a free port, the official client in Node, and a look into every log."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from bridge.logging import configure_logs
from tests.integration.sockets.js_pages import Pages, open_pages
from tests.integration.sockets.listeners import Door, open_door


def pytest_asyncio_loop_factories() -> Mapping[
    str, Callable[[], asyncio.AbstractEventLoop]
]:
    """Run on the loop that the bridge runs on."""
    return {"uvloop": uvloop.new_event_loop}


class Log:
    """What the bridge and all libraries logged, at level debug."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.may_hold_faults = False

    @property
    def text(self) -> str:
        """All lines."""
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All entries."""
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    """Collect all logs; whatever a test did, no exception may be among them."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    log = Log()
    configure_logs(level="debug", log_format="json", stream=log.stream)
    # The bridge silences it, because it logs what strangers write; its errors are
    # looked at here nevertheless.
    logging.getLogger("socketio").setLevel(logging.ERROR)
    try:
        yield log
    finally:
        root.handlers, root.level = handlers, level
        logging.getLogger("socketio").setLevel(logging.NOTSET)
    if log.may_hold_faults:
        return
    faults = [
        line
        for line in log.lines
        if "exception" in line
        # The library's refusals are errors to it, and no lines of ours.
        or (line["level"] in {"error", "critical"} and line["logger"] != "socketio")
    ]
    assert not faults, "\n".join(line.get("exception", str(line)) for line in faults)
    assert "Traceback" not in log.text


@pytest_asyncio.fixture
async def door(log: Log) -> AsyncIterator[Door]:  # noqa: ARG001 - it listens first
    """A door with generous bounds."""
    async with open_door() as door:
        yield door


@pytest_asyncio.fixture
async def pages(log: Log) -> AsyncIterator[Pages]:  # noqa: ARG001 - as above
    """One Node process with the official client."""
    async with open_pages() as pages:
        yield pages
