"""`bridge publish`: what it refuses, by the names of its arguments and options."""

from collections.abc import Mapping

import pytest
from typer.testing import CliRunner

from bridge.cli.main import app
from bridge.cli.publish_input import PublishInput
from bridge.core.message import MessageLimits
from bridge.errors import ConfigError

TOO_LONG = "is longer than an inbox keeps a message, 7d (BRIDGE_INBOX_MAX_AGE)"
IN = "--ephemeral excludes --receipt and --undelivered-after"


def publish_input(
    data: str, common: Mapping[str, object], *, user: str = "ann"
) -> PublishInput:
    """Return the input of a command for data of at most 8 bytes."""
    limits = MessageLimits(body_bytes=8)
    return PublishInput(user, data, common, is_text=False, limits=limits, schemas=None)


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
        ("--undelivered-after 8d", f"--undelivered-after {TOO_LONG}"),
        ("--wait 0s", "--wait: must be longer than 0"),
        ("--wait soon", "--wait: 'soon' is not a duration"),
    ],
)
@pytest.mark.parametrize("data", ["1", "-"])
def test_options_that_do_not_go_together_are_named(
    options: str, problem: str, data: str
) -> None:
    """Before anything is published or read, and without the names of HTTP fields."""
    if data == "-" and options.endswith("--wait 5s"):
        problem = "--wait: is for one message, not for lines of stdin"
    result = CliRunner().invoke(app, ["publish", "ann", data, *options.split()])

    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(problem)


def test_options_for_lines_that_are_complete_messages_are_refused() -> None:
    """They were ignored: messages that must not be stored were stored."""
    given = ["publish", "-", "--ephemeral", "--ttl", "5s", "--text"]
    result = CliRunner().invoke(app, given)

    assert isinstance(result.exception, ConfigError)
    omit = "omit it, because the lines of stdin are complete messages"
    names = ["--ttl", "--ephemeral", "--text"]
    assert str(result.exception) == "\n".join(f"{name}: {omit}" for name in names)


def test_data_that_is_too_large_is_refused() -> None:
    """The broker would confirm it, and bridge make a dead letter of it."""
    given = publish_input('"12345678"', {})
    text = r"^DATA has 10 bytes, allowed are 8 \(BRIDGE_MAX_MESSAGE_BYTES\)$"
    with pytest.raises(ConfigError, match=text), given.requests():
        pass


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
    given = publish_input("1", common)

    with pytest.raises(ConfigError) as caught, given.requests():
        pass

    assert str(caught.value).startswith(problem)


def test_a_user_who_cannot_exist_is_reported_as_the_argument() -> None:
    """A line of stdin is a message of the HTTP API, with the names of its fields."""
    given = publish_input("1", {}, user="a\nb")

    with pytest.raises(ConfigError, match=r"^USER contains"), given.requests():
        pass
