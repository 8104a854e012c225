"""Pages with the official JavaScript client, in Node (driver.js)."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.conftest import eventually

_DRIVER = Path(__file__).with_name("driver.js")
# Reconnect almost at once, so that tests are fast.
FAST = {"reconnectionDelay": 10, "reconnectionDelayMax": 50, "randomizationFactor": 0}


class Pages:
    """The windows of one Node process, by name."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.reports: list[list[Any]] = []

    @property
    def process_id(self) -> int:
        """The id of the process."""
        return self._process.pid

    async def read(self) -> None:
        """Collect the driver's reports until it ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.reports.append(json.loads(line))

    def command(self, *words: object) -> None:
        """Send a command to the driver."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")

    def open(self, name: str, url: str, **options: object) -> None:
        """Open a window."""
        self.command("open", name, url, FAST | options)

    async def connected(self, name: str, url: str, **options: object) -> None:
        """Open a window and wait until its replay is over."""
        self.open(name, url, **options)
        await self.until(name, "event", "bridge:sync")

    def all(self, name: str, *what: object) -> list[list[Any]]:
        """Return the reports of a window that start with `what`, without these words."""
        begin = [name, *what]
        return [
            report[len(begin) :]
            for report in self.reports
            if report[: len(begin)] == begin
        ]

    def data(self, name: str, event: str = "message") -> list[Any]:
        """Return the data of a window's events with that name, in order."""
        return [arguments[0] for arguments in self.all(name, "event", event)]

    def positions(self, name: str, event: str = "message") -> list[str]:
        """Return the positions of a window's events with that name, in order."""
        return [arguments[-1] for arguments in self.all(name, "event", event)]

    async def recovered(self, name: str, data: Sequence[object]) -> None:
        """Wait until a reconnected window has all of `data` once, and reports `recovered`."""
        await eventually(lambda: len(self.data(name)) >= len(data), within_s=30)
        assert self.data(name) == list(data)
        assert self.all(name, "connect")[-1][0]["recovered"] is True

    async def until(self, *what: Any, count: int = 1, within_s: float = 10.0) -> Any:
        """Wait for report number `count` that starts with `what`; return the rest of it."""
        name, *rest = what
        try:
            await eventually(
                lambda: len(self.all(name, *rest)) >= count, within_s=within_s
            )
        except AssertionError:
            shown = [str(report)[:200] for report in self.reports[-20:]]
            message = f"no report {what} number {count}; the last were {shown}"
            raise AssertionError(message) from None
        return self.all(name, *rest)[count - 1]


@asynccontextmanager
async def open_pages() -> AsyncIterator[Pages]:
    """Run the Node process until the block is left."""
    process = await asyncio.create_subprocess_exec(
        "node",
        str(_DRIVER),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    pages = Pages(process)
    reading = asyncio.create_task(pages.read(), name="driver.js")
    try:
        await pages.until("driver", "ready")
        yield pages
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(10):
            await process.wait()
            await reading
