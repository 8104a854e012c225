"""An environment without settings, so that those of a developer have no effect."""

import os

import pytest


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Remove all settings and set the one that every start needs."""
    for name in list(os.environ):
        if name.upper().startswith("BRIDGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BRIDGE_JWT_SECRET", "a-32-byte-secret-for-these-tests" * 2)
    return monkeypatch
