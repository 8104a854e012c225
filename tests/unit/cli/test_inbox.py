"""`bridge inbox` with a user, and with a subcommand."""

import pytest
from typer.testing import CliRunner

from bridge.cli.main import app
from bridge.errors import ConfigError


@pytest.mark.parametrize(
    "words", [("ann",), ("--data", "ann"), ("ann", "--limit", "1"), ("show", "migrate")]
)
def test_the_subcommand_show_may_be_left_out(words: tuple[str, ...]) -> None:
    """`bridge inbox ann` existed before the subcommands."""
    result = CliRunner().invoke(app, ["inbox", *words])

    # The command was parsed, and failed later, without a token for the bridge.
    assert isinstance(result.exception, ConfigError)
    assert "BRIDGE_OPERATOR_TOKEN" in str(result.exception)


def test_carry_is_a_subcommand_and_not_a_user() -> None:
    """The error names the missing option."""
    result = CliRunner().invoke(app, ["inbox", "migrate"])

    assert result.exit_code == 2
    assert "--from" in result.output
