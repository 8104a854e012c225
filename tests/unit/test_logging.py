"""Formats of logs, masking of secrets and protection against forged lines."""

import io
import json
import logging
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from bridge.logging import configure_logs, mask_secrets, set_log_level, user_hash

Lines = Callable[[], list[str]]
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Restore the logging configuration, which is global to the process."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    configuration = structlog.get_config()
    levels = {
        name: logger.level
        for name, logger in logging.Logger.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
    }
    yield
    root.handlers = handlers
    root.setLevel(level)
    for name in list(logging.Logger.manager.loggerDict):
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))
    structlog.configure(**configuration)


def configured(log_format: str, level: str = "debug") -> Lines:
    """Send logs to memory; return a function that returns the lines so far."""
    stream = io.StringIO()
    configure_logs(level=level, log_format=log_format, stream=stream)
    return lambda: stream.getvalue().splitlines()


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_a_line_is_one_json_object_if_there_is_no_terminal(log_format: str) -> None:
    """A log store can parse it without further rules."""
    lines = configured(log_format)

    structlog.get_logger("bridge.pipeline").info(
        "delivery.settled", attempt=2, reason=None
    )

    [line] = map(json.loads, lines())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "delivery.settled",
        "level": "info",
        "logger": "bridge.pipeline",
        "attempt": 2,
        "reason": None,
    }


def test_pretty_lines_have_the_same_facts() -> None:
    """They are meant for a person at a terminal."""
    lines = configured("pretty")

    structlog.get_logger("bridge.pipeline").info("delivery.settled", attempt=2)

    [line] = lines()
    for part in ("info", "delivery.settled", "bridge.pipeline", "attempt=2"):
        assert part in line


def test_auto_selects_pretty_lines_on_a_terminal() -> None:
    """The stream says whether it is a terminal."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    configure_logs(level="info", log_format="auto", stream=stream)

    structlog.get_logger().info("it.happened")

    assert "\x1b[" in stream.getvalue()


def test_logs_go_to_standard_error_by_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Standard output is reserved for results of commands."""
    configure_logs(level="info", log_format="json")

    structlog.get_logger().info("it.happened")

    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "it.happened"


def test_logs_of_libraries_use_the_same_handler() -> None:
    """Secrets are masked and values shortened in one place."""
    lines = configured("json")

    logging.getLogger("some.library").warning("cannot reach %s", "amqp://u:hunter2@h/")

    [line] = map(json.loads, lines())
    assert line["event"] == "cannot reach amqp://u:***@h/"
    assert line["logger"] == "some.library"
    assert line["level"] == "warning"


def test_the_level_can_be_changed() -> None:
    """A reload switches debug logs on and off."""
    lines = configured("json", level="warning")
    log = structlog.get_logger()

    log.info("dropped")
    set_log_level("debug")
    log.debug("logged")
    set_log_level("error")
    log.warning("dropped")

    assert [json.loads(line)["event"] for line in lines()] == ["logged"]


@pytest.mark.parametrize(
    "name", ["engineio.server", "socketio", "aiormq", "aiohttp.access"]
)
def test_libraries_that_log_payloads_are_disabled(name: str) -> None:
    """Engineio logs every message at INFO, and aiohttp.access every query string."""
    lines = configured("json")

    logging.getLogger(name).error("a message of alice")

    assert lines() == []


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("amqp://user:hunter2@host/", "amqp://user:***@host/"),
        ("redis://:hunter2@host", "redis://:***@host"),
        ("Authorization: Bearer hunter2", "Authorization: Bearer ***"),
        ("bearer hunter2.x", "bearer ***"),
        ("GET /?sid=hunter2&x=1", "GET /?sid=***&x=1"),
        ("?access_token=hunter2", "?access_token=***"),
        ("password=hunter2 user=a", "password=*** user=a"),
        (f"the token {JWT} is bad", "the token *** is bad"),
        ("amqp://a:hunter2@x, amqp://b:hunter2@y", "amqp://a:***@x, amqp://b:***@y"),
        ("no secret", "no secret"),
    ],
)
@pytest.mark.parametrize("log_format", ["json", "pretty"])
def test_secrets_are_masked_in_every_part_of_a_line(
    text: str, masked: str, log_format: str
) -> None:
    """They may be in the event, in a value and in the text of an error."""
    lines = configured(log_format)
    log = structlog.get_logger()

    log.info(text)
    log.info("it.happened", value=text, inside=[{"a": text}], error=ValueError(text))
    try:
        json.loads("{")
    except ValueError as exc:
        exc.add_note(text)
        log.exception("it.failed")

    out = "\n".join(lines())
    assert "hunter2" not in out
    assert JWT not in out
    assert out.count(masked) >= 5


