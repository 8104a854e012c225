"""Runs `bridge` as a separate process, with its output and exit code."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson
import pytest

from bridge.auth.issuing import signed_token
from bridge.settings.load import load_settings
from tests.conftest import SLOW_FACTOR
from tests.integration.running import (
    OPERATOR_TOKEN,
    SECRET,
)
from tests.local_node import LocalNode

LIMIT_S = 30 * SLOW_FACTOR


@dataclass
class Result:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


def environment(**settings: str) -> dict[str, str]:
    """Return an environment with these BRIDGE_* settings and no others."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith("BRIDGE_")}
    given = {f"BRIDGE_{name.upper()}": value for name, value in settings.items()}
    return kept | given | {"COLUMNS": "200", "NO_COLOR": "1"}


async def start(*arguments: str, **settings: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bridge",
        *arguments,
        env=environment(**settings),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )


async def command(*arguments: str, stdin: str = "", **settings: str) -> Result:
    """Run a command and wait for its end."""
    process = await start(*arguments, **settings)
    async with asyncio.timeout(LIMIT_S):
        out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())


def token_for(user: str, **settings: str) -> str:
    """Sign a token that a bridge with these settings accepts."""
    return signed_token(load_settings(settings), user, ttl_s=300)


@dataclass
class RunningProgram:
    """A running `bridge run`."""

    process: Process
    public_url: str
    operator_url: str

    @property
    def port(self) -> str:
        """The public port, which a later process may use again."""
        return self.public_url.rpartition(":")[2]

    async def logged(self, event: str) -> dict[str, object]:
        """Wait for an event in its log and return the line."""
        assert self.process.stderr is not None
        async with asyncio.timeout(LIMIT_S):
            while line := await self.process.stderr.readline():
                fields: dict[str, object] = orjson.loads(line)
                if fields["event"] == event:
                    return fields
        pytest.fail(f"the log ended without {event}")

    async def ended(self) -> int:
        """Wait for the end of the process and return its exit code."""
        return await ended(self.process)


async def ended(process: Process) -> int:
    """Wait for the end of a process and return its exit code."""
    async with asyncio.timeout(LIMIT_S):
        return await process.wait()


@asynccontextmanager
async def program(
    broker: LocalNode, namespace: str, *arguments: str, **settings: str
) -> AsyncIterator[RunningProgram]:
    """Start `bridge run` and wait until it consumes."""
    process = await start(
        "run", *arguments, **settings_for_program(broker, namespace, **settings)
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            words = (await process.stdout.readline()).decode().split()
        running = RunningProgram(process, words[4].rstrip(","), words[6])
        await running.logged("intake.consuming")
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def settings_for_program(
    broker: LocalNode, namespace: str, **settings: str
) -> dict[str, str]:
    return {
        "amqp_url": broker.url,
        "namespace": namespace,
        "port": "0",
        "operator_port": "0",
        "operator_token": OPERATOR_TOKEN,
        "jwt_secret": SECRET,
        "inbox": "memory:",
        **settings,
    }
