"""Logs of integration tests: JSON, as in production, at every level."""

import pytest

from bridge.logging import configure_logs


@pytest.fixture(autouse=True, scope="session")
def production_logs() -> None:
    """Configure logs: structlog's default renders tracebacks with files read in the loop."""
    configure_logs(level="debug", log_format="json")
