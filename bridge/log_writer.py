"""
Write log lines in a thread of their own, so that a stalled reader never blocks the loop.

`write(2)` on a pipe blocks once the pipe is full, for as long as its reader does not read.
In the thread of the event loop that would stop everything: deliveries, health checks and
signal handlers. So lines wait in a bounded queue, and lines that find it full are dropped,
counted, and reported as soon as the reader reads again.
"""

import logging
import os
import queue
import select
import threading
from typing import Final

import structlog

log = structlog.get_logger(__name__)

# At 200 bytes a line, about 2 MB.
_CAPACITY_LINES: Final = 10_000
_CLOSE_WITHIN_S: Final = 1.0
_STANDARD_ERROR: Final = 2


class BackgroundLogHandler(logging.Handler):
    """
    Formats each record where it is logged and writes it in the background.

    Writes to the file descriptor and not to the stream object. A stream has a lock, and a
    thread that is blocked in `write` would keep it: the interpreter aborts if it cannot
    take that lock when it exits. `open_standard_streams` makes sure that the descriptor is
    standard error.

    Attributes:
        dropped_lines: Lines that were not written: the queue was full, or `write` failed.

    """

    def __init__(
        self, fd: int = _STANDARD_ERROR, *, capacity: int = _CAPACITY_LINES
    ) -> None:
        """
        Start the thread.

        Args:
            fd: The file descriptor to write to.
            capacity: Lines that may wait.

        """
        super().__init__()
        self.dropped_lines = 0
        self._reported = 0
        self._fd = fd
        self._lines: queue.Queue[bytes | None] = queue.Queue(capacity)
        # A daemon: a write that never ends must not keep the process alive.
        self._thread = threading.Thread(
            target=self._write_all, name="log-writer", daemon=True
        )
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line, or count it as dropped."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as logging.Handler: a bad record costs its line
            self.dropped_lines += 1
            return
        try:
            self._lines.put_nowait(f"{line}\n".encode(errors="backslashreplace"))
        except queue.Full:
            self.dropped_lines += 1

    def close(self) -> None:
        """Write what waits, for a second at most, and end the thread."""
        super().close()
        try:
            self._lines.put_nowait(None)
        except queue.Full:  # the reader has stalled: waiting would not help
            return
        self._thread.join(_CLOSE_WITHIN_S)

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            if not self._write(line):
                self.dropped_lines += 1
            elif self.dropped_lines > self._reported:
                self._report()

    def _report(self) -> None:
        lines, self._reported = (
            self.dropped_lines - self._reported,
            self.dropped_lines,
        )
        # Queued like any other line, so it comes after what waits.
        log.warning(
            "log.lines_dropped",
            lines=lines,
            fix="read standard error faster, or raise BRIDGE_LOG_LEVEL",
        )

    def _write(self, line: bytes) -> bool:
        """Write a whole line; false if that fails, for example on a full disk."""
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # another process made the descriptor non-blocking
                select.select([], [self._fd], [])
            except OSError:
                return False
        return True


def open_standard_streams() -> None:
    """
    Open each of descriptors 0, 1 and 2 that is closed to /dev/null.

    Otherwise the next file or socket that is opened gets that number, and what a library
    prints to standard error would be written into it, the inbox file for example.
    """
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > _STANDARD_ERROR:
            os.close(fd)
            return
