"""Controls the process of the windows (windows.py)."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson

from bridge.auth.issuing import issue_token
from tests.bench.servers import ROOT, SECRET

_LIMIT_S: Final = 180.0


class WindowProcess:
    """Opens, counts and closes windows."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._opened = 0
        self._tokens: dict[str, str] = {}

    async def open(
        self,
        port: int,
        users: Sequence[str],
        *,
        syncs: bool,
        concurrency: int = 50,
        acks: bool = False,
    ) -> None:
        """
        Open a window per user, and wait until all are connected.

        Args:
            port: The port of the server.
            users: The user of each window.
            syncs: Whether the server notifies a window of the end of its replay.
            concurrency: How many connect at the same time.
            acks: Whether each window acks each message, and its ack is timed.

        """
        tokens = [self.token(user) for user in users]
        self._opened += len(tokens)
        facts = await self.command(
            do="open", port=port, tokens=tokens, concurrency=concurrency, acks=acks
        )
        synced = facts["synced"]
        await self.wait("connected", self._opened)
        if syncs:
            await self.wait("synced", synced + len(tokens))

    def token(self, user: str) -> str:
        """Return a token for `user`, signed at the first call."""
        known = self._tokens.get(user)
        if known is None:
            known = self._tokens[user] = issue_token(
                user,
                secret=SECRET,
                algorithm="HS256",
                ttl_s=86_400,
                audience=None,
                issuer=None,
                now_s=time.time(),
            )
        return known

    async def wait(self, what: str, number: int) -> None:
        """
        Wait until the count `what` reaches `number`.

        Raises:
            RuntimeError: If it does not in time, or if connected windows were lost.

        """
        facts = await self.command(
            do="wait", what=what, number=number, within_s=_LIMIT_S
        )
        if facts[what] < number or facts["lost"]:
            message = f"expected {number} {what}, got {facts}"
            raise RuntimeError(message)

    async def close(self, *, keep: int = 0) -> None:
        """Close all but the oldest `keep`."""
        await self.command(do="close", keep=keep)
        self._opened = keep

    async def reset(self) -> dict[str, Any]:
        """Reset the counts of events; return all counts."""
        return await self.command(do="reset")

    async def time(self, *, on: bool) -> None:
        """Switch the recording of latencies on or off."""
        await self.command(do="time", on=on)

    async def latencies_us(self) -> list[int]:
        """Return the recorded latencies, sorted."""
        found: list[int] = (await self.command(do="latencies"))["us"]
        return found

    async def command(self, **command: Any) -> dict[str, Any]:
        """Send a command and return the answer."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(orjson.dumps(command) + b"\n")
        await process.stdin.drain()
        async with asyncio.timeout(_LIMIT_S + 10):
            line = await process.stdout.readline()
        if not line:
            message = "the process of the windows has exited, see above"
            raise RuntimeError(message)
        answer: dict[str, Any] = orjson.loads(line)
        return answer


@asynccontextmanager
async def windows(
    processors: str, *, niceness: int = 0
) -> AsyncIterator[WindowProcess]:
    """
    Start the process; end it at the end of the block.

    Args:
        processors: Where it runs.
        niceness: How far it gives way to other processes there; see `nice(1)`.

    """
    process = await asyncio.create_subprocess_exec(
        *("nice", "-n", str(niceness), sys.executable),
        *("-m", "tests.bench.run_pinned", processors),
        *(sys.executable, "-m", "tests.bench.windows"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 26,
    )
    try:
        yield WindowProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
