"""The command line: help, version and shared options."""

import pytest
from typer.testing import CliRunner

from bridge import __version__
from bridge.cli.main import app
from bridge.errors import ConfigError


@pytest.mark.parametrize("name", ["users", "kick", "inbox", "trace"])
def test_the_help_of_operator_commands_has_examples_and_exit_status(name: str) -> None:
    """Many users read no other documentation of a command."""
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})

    assert result.exit_code == 0
    _, _, examples = result.stdout.partition("Examples:")
    assert f" bridge {name} " in examples
    assert "Exit status: 0 " in result.stdout


def test_the_program_prints_its_version() -> None:
    """A bug report begins with the version."""
    result = CliRunner().invoke(app, ["--version"])

    assert (result.exit_code, result.stdout) == (0, f"bridge {__version__}\n")


@pytest.mark.parametrize("words", [("token", "ann"), ("publish", "ann", "1")])
def test_ttl_is_a_duration_in_each_command(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flag has one syntax in all commands, and an error names it."""
    monkeypatch.setenv("BRIDGE_JWT_SECRET", "0123456789abcdefghijklmnopqrstuv")

    result = CliRunner().invoke(app, [*words, "--ttl", "10 minutes"])

    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("--ttl: '10 minutes' is not a duration")
