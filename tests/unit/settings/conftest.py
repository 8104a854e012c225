"""An environment without settings, so that a developer's own do not play along."""

import os

import pytest


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Set nothing but what a bridge cannot start without."""
    for name in list(os.environ):
        if name.upper().startswith("BRIDGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BRIDGE_JWT_SECRET", "s" * 64)
    return monkeypatch
