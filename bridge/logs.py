"""
Structured logs: an event name and facts, pretty on a terminal, JSON elsewhere.

Everything that logs, libraries included, leaves through the handler that is set up
here, so there is one place that masks secrets and shortens what strangers wrote. No
line ever holds the data of a message, a token or a key.
"""

import hashlib
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO

import structlog

_VALUE_MAX_CHARACTERS: Final = 500

# What must never be read in a log, wherever a library puts it: passwords in URLs,
# tokens in headers and query strings, and anything that looks like a JWT.
_SECRETS: Final = (
    (re.compile(r"(\w+://[^\s:/@]*:)[^\s@]+@"), r"\1***@"),
    (re.compile(r"(?i)(bearer\s+)[A-Za-z0-9._~+/=-]+"), r"\1***"),
    (re.compile(r"(?i)((?:token|sid|key|secret|password)=)[^&\s\"']+"), r"\1***"),
    (re.compile(r"eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), "***"),
)

# Libraries whose own lines say less than ours, or hold what must not be logged
# (engineio logs every payload at INFO).
_QUIET: Final = {
    "aio_pika": logging.CRITICAL,
    "aiormq": logging.CRITICAL,
    "engineio": logging.CRITICAL,
    "socketio": logging.CRITICAL,
    "aiohttp.access": logging.CRITICAL,
    "asyncio": logging.WARNING,
}


def configure_logs(
    *, level: str, log_format: str, stream: TextIO | None = None
) -> None:
    """
    Send all logs of the process to `stream`, standard error by default.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        log_format: ``pretty``, ``json``, or ``auto``: pretty on a terminal.
        stream: Where to write.

    """
    stream = stream or sys.stderr
    is_pretty = log_format == "pretty" or (log_format == "auto" and stream.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if is_pretty
        else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
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
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    set_log_level(level)
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(least)


def set_log_level(level: str) -> None:
    """Change the least level that is logged, while running."""
    logging.getLogger().setLevel(level.upper())


def mask_secrets(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> Mapping[str, Any]:
    """Take secrets out of every value, and bound its length."""
    for name, value in event.items():
        if isinstance(value, str):
            limit = _VALUE_MAX_CHARACTERS * (20 if name == "exception" else 1)
            for pattern, replacement in _SECRETS:
                value = pattern.sub(replacement, value)  # noqa: PLW2901 - step by step
            event[name] = value if len(value) <= limit else value[:limit] + "…"
    return event


def user_hash(user: str) -> str:
    """Return a short stand-in for `user`, so that logs tell users apart without naming them."""
    return hashlib.blake2b(user.encode(errors="replace"), digest_size=6).hexdigest()
