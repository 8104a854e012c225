"""`bridge run` whose standard output or error is not read, or cannot be written."""

import asyncio
import fcntl
import os
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.conftest import eventually
from tests.integration.programs import ended, environment, settings_for_program
from tests.integration.running import OPERATOR_TOKEN, open_worker
from tests.local_node import LocalNode
from tests.redis_server import free_port

_PIPE_BYTES = 4096
_MALFORMED = 1500


async def get(url: str) -> str:
    """Return the body of `url`, requested with the operator token."""
    headers = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
    timeout = aiohttp.ClientTimeout(total=5)
    async with (
        aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
        session.get(url) as response,
    ):
        return await response.text()


async def is_ready(operator: str) -> bool:
    """Return whether the bridge at the operator port says that it is ready."""
    url = f"{operator}/health/ready"
    return await answers(url) and '"ready":true' in await get(url)


async def answers(url: str) -> bool:
    """Return whether a request to `url` is answered."""
    try:
        await get(url)
    except aiohttp.ClientError:
        return False
    return True


async def test_a_log_pipe_without_a_reader_does_not_block_the_bridge(
    broker: LocalNode, namespace: str
) -> None:
    """Each malformed message is logged, which exceeds the buffer of a pipe by far."""
    port, operator_port = free_port(), free_port()
    settings = settings_for_program(
        broker, namespace, port=str(port), operator_port=str(operator_port)
    )
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    operator = f"http://127.0.0.1:{operator_port}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bridge", "run",
        env=environment(**settings), stdout=write_fd, stderr=write_fd,
    )  # fmt: skip
    try:
        # Only a bridge that is ready has declared the exchange.
        await eventually(lambda: is_ready(operator), within_s=30)
        async with open_worker(broker, namespace) as worker:
            await asyncio.gather(
                *(worker.publish("ann", body=b"{") for _ in range(_MALFORMED))
            )

            async def are_dead() -> bool:
                text = await get(f"{operator}/metrics")
                return (
                    'outcome="dead_letter",reason="malformed_body"} '
                    f"{_MALFORMED}.0" in text
                )

            await eventually(are_dead, within_s=60)
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(read_fd)
        os.close(write_fd)


@pytest.mark.parametrize("closed", ["closed", "/dev/full"])
async def test_unusable_standard_streams_neither_stop_the_start_nor_the_end(
    broker: LocalNode, namespace: str, closed: str, tmp_path: Path
) -> None:
    """A service manager may close them, and a log file may be on a full disk."""
    operator_port = free_port()
    settings = settings_for_program(
        broker,
        namespace,
        operator_port=str(operator_port),
        inbox=f"sqlite:{tmp_path}/inbox.db",
    )
    redirect = ">&- 2>&-" if closed == "closed" else ">/dev/full 2>/dev/full"
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", f'exec "$0" -m bridge run <&- {redirect}', sys.executable,
        env=environment(**settings),
    )  # fmt: skip
    try:
        operator = f"http://127.0.0.1:{operator_port}"
        await eventually(lambda: answers(f"{operator}/health/ready"), within_s=30)
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
