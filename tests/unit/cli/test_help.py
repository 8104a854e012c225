"""`--help` is the manual that people read."""

import pytest
from typer.testing import CliRunner

from bridge import __version__
from bridge.cli.main import app
from bridge.errors import ConfigError


@pytest.mark.parametrize("name", ["users", "kick", "inbox", "trace"])
def test_commands_for_users_and_messages_explain_themselves(name: str) -> None:
    """With examples, and with what their exit status means."""
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})

    assert result.exit_code == 0
    _, _, examples = result.stdout.partition("Examples:")
    assert f" bridge {name} " in examples
    assert "Exit status: 0 " in result.stdout


def test_the_program_tells_its_version() -> None:
    """What a report of a fault begins with."""
    result = CliRunner().invoke(app, ["--version"])

    assert (result.exit_code, result.stdout) == (0, f"bridge {__version__}\n")


@pytest.mark.parametrize("words", [("token", "ann"), ("publish", "ann", "1")])
def test_how_long_it_lives_is_a_duration_for_each_command(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flag, one way to write it, and a fault that names the flag."""
    monkeypatch.setenv("BRIDGE_JWT_SECRET", "0123456789abcdefghijklmnopqrstuv")

    result = CliRunner().invoke(app, [*words, "--ttl", "10 minutes"])

    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("--ttl: '10 minutes' is not a duration")
