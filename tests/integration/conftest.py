"""Logs of integration tests as in production, and each kind of store."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.logging import configure_logs
from tests.redis_server import RedisServer


@pytest.fixture(autouse=True, scope="session")
def production_logs() -> None:
    """Configure logs: structlog's default renders tracebacks with files read in the loop."""
    configure_logs(level="debug", log_format="json")


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def inbox_url(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[str]:
    """Return the URL of an empty store, of each kind; Redis runs for this test alone."""
    if request.param == "redis":
        async with RedisServer.start(tmp_path) as server:
            yield server.url
    else:
        path = tmp_path / "inbox.sqlite3"
        yield "memory:" if request.param == "memory" else f"sqlite:{path}"
