"""
A private RabbitMQ node, for `bridge demo` and the tests.

It has its own folder (data, logs, configuration, Erlang cookie), its own loopback ports
for AMQP, distribution and epmd, and its own login. It touches no system service and needs
no root. A keeper process (process_keeper.py) ends the node and removes its folder, however
this process ends.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NoReturn, Self

from bridge.demo.node_setup import NodeSetup, find_rabbitmq, new_setup
from bridge.demo.processes import KeptProcesses
from bridge.errors import PrivateNodeError

_PORT_ATTEMPTS: Final = 3
_PROBE_TIMEOUT_S: Final = 1.0
_PROBE_PAUSE_S: Final = 0.05
_WATCH_PAUSE_S: Final = 0.5

# AMQP 0-9-1, sections 4.2 and 1.4: enough to log in. Without aio_pika, so that this module
# needs the standard library only and tests can run it as any user of the machine.
_AMQP_GREETING: Final = b"AMQP\x00\x00\x09\x01"
_START_OK: Final = b"\x00\x0a\x00\x0b"
_TUNE: Final = b"\x00\x0a\x00\x1e"

# The log messages for a taken port: of the AMQP listener, and of the check of the
# distribution port before the start (rabbit_prelaunch_dist).
_PORT_TAKEN_SIGNS: Final = (
    "eaddrinuse",
    "ddress already in use",
    "dist_port_already_used",
)

Progress = Callable[[str], None]


class _PortTakenError(PrivateNodeError):
    """Another program took one of the ports between choosing and using it."""


class PrivateNode:
    """
    One private node. Create it with `open`; use it from one task at a time.

    It is not bound to an event loop: a node started in one loop may be used in another.
    """

    def __init__(
        self,
        kept: KeptProcesses,
        *,
        rabbitmq: Path,
        setup: NodeSetup,
        ready_within_s: float,
    ) -> None:
        self.setup = setup
        self._kept = kept
        self._rabbitmq = rabbitmq
        self._ready_within_s = ready_within_s
        self._needed = {"node", "epmd"} if setup.starts_epmd else {"node"}

    @property
    def url(self) -> str:
        """The AMQP URL, including the login."""
        setup = self.setup
        login = f"{setup.user}:{setup.password}"
        return f"amqp://{login}@{setup.host}:{setup.ports.amqp}/"

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of ``keeper``, ``epmd`` and ``node``, if they run."""
        return {"keeper": self._kept.keeper_pid, **self._kept.pids}

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        progress: Progress = lambda _: None,
        ready_within_s: float = 90.0,
        new_setup: Callable[[Path], NodeSetup] = new_setup,
    ) -> AsyncIterator[Self]:
        """
        Start a node, yield it when it accepts logins, and remove it at the end.

        Args:
            progress: Receives short sentences about the start, which takes seconds.
            ready_within_s: Time limit of one start.
            new_setup: Returns the setup for a folder. It is called before each attempt:
                if another program takes a port, the start is repeated.

        Raises:
            PrivateNodeError: If RabbitMQ is not installed or does not start; the text has
                the fix, or the end of its log.

        Cancellation:
            Safe at any time: the keeper removes the node and its folder.

        """
        rabbitmq = await asyncio.to_thread(find_rabbitmq)
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            progress("starting a private RabbitMQ node; this takes some seconds")
            async with KeptProcesses.open() as kept:
                setup = await asyncio.to_thread(new_setup, kept.folder)
                node = cls(
                    kept, rabbitmq=rabbitmq, setup=setup, ready_within_s=ready_within_s
                )
                try:
                    await node._boot()
                except _PortTakenError:
                    if not attempts_left:
                        raise
                    progress("another program has taken a port; trying others")
                    continue
                progress(f"RabbitMQ listens on {setup.host}:{setup.ports.amqp}")
                yield node
                return

    async def keep_running(self, *, progress: Progress) -> NoReturn:
        """
        Start the node again each time that it ends, with the same data and ports.

        Raises:
            PrivateNodeError: If it does not start, or its keeper has ended.

        """
        while True:
            await asyncio.sleep(_WATCH_PAUSE_S)
            self._kept.take_reports()
            if "node" in self._kept.pids:
                continue
            progress("the private RabbitMQ node was killed or has ended; restarting it")
            await self._start_epmd()
            await self._run_node()
            progress("the private RabbitMQ node runs again")

    async def _boot(self) -> None:
        await asyncio.to_thread(self.setup.check_host)
        await asyncio.to_thread(self.setup.write_files)
        await self._start_epmd()
        await self._run_node()

    async def _start_epmd(self) -> None:
        if self.setup.starts_epmd and "epmd" not in self._kept.pids:
            # As a child of the keeper. Otherwise the VM would start epmd as a daemon.
            await self._kept.start(
                "epmd",
                [
                    *("epmd", "-address", self.setup.host),
                    *("-port", str(self.setup.ports.epmd)),
                ],
                self.setup.environment(),
            )

    async def _run_node(self) -> None:
        program = [str(self._rabbitmq / "rabbitmq-server"), "-noinput"]
        await self._kept.start("node", program, self.setup.node_environment())
        try:
            async with asyncio.timeout(self._ready_within_s):
                while not await self._answers():
                    self._kept.take_reports()
                    if self._needed - self._kept.pids.keys():
                        await self._raise_failed_start("exited during its start")
                    await asyncio.sleep(_PROBE_PAUSE_S)
        except TimeoutError:
            await self._raise_failed_start(
                f"does not answer after {self._ready_within_s:g} s"
            )

    async def _answers(self) -> bool:
        """
        Whether the node's login is accepted on its port.

        The password is random, so no other broker on this port would accept it.
        """
        response = f"\0{self.setup.user}\0{self.setup.password}".encode()
        # connection.start-ok: client properties, mechanism, response, locale.
        arguments = b"\0\0\0\0" + b"\x05PLAIN" + _sized(response) + b"\x05en_US"
        method = _START_OK + arguments
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(
                    self.setup.host, self.setup.ports.amqp
                )
                try:
                    writer.write(_AMQP_GREETING)
                    await _read_method(reader)
                    writer.write(b"\x01\0\0" + _sized(method) + b"\xce")
                    return (await _read_method(reader)).startswith(_TUNE)
                finally:
                    writer.close()
        except (OSError, EOFError, TimeoutError):
            return False

    async def _raise_failed_start(self, what: str) -> NoReturn:
        tail = await asyncio.to_thread(self.setup.log_tail)
        problem = f"the private RabbitMQ node {what}"
        # If its port is in use, epmd assumes that epmd runs there already, and exits.
        is_epmd_gone = "epmd" in self._needed - self._kept.pids.keys()
        if is_epmd_gone or any(sign in tail for sign in _PORT_TAKEN_SIGNS):
            raise _PortTakenError(problem, tail)
        raise PrivateNodeError(problem, tail)


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(4) + data


async def _read_method(reader: asyncio.StreamReader) -> bytes:
    """Read one frame; return its class and method ids and arguments."""
    header = await reader.readexactly(7)
    return (await reader.readexactly(int.from_bytes(header[3:]) + 1))[:-1]
