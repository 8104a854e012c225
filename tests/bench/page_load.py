"""The windows' process as the bench sees it."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson

from bridge.auth.jwt import issue_token
from tests.bench.servers import ROOT, SECRET

_LIMIT_S: Final = 180.0
_AT_ONCE: Final = 50


class Windows:
    """Opens, counts and closes windows."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._opened = 0
        self._tokens: dict[str, str] = {}

    async def open(
        self, port: int, users: Sequence[str], *, syncs: bool, at_once: int = _AT_ONCE
    ) -> None:
        """Open a window for each of `users`, and wait until all are connected."""
        tokens = [self.token(user) for user in users]
        self._opened += len(tokens)
        facts = await self.say(do="open", port=port, tokens=tokens, at_once=at_once)
        synced = facts["synced"]
        await self.wait("connected", self._opened)
        if syncs:
            await self.wait("synced", synced + len(tokens))

    def token(self, user: str) -> str:
        """Sign a token, or return the one that was signed before."""
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
        Wait until there are `number` of them.

        Raises:
            RuntimeError: If they do not come, or windows were lost.

        """
        facts = await self.say(do="wait", what=what, number=number, within_s=_LIMIT_S)
        if facts[what] < number or facts["lost"]:
            message = f"{number} {what} were expected, and there are {facts}"
            raise RuntimeError(message)

    async def close(self, *, keep: int = 0) -> None:
        """Close all but the oldest `keep`."""
        await self.say(do="close", keep=keep)
        self._opened = keep

    async def reset(self) -> None:
        """Count events from 0."""
        await self.say(do="reset")

    async def time(self, *, on: bool) -> None:
        """Note from now on, or no more, how long each event took from its publish."""
        await self.say(do="time", on=on)

    async def latencies_us(self) -> list[int]:
        """Return what was noted, sorted."""
        found: list[int] = (await self.say(do="latencies"))["us"]
        return found

    async def say(self, **command: Any) -> dict[str, Any]:
        """Send a command and return the answer."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(orjson.dumps(command) + b"\n")
        await process.stdin.drain()
        async with asyncio.timeout(_LIMIT_S + 10):
            line = await process.stdout.readline()
        if not line:
            message = "the windows' process has ended, see above"
            raise RuntimeError(message)
        answer: dict[str, Any] = orjson.loads(line)
        return answer


@asynccontextmanager
async def windows(processors: str) -> AsyncIterator[Windows]:
    """Start the process; it ends with the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.bench.pinned", processors),
        *(sys.executable, "-m", "tests.bench.windows"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 26,
    )
    try:
        yield Windows(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
