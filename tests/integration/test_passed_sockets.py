"""Socket activation: the service manager binds the ports and passes them to bridge."""

import asyncio
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing

import aiohttp
import pytest

from tests.integration.programs import (
    LIMIT_S,
    RunningProgram,
    environment,
    settings_for_program,
)
from tests.local_node import LocalNode

# As systemd does it: the descriptors begin at 3, and LISTEN_PID is the process itself.
_LIKE_SYSTEMD = 'export LISTEN_PID=$$; exec "$@"'
TIMEOUT = aiohttp.ClientTimeout(LIMIT_S)


async def start_with(
    passed: Sequence[tuple[str, socket.socket]], **settings: str
) -> Process:
    """Start `bridge run`, and pass it these sockets under these names."""
    descriptors = [one.fileno() for _, one in passed]
    redirections = " ".join(f"{3 + n}<&{fd}" for n, fd in enumerate(descriptors))
    program = (sys.executable, "-m", "bridge", "run")
    return await asyncio.create_subprocess_exec(
        *("bash", "-c", f"{_LIKE_SYSTEMD} {redirections}", "bash", *program),
        env=environment(**settings)
        | {
            "LISTEN_FDS": str(len(passed)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in passed),
        },
        pass_fds=descriptors,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )


@asynccontextmanager
async def program_with(
    passed: Sequence[tuple[str, socket.socket]], **settings: str
) -> AsyncIterator[RunningProgram]:
    """Start it, wait until it consumes, and kill it at the end if it still runs."""
    process = await start_with(passed, **settings)
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


async def test_connections_wait_while_the_bridge_restarts(
    broker: LocalNode, namespace: str
) -> None:
    """Without it, pages and balancers are refused until the new process listens."""
    with (
        socket.create_server(("127.0.0.1", 0)) as public,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as public_6,
        socket.create_server(("127.0.0.1", 0)) as operator,
    ):
        passed = [("public", public), ("operator", operator), ("public", public_6)]
        settings = settings_for_program(
            broker, namespace, host="fd:public", operator_host="fd:operator"
        )
        url = f"http://127.0.0.1:{public.getsockname()[1]}"
        url_6 = f"http://[::1]:{public_6.getsockname()[1]}"
        operator_url = f"http://127.0.0.1:{operator.getsockname()[1]}"

        async with program_with(passed, **settings) as running:
            assert running.public_url == url
            assert running.operator_url == operator_url
            running.process.send_signal(signal.SIGTERM)
            assert await running.ended() == 0

        async with (
            aiohttp.ClientSession(timeout=TIMEOUT) as http,
            asyncio.TaskGroup() as tasks,
        ):

            async def status(url: str) -> int:
                async with http.get(f"{url}/health/live") as response:
                    return response.status

            early = [
                tasks.create_task(status(one), name=one)
                for one in (url, url_6, operator_url)
            ]
            async with program_with(passed, **settings):
                assert [await task for task in early] == [200, 200, 200]


@pytest.mark.parametrize(
    ("name", "is_listening", "problem"),
    [
        ("other", True, "systemd passed no socket of this name (LISTEN_FDNAMES=other)"),
        (
            "public",
            False,
            "is not a listening socket; the .socket unit needs Accept=no",
        ),
    ],
)
async def test_a_socket_that_cannot_be_used_is_explained(
    broker: LocalNode, namespace: str, name: str, *, is_listening: bool, problem: str
) -> None:
    """The unit and the settings are in two files, which have to match."""
    settings = settings_for_program(broker, namespace, host="fd:public")
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        if is_listening:
            one.listen()
        process = await start_with([(name, one)], **settings)
        async with asyncio.timeout(LIMIT_S):
            _, errors = await process.communicate()

    assert process.returncode == 1
    last = errors.decode().splitlines()[-1]
    assert last.startswith(f"bridge: BRIDGE_HOST: fd:public: {problem}")
