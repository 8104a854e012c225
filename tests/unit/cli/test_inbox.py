"""`bridge inbox` with a user, and with a word of its own."""

import pytest
from typer.testing import CliRunner

from bridge.cli.main import app
from bridge.errors import ConfigError


@pytest.mark.parametrize(
    "words", [("ann",), ("--data", "ann"), ("ann", "--limit", "1"), ("show", "carry")]
)
def test_a_user_may_be_asked_for_without_a_word_before(words: tuple[str, ...]) -> None:
    """`bridge inbox ann` was there before `bridge inbox carry`."""
    result = CliRunner().invoke(app, ["inbox", *words])

    # As far as asking the bridge, for which there is no token here.
    assert isinstance(result.exception, ConfigError)
    assert "BRIDGE_OPERATOR_TOKEN" in str(result.exception)


def test_carry_is_no_user() -> None:
    """It says what it needs."""
    result = CliRunner().invoke(app, ["inbox", "carry"])

    assert result.exit_code == 2
    assert "--from" in result.output
