"""Log lines are written in the background: a stalled or failing reader blocks nothing."""

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.log_writer import BackgroundLogHandler
from tests.conftest import SLOW_FACTOR

_LIMIT_S = 10 * SLOW_FACTOR


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe: the descriptor to read from and the one to write to."""
    read_fd, write_fd = os.pipe()
    yield read_fd, write_fd
    for fd in (read_fd, write_fd):
        os.close(fd)


def record(text: str) -> logging.LogRecord:
    """Return a record whose line is `text`."""
    return logging.LogRecord("test", logging.INFO, __file__, 1, text, None, None)


def lines_until(fd: int, last: str) -> list[str]:
    """Read lines from `fd` up to `last`."""
    with os.fdopen(os.dup(fd), encoding="utf-8") as stream:
        lines = []
        for line in stream:
            lines.append(line.rstrip("\n"))
            if lines[-1] == last:
                return lines
    raise AssertionError(lines)


def test_lines_are_written_whole_and_in_order(pipe: tuple[int, int]) -> None:
    """Also a line that is longer than the pipe has room for."""
    handler = BackgroundLogHandler(pipe[1])

    long_line = "x" * 300_000
    for text in ("first", long_line, "last"):
        handler.emit(record(text))

    assert lines_until(pipe[0], "last") == ["first", long_line, "last"]
    handler.close()
    assert handler.dropped_lines == 0


def test_a_reader_that_stalls_costs_lines_and_never_time(
    pipe: tuple[int, int],
) -> None:
    """Logging returns although there is no reader; the lines that had no room are counted."""
    handler = BackgroundLogHandler(pipe[1], capacity=5)
    done = threading.Event()

    def log_much() -> None:
        for _ in range(100):
            handler.emit(record("y" * 100_000))
        handler.close()
        done.set()

    threading.Thread(target=log_much, daemon=True).start()

    assert done.wait(_LIMIT_S)
    # One line is being written and five wait.
    assert 90 <= handler.dropped_lines <= 95
    os.set_blocking(pipe[0], False)
    while handler._thread.is_alive() and not handler._lines.empty():
        try:
            os.read(pipe[0], 1 << 20)
        except BlockingIOError:
            handler._thread.join(0.01)


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    """`/dev/full` refuses each write with ENOSPC."""
    fd = os.open("/dev/full", os.O_WRONLY)
    handler = BackgroundLogHandler(fd)

    for _ in range(3):
        handler.emit(record("lost"))
    handler.close()

    assert handler.dropped_lines == 3
    os.close(fd)


def test_what_was_dropped_is_reported_once_lines_are_written_again(
    tmp_path: Path,
) -> None:
    """An operator who reads the log knows that it has a gap."""
    fd = os.open("/dev/full", os.O_WRONLY)
    handler = BackgroundLogHandler(fd)
    handler.emit(record("lost"))
    handler.emit(record("lost too"))
    while handler.dropped_lines < 2:
        handler._thread.join(0.001)

    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(file, fd)  # the disk has room again
    with capture_logs() as logged:
        handler.emit(record("written"))
        handler.close()

    assert (tmp_path / "log").read_text() == "written\n"
    assert [(line["event"], line["lines"]) for line in logged] == [
        ("log.lines_dropped", 2)
    ]
    os.close(fd)
    os.close(file)
