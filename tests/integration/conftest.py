"""Logs as in production: JSON, every level, through the one handler that masks secrets."""

import pytest

from bridge.logging import configure_logs


@pytest.fixture(autouse=True, scope="session")
def production_logs() -> None:
    """Without it structlog renders tracebacks with rich, which reads files in the loop."""
    configure_logs(level="debug", log_format="json")