@pytest.mark.parametrize("log_format", ["json", "pretty"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r", "\x0b", "\x85", "\u2028"])
def test_a_value_cannot_forge_a_line(log_format: str, newline: str) -> None:
    """Clients choose user names and headers, and libraries log them unescaped."""
    stream = io.StringIO()
    configure_logs(level="info", log_format=log_format, stream=stream)
    evil = f"a{newline}2026-01-01 [error] forged \x1b[31m"
    unquoted = f"a{newline}forged"  # the renderer quotes only values with a space

    structlog.get_logger().info("it.happened", user=evil, id=unquoted, others=[evil])
    logging.getLogger("library").info("it said %s", evil)

    assert len(stream.getvalue().splitlines()) == 2
    assert "\x1b[31m" not in stream.getvalue()


def test_no_line_of_a_traceback_looks_like_an_entry() -> None:
    """The text of an error may quote what a client sent, including line breaks."""
    lines = configured("pretty")
    try:
        json.loads("{")
    except ValueError as exc:
        exc.add_note("2026-01-01 [error] forged \x1b[31m")
        structlog.get_logger().exception("it.failed")

    _, *traceback = lines()
    assert len(traceback) > 3
    assert all(line.startswith("    ") or line == "" for line in traceback[1:])
    assert "\x1b[31m" not in "".join(traceback)


def test_long_values_are_shortened() -> None:
    """A client must not be able to fill the disk with one value."""
    lines = configured("json")

    structlog.get_logger().info(
        "it.happened", value="x" * 10_000, inside=["y" * 10_000]
    )

    [line] = map(json.loads, lines())
    assert line["value"] == "x" * 500 + "…"
    assert line["inside"] == ["y" * 500 + "…"]


def test_a_traceback_is_almost_never_shortened() -> None:
    """It is long, and the only information about an unexpected error."""
    lines = configured("json")

    def fail(depth: int) -> None:
        if depth == 0:
            message = "at the bottom"
            raise ValueError(message)
        fail(depth - 1)

    try:
        fail(20)
    except ValueError:
        structlog.get_logger().exception("it.failed")

    [line] = map(json.loads, lines())
    assert "at the bottom" in line["exception"]
    assert len(line["exception"]) > 500


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=10),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.binary()
        | st.lists(st.text(max_size=5), max_size=3),
    ),
    st.from_regex(
        r"eyJ[A-Za-z0-9_-]{5,40}\.[A-Za-z0-9_-]{1,40}\.[A-Za-z0-9_-]{0,40}",
        fullmatch=True,
    ),
)
def test_masking_never_raises_and_masks_every_token(
    event: dict[str, object], secret: str
) -> None:
    """A log call that raises would break the operation that it reports."""
    masked = mask_secrets(None, "info", {**event, "value": f"see {secret} there"})

    assert secret not in str(masked)
    assert set(masked) == {*event, "value"}


def test_a_hash_distinguishes_users_without_naming_them() -> None:
    """More people read logs than may know the users."""
    assert user_hash("alice") == user_hash("alice") != user_hash("bob")
    assert "alice" not in user_hash("alice")
    assert len(user_hash("\ud800")) == 12


def test_the_documented_command_prints_the_hash_of_a_user() -> None:
    """Operators search the logs for a user by it."""
    page = Path(__file__).parents[2] / "docs" / "inspect.md"
    found = re.search(r"(?ms)^user_hash\(\) \{.*?^\}", page.read_text(encoding="utf-8"))
    assert found

    printed = subprocess.run(
        ["bash", "-euc", f"{found[0]}\nuser_hash zoë@example.org"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert printed.stdout.strip() == user_hash("zoë@example.org")
