"""The private RabbitMQ node as the tests use it: with faults, clusters and rabbitmqctl."""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from bridge.demo.node_setup import NodePorts, NodeSetup, free_ports
from bridge.demo.private_node import PrivateNode, Progress
from bridge.errors import PrivateNodeError

_KILL_TIMEOUT_S: Final = 10.0
_STARTS: Final = 3
# Nodes of a cluster that start at the same moment may refuse each other (RabbitMQ 3.10).
_PEER_IS_STARTING: Final = "Mnesia protocol negotiation failed"


class LocalNode(PrivateNode):
    """A private node that tests can kill, freeze and restart, alone or in a cluster."""

    @property
    def folder(self) -> Path:
        """The folder of the node."""
        return self.setup.folder

    @property
    def host(self) -> str:
        """The loopback address that it listens on."""
        return self.setup.host

    @property
    def port(self) -> int:
        """The AMQP port."""
        return self.setup.ports.amqp

    @property
    def password(self) -> str:
        """The password of its AMQP user."""
        return self.setup.password

    @property
    def name(self) -> str:
        """The Erlang node name."""
        return self.setup.name

    def program(self, name: str) -> Path:
        """Return the path of rabbitmqctl or another program of its RabbitMQ."""
        return self._rabbitmq / name

    def url_at(self, port: int) -> str:
        """Return the AMQP URL with another port of this machine, for example a proxy's."""
        return f"amqp://{self.setup.user}:{self.password}@{self.host}:{port}/"

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        *,
        progress: Progress = lambda _: None,
        extra_config: Sequence[str] = (),
        plugins: Sequence[str] = (),
        joins: "LocalNode | None" = None,
        ready_within_s: float = 90.0,
        choose_ports: Callable[[], NodePorts] = free_ports,
    ) -> AsyncIterator[Self]:
        """
        Start a node, yield it when it accepts logins, and remove it at the end.

        Args:
            progress: As in `PrivateNode.open`.
            extra_config: Further lines of rabbitmq.conf.
            plugins: Plugins to enable.
            joins: A running node whose cluster the new node joins, with the same login
                and cookie. It must outlive the new node.
            ready_within_s: Time limit of one start.
            choose_ports: Called before each attempt.

        Raises:
            PrivateNodeError: As in `PrivateNode.open`.

        """

        def new_setup(folder: Path) -> NodeSetup:
            ports = choose_ports()
            if joins is None:
                return NodeSetup(
                    folder, ports, config=tuple(extra_config), plugins=plugins
                )
            setup = joining_setup(joins.setup, folder, ports)
            return replace(
                setup, config=(*extra_config, *setup.config), plugins=plugins
            )

        async with cls.open(
            progress=progress, ready_within_s=ready_within_s, new_setup=new_setup
        ) as node:
            yield node

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

        A node that ends because another one of its cluster was starting too is started
        again, as the unit of RabbitMQ's package does (Restart=on-failure).

        Raises:
            PrivateNodeError: If it does not start.

        """
        await self.shut_down()
        for _ in range(_STARTS - 1):
            try:
                await self._run_node()
            except PrivateNodeError as exc:
                if _PEER_IS_STARTING not in exc.log_tail:
                    raise
            else:
                return
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
            cwd=self.setup.folder,
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

    async def _end(self, number: signal.Signals, *, within_s: float) -> None:
        if "node" not in self._kept.pids:
            return
        await self._kept.signal(
            "node", signal.SIGCONT
        )  # a stopped process ignores SIGTERM
        await self._kept.signal("node", number)
        await self._kept.wait_until_ended("node", within_s=within_s)


def joining_setup(other: NodeSetup, folder: Path, ports: NodePorts) -> NodeSetup:
    """Return the setup of a new node that joins the cluster of `other` at its start."""
    setup = NodeSetup(
        folder,
        replace(ports, epmd=other.ports.epmd),
        user=other.user,
        password=other.password,
        cookie=other.cookie,
        starts_epmd=False,
    )
    nodes = "cluster_formation.classic_config.nodes"
    return replace(
        setup,
        config=(
            "cluster_formation.peer_discovery_backend = classic_config",
            f"{nodes}.1 = {other.name}",
            f"{nodes}.2 = {setup.name}",
        ),
    )
