"""Logs: readable by people and machines, and closed to secrets and forgers."""

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from bridge.logging import configure_logs, mask_secrets, set_log_level, user_hash

Lines = Callable[[], list[str]]
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Logging belongs to the process: put everything back."""
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


def started(log_format: str, level: str = "debug") -> Lines:
    """Configure logs into memory; return what gives the lines so far."""
    stream = io.StringIO()
    configure_logs(level=level, log_format=log_format, stream=stream)
    return lambda: stream.getvalue().splitlines()


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_a_line_is_one_json_object_away_from_a_terminal(log_format: str) -> None:
    """A log store reads them without a rule of its own."""
    lines = started(log_format)

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


def test_pretty_lines_hold_the_same() -> None:
    """For the person in front of the terminal."""
    lines = started("pretty")

    structlog.get_logger("bridge.pipeline").info("delivery.settled", attempt=2)

    [line] = lines()
    for part in ("info", "delivery.settled", "bridge.pipeline", "attempt=2"):
        assert part in line


def test_a_terminal_gets_pretty_lines_by_itself() -> None:
    """`auto` looks at where the lines go."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    configure_logs(level="info", log_format="auto", stream=stream)

    structlog.get_logger().info("it.happened")

    assert "\x1b[" in stream.getvalue()


def test_logs_go_to_standard_error_unless_told_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Standard output is for results."""
    configure_logs(level="info", log_format="json")

    structlog.get_logger().info("it.happened")

    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "it.happened"


def test_libraries_leave_through_the_same_door() -> None:
    """One place masks and shortens, whoever writes."""
    lines = started("json")

    logging.getLogger("some.library").warning("cannot reach %s", "amqp://u:hunter2@h/")

    [line] = map(json.loads, lines())
    assert line["event"] == "cannot reach amqp://u:***@h/"
    assert line["logger"] == "some.library"
    assert line["level"] == "warning"


def test_the_level_holds_and_can_change_while_running() -> None:
    """SIGHUP turns debugging on and off."""
    lines = started("json", level="warning")
    log = structlog.get_logger()

    log.info("unheard")
    set_log_level("debug")
    log.debug("heard")
    set_log_level("error")
    log.warning("unheard")

    assert [json.loads(line)["event"] for line in lines()] == ["heard"]


@pytest.mark.parametrize(
    "name", ["engineio.server", "socketio", "aiormq", "aiohttp.access"]
)
def test_libraries_that_log_payloads_are_quiet(name: str) -> None:
    """The one logs every message at INFO, the other every query (the guide, 1.3)."""
    lines = started("json")

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
        ("nothing to hide", "nothing to hide"),
    ],
)
@pytest.mark.parametrize("log_format", ["json", "pretty"])
def test_secrets_are_masked_wherever_a_library_puts_them(
    text: str, masked: str, log_format: str
) -> None:
    """In the event, in a value, and in the text of an error."""
    lines = started(log_format)
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
def test_nobody_can_forge_a_line(log_format: str, newline: str) -> None:
    """User names and headers come from strangers; engineio logs them raw (traps 1.2)."""
    stream = io.StringIO()
    configure_logs(level="info", log_format=log_format, stream=stream)
    evil = f"a{newline}2026-01-01 [error] forged \x1b[31m"
    unquoted = f"a{newline}forged"  # the renderer quotes only what holds a space

    structlog.get_logger().info("it.happened", user=evil, id=unquoted, others=[evil])
    logging.getLogger("library").info("it said %s", evil)

    assert len(stream.getvalue().splitlines()) == 2
    assert "\x1b[31m" not in stream.getvalue()


def test_no_line_of_a_traceback_looks_like_an_entry() -> None:
    """An error quotes what a stranger sent, new lines included."""
    lines = started("pretty")
    try:
        json.loads("{")
    except ValueError as exc:
        exc.add_note("2026-01-01 [error] forged \x1b[31m")
        structlog.get_logger().exception("it.failed")

    _, *traceback = lines()
    assert len(traceback) > 3
    assert all(line.startswith("    ") or line == "" for line in traceback[1:])
    assert "\x1b[31m" not in "".join(traceback)


def test_what_strangers_wrote_is_cut() -> None:
    """A line must not grow with what somebody sends."""
    lines = started("json")

    structlog.get_logger().info(
        "it.happened", value="x" * 10_000, inside=["y" * 10_000]
    )

    [line] = map(json.loads, lines())
    assert line["value"] == "x" * 500 + "…"
    assert line["inside"] == ["y" * 500 + "…"]


def test_a_traceback_is_told_almost_whole() -> None:
    """It is long, and all that there is when something unforeseen happens."""
    lines = started("json")

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
def test_masking_never_raises_and_lets_no_token_through(
    event: dict[str, object], secret: str
) -> None:
    """A log line that raises takes down what it should have told about."""
    masked = mask_secrets(None, "info", {**event, "value": f"see {secret} there"})

    assert secret not in str(masked)
    assert set(masked) == {*event, "value"}


def test_users_are_told_apart_without_being_named() -> None:
    """Logs travel further than messages may."""
    assert user_hash("alice") == user_hash("alice") != user_hash("bob")
    assert "alice" not in user_hash("alice")
    assert len(user_hash("\ud800")) == 12
