"""`--help` is the manual that people read."""

import pytest
from typer.testing import CliRunner

from bridge.cli.main import app


@pytest.mark.parametrize("name", ["users", "kick", "inbox", "trace"])
def test_commands_for_users_and_messages_explain_themselves(name: str) -> None:
    """With examples, and with what their exit status means."""
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})

    assert result.exit_code == 0
    assert f"Examples: bridge {name} " in result.stdout
    assert "Exit status: 0 " in result.stdout
