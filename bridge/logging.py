"""
Structured logs: an event name and facts, pretty on a terminal, JSON elsewhere.

All loggers, including those of libraries, use the handler that is configured here. So one
place masks secrets and shortens values that clients chose. No line contains the data of a
message, a token or a key.
"""

import hashlib
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from itertools import islice
from typing import Any, Final, TextIO

import structlog

from bridge.log_writer import BackgroundLogHandler

_VALUE_MAX_CHARACTERS: Final = 500
_TRACEBACK_MAX_CHARACTERS: Final = 10_000
_ITEMS_MAX: Final = 100

# Characters that start a new line or control a terminal.
_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# Secrets that a library may put into any text: passwords in URLs, tokens in headers and
# query strings, and everything that looks like a JWT.
_SECRETS: Final = (
    (re.compile(r"(\w+://[^\s:/@]*:)[^\s@]+@"), r"\1***@"),
    (re.compile(r"(?i)(bearer\s+)[A-Za-z0-9._~+/=-]+"), r"\1***"),
    (re.compile(r"(?i)((?:token|sid|key|secret|password)=)[^&\s\"']+"), r"\1***"),
    (re.compile(r"eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), "***"),
)

# Loggers of libraries that are disabled: bridge logs the same with more facts, and some
# log what must stay secret (engineio logs every payload at INFO).
_LIBRARY_LEVELS: Final = {
    "aio_pika": logging.CRITICAL,
    "aiormq": logging.CRITICAL,
    "engineio": logging.CRITICAL,
    "socketio": logging.CRITICAL,
    "aiohttp.access": logging.CRITICAL,
    "asyncio": logging.WARNING,
}


def configure_logs(
    *,
    level: str,
    log_format: str,
    stream: TextIO | None = None,
    worker: int | None = None,
    in_background: bool = False,
) -> None:
    """
    Send all logs of the process to `stream`, standard error by default.

    Args:
        level: The lowest level to log: ``debug``, ``info``, ``warning`` or ``error``.
        log_format: ``pretty``, ``json``, or ``auto``: pretty on a terminal.
        stream: The target; ``None`` means standard error.
        worker: The number of this worker, added to each line; ``None`` if there is one
            process.
        in_background: Write to standard error in a thread of its own, so that a reader
            that stalls never blocks the caller. For programs with an event loop; a short
            command writes directly and loses no line.

    """
    stream = stream or sys.stderr
    is_terminal = stream is not None and stream.isatty()
    is_pretty = log_format == "pretty" or (log_format == "auto" and is_terminal)
    renderers: list[structlog.typing.Processor] = (
        [escape_controls, structlog.dev.ConsoleRenderer(colors=is_terminal)]
        if is_pretty
        else [structlog.processors.JSONRenderer()]  # JSON escapes controls
    )
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
        *([] if worker is None else [_WorkerNumber(worker)]),
        structlog.processors.format_exc_info,
        mask_secrets,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler: logging.Handler
    if in_background:
        handler = BackgroundLogHandler()
    elif stream is None:  # the process was started with standard error closed
        handler = logging.NullHandler()
    else:
        handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *renderers,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    set_log_level(level)
    for name, minimum in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(minimum)
    logging.getLogger("aiohttp.server").addFilter(_is_not_a_client_error)


def dropped_log_lines() -> int:
    """Return how many lines could not be written since `configure_logs`."""
    return sum(
        handler.dropped_lines
        for handler in logging.getLogger().handlers
        if isinstance(handler, BackgroundLogHandler)
    )


class _WorkerNumber:
    """Adds the number of this worker to each line that names no worker."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __call__(
        self, _logger: object, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        event.setdefault("worker", self._index)
        return event


def _is_not_a_client_error(record: logging.LogRecord) -> bool:
    """Drop what aiohttp logs, with a traceback, about the bad HTTP of clients."""
    kind = type(record.exc_info[1]) if record.exc_info else None
    return not kind or (
        kind.__module__ != "aiohttp.http_exceptions"
        and kind.__name__ != "RequestPayloadError"  # a body that cannot be decompressed
    )


def set_log_level(level: str) -> None:
    """Change the lowest level that is logged."""
    logging.getLogger().setLevel(level.upper())


def mask_secrets(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> Mapping[str, Any]:
    """Mask the secrets of all values and limit their length."""
    for name, value in event.items():
        if name == "exception":
            event[name] = _clean_text(str(value), _TRACEBACK_MAX_CHARACTERS)
        elif not name.startswith("_"):  # internal to structlog, not printed
            event[name] = _clean(value)
    return event


def _clean(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in islice(value, _ITEMS_MAX)]
    if isinstance(value, Mapping):
        items = islice(value.items(), _ITEMS_MAX)
        return {_clean_text(str(key)): _clean(item) for key, item in items}
    return _clean_text(str(value))  # also errors and enums: they may quote any text


def _clean_text(text: str, limit: int = _VALUE_MAX_CHARACTERS) -> str:
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text if len(text) <= limit else text[:limit] + "…"


def escape_controls(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> Mapping[str, Any]:
    """
    Escape control characters, so that a value cannot forge a line or color the terminal.

    The lines of a traceback are kept and indented, so that none looks like an entry.
    """
    for name, value in event.items():
        if not isinstance(value, str):
            continue
        lines = value.split("\n") if name == "exception" else [value]
        event[name] = "\n    ".join(_CONTROLS.sub(_escape, line) for line in lines)
    return event


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def user_hash(user: str) -> str:
    """Return a short hash of `user`, which distinguishes users in logs without naming them."""
    return hashlib.blake2b(user.encode(errors="replace"), digest_size=6).hexdigest()
