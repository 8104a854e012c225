"""
A private RabbitMQ node, for `bridge demo` and the tests.

It has its own folder (data, logs, configuration, Erlang cookie), its own loopback ports
for AMQP, distribution and epmd, and its own login. It touches no system service and needs
no root. A keeper process (process_keeper.py) ends the node and removes its folder, however
this process ends.
"""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NoReturn, Self

from bridge.demo.node_setup import (
    NodePorts,
    NodeSetup,
    find_rabbitmq,
    free_ports,
)
from bridge.demo.processes import KeptProcesses
from bridge.errors import PrivateNodeError

_PORT_ATTEMPTS: Final = 3
_KILL_TIMEOUT_S: Final = 10.0
_PROBE_TIMEOUT_S: Final = 1.0
_PROBE_PAUSE_S: Final = 0.05

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


class LocalNode:
    """
    One private node. Create it with `start`; use it from one task at a time.

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
        self._kept = kept
        self._rabbitmq = rabbitmq
        self.setup = setup
        self._ready_within_s = ready_within_s
        self._needed = {"node"}
        self.folder = setup.folder
        self.host = setup.host
        self.port = setup.ports.amqp
        self.user = setup.user
        self.password = setup.password

    @property
    def url(self) -> str:
        """The AMQP URL, including the login."""
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """Return the AMQP URL with another port of this machine, for example a proxy's."""
        return f"amqp://{self.user}:{self.password}@{self.host}:{port}/"

    @property
    def name(self) -> str:
        """The Erlang node name."""
        return self.setup.name

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of ``keeper``, ``epmd`` and ``node``, if they run."""
        return {"keeper": self._kept.keeper_pid, **self._kept.pids}

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        *,
        progress: Progress | None = None,
        extra_config: Sequence[str] = (),
        plugins: Sequence[str] = (),
        joins: "LocalNode | None" = None,
        ready_within_s: float = 90.0,
        choose_ports: Callable[[], NodePorts] = free_ports,
    ) -> AsyncIterator[Self]:
        """
        Start a node, yield it when it accepts logins, and remove it at the end.

        Args:
            progress: Receives short sentences about the start, which takes seconds.
            extra_config: Further lines of rabbitmq.conf, for example a TLS listener.
            plugins: Plugins to enable; none by default, which starts fastest.
            joins: A running node whose cluster the new node joins, with the same login
                and cookie. It must outlive the new node.
            ready_within_s: Time limit of one start.
            choose_ports: Called before each attempt; the start retries if a port is taken.

        Raises:
            PrivateNodeError: If RabbitMQ is not installed or does not start; the text has
                the end of its log.

        Cancellation:
            Safe at any time: the keeper removes the node and its folder.

        """
        say = progress or (lambda _: None)
        rabbitmq = await asyncio.to_thread(find_rabbitmq)
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            say("starting a private RabbitMQ node; this takes some seconds")
            async with KeptProcesses.open() as kept:
                ports = await asyncio.to_thread(choose_ports)
                setup = NodeSetup(kept.folder, ports)
                config = list(extra_config)
                if joins is not None:
                    setup = joins.setup.beside(kept.folder, ports)
                    config += setup.joining(joins.setup)
                node = cls(
                    kept,
                    rabbitmq=rabbitmq,
                    setup=setup,
                    ready_within_s=ready_within_s,
                )
                try:
                    await node._boot(config, plugins, has_epmd=joins is None)
                except _PortTakenError:
                    if not attempts_left:
                        raise
                    say("another program has taken a port; trying others")
                    continue
                say(f"RabbitMQ listens on {node.host}:{node.port}")
                yield node
                return

    async def stop(self) -> None:
        """End the node and remove its folder; the end of `start` does it, too."""
        await self._kept.close()

    async def kill(self) -> None:
        """
        Kill the node (SIGKILL), as a power failure would, and wait until it has ended.

        RabbitMQ 3.10 saves its registry of quorum queues every 0.5 s. A queue that was
        declared later than that loses its messages and never answers after a restart.
        """
        await self._end(signal.SIGKILL, within_s=_KILL_TIMEOUT_S)

    async def shut_down(self) -> None:
        """Shut the node down (SIGTERM), keep its data, and wait until it has ended."""
        await self._end(signal.SIGTERM, within_s=self._ready_within_s)

    async def restart(self) -> None:
        """
        Start the node on the same ports and data; shut it down first if it runs.

        Raises:
            PrivateNodeError: If it does not start.

        """
        await self.shut_down()
        await self._run_node()

    async def freeze(self) -> None:
        """Stop the node's process (SIGSTOP): connections stay open, nothing answers."""
        await self._kept.signal("node", signal.SIGSTOP)

    async def thaw(self) -> None:
        """Resume a frozen node (SIGCONT)."""
        await self._kept.signal("node", signal.SIGCONT)

    async def ctl(
        self, *args: str, within_s: float = 60.0, program: str = "rabbitmqctl"
    ) -> str:
        """
        Run rabbitmqctl, or another of its programs, on the node. Takes a second or two.

        Returns:
            Its standard output.

        Raises:
            PrivateNodeError: If it fails, with its standard error.
            TimeoutError: If it takes longer than `within_s`; then it is killed.

        """
        process = await asyncio.create_subprocess_exec(
            self._rabbitmq / program,
            "--quiet",
            *args,
            env=self.setup.environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(within_s):
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            problem = f"{program} {' '.join(args)} failed: {errors.decode().strip()}"
            raise PrivateNodeError(problem)
        return output.decode()

    async def _boot(
        self, config: Sequence[str], plugins: Sequence[str], *, has_epmd: bool
    ) -> None:
        await asyncio.to_thread(self.setup.write_files, config, plugins)
        if has_epmd:
            # As a child of the keeper. Otherwise the VM would start epmd as a daemon.
            port = str(self.setup.ports.epmd)
            await self._kept.start(
                "epmd",
                ["epmd", "-address", self.host, "-port", port],
                self.setup.environment(),
            )
        self._needed = {"node", "epmd"} if has_epmd else {"node"}
        await self._run_node()

    async def _run_node(self) -> None:
        # With RABBITMQ_ALLOW_INPUT the start script replaces itself by the VM (exec)
        # instead of waiting for it, so signals to this process reach the node.
        program = [str(self._rabbitmq / "rabbitmq-server"), "-noinput"]
        environment = {**self.setup.environment(), "RABBITMQ_ALLOW_INPUT": "true"}
        await self._kept.start("node", program, environment)
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
        response = f"\0{self.user}\0{self.password}".encode()
        # connection.start-ok: client properties, mechanism, response, locale.
        arguments = b"\0\0\0\0" + b"\x05PLAIN" + _sized(response) + b"\x05en_US"
        method = _START_OK + arguments
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                try:
                    writer.write(_AMQP_GREETING)
                    await _read_method(reader)
                    writer.write(b"\x01\0\0" + _sized(method) + b"\xce")
                    return (await _read_method(reader)).startswith(_TUNE)
                finally:
                    writer.close()
        except (OSError, EOFError, TimeoutError):
            return False

    async def _end(self, number: signal.Signals, *, within_s: float) -> None:
        if "node" not in self._kept.pids:
            return
        await self._kept.signal(
            "node", signal.SIGCONT
        )  # a stopped process ignores SIGTERM
        await self._kept.signal("node", number)
        await self._kept.wait_until_ended("node", within_s=within_s)

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
