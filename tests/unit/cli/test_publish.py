"""`bridge publish`: what it refuses, by the names of its arguments and options."""

import pytest
from typer.testing import CliRunner

from bridge.cli.main import app
from bridge.cli.publish_input import PublishInput
from bridge.errors import ConfigError

IN = "--ephemeral excludes --receipt and --undelivered-after"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--retain", "--retain needs --key"),
        ("--clear", "--clear needs --key"),
        ("--throttle 1s", "--throttle needs --key"),
        ("--key k --retain --clear", "--retain and --clear exclude each other"),
        ("--ephemeral --receipt", IN),
        ("--ephemeral --wait 5s", IN),
        ("--ephemeral --undelivered-after 5s", IN),
        ("--wait 0s", "--wait: must be longer than 0; omit it not to wait"),
        ("--wait soon", "--wait: 'soon' is not a duration"),
    ],
)
def test_options_that_do_not_go_together_are_named(options: str, problem: str) -> None:
    """Before anything is published, and without the names of HTTP fields."""
    result = CliRunner().invoke(app, ["publish", "ann", "1", *options.split()])

    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(problem)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("event", "connect", "--event is the reserved name 'connect'"),
        ("id", "", "--id is empty"),
        ("key", "x" * 129, "--key has 129 bytes, allowed are 128"),
        ("ttl_s", 1e9, "--ttl should be less than or equal to 2592000"),
        ("throttle", "5h", "--throttle is not a duration from 1ms to 1h"),
        (
            "undelivered_after",
            "0s",
            "--undelivered-after is not a duration such as 45s",
        ),
    ],
)
def test_an_invalid_value_is_reported_by_its_option(
    field: str, value: object, problem: str
) -> None:
    """The HTTP API, whose checks are used, names its fields."""
    common = {"key": "k", field: value} if field == "throttle" else {field: value}
    given = PublishInput("ann", "1", common, is_text=False, schemas=None)

    with given.requests() as requests, pytest.raises(ConfigError) as caught:
        list(requests)

    assert str(caught.value).startswith(problem)


def test_a_user_who_cannot_exist_is_reported_as_the_argument() -> None:
    """A line of stdin is a message of the HTTP API, with the names of its fields."""
    given = PublishInput("a\nb", "1", {}, is_text=False, schemas=None)

    with (
        given.requests() as requests,
        pytest.raises(ConfigError, match=r"^USER contains"),
    ):
        list(requests)
