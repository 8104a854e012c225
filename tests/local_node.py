"""The private RabbitMQ node as the tests use it: with faults, clusters and rabbitmqctl."""

import asyncio
import json
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, Self

from bridge.demo.node_setup import NodePorts, NodeSetup, find_rabbitmq, free_ports
from bridge.demo.private_node import PrivateNode, Progress
from bridge.demo.processes import KeptProcesses
from bridge.errors import PrivateNodeError

_KILL_TIMEOUT_S: Final = 10.0
_EVALUATE_TIMEOUT_S: Final = 30.0
_ALARM_TIMEOUT_S: Final = 30.0
_ALARM_POLL_S: Final = 0.05
_ALARMS: Final = "rabbit_alarm:get_alarms()."
_ACTING_USER: Final = "tests"
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

    def lend(self, file: Path) -> None:
        """Write what another process needs to `borrow` the node."""
        file.write_text(json.dumps(asdict(self.setup), default=str))

    @classmethod
    def borrow(cls, file: Path) -> Self:
        """Return the node that another process has lent: to use it, not to stop or start it."""
        fields = json.loads(file.read_text())
        fields["folder"] = Path(fields["folder"])
        fields["ports"] = NodePorts(**fields["ports"])
        return cls(
            KeptProcesses(),
            rabbitmq=find_rabbitmq(),
            setup=NodeSetup(**fields),
            ready_within_s=0,
        )

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

    async def evaluate(self, expressions: str) -> str:
        """
        Evaluate Erlang expressions, which end with a full stop, on the node.

        Like `ctl eval`, without the second or two that a new Erlang VM needs.

        Returns:
            The value of the last one, as Erlang prints it.

        Raises:
            PrivateNodeError: If it fails, with the error.
            TimeoutError: If it takes longer than 30 seconds.

        """
        address = f"{self.host}:{self.setup.ports.distribution}"
        process = await asyncio.create_subprocess_exec(
            *(_erl_call(), "-R", "-address", address, "-e"),
            env=self.setup.environment(),  # with the home folder that has the cookie
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(_EVALUATE_TIMEOUT_S):
                output, _ = await process.communicate(f"{expressions}\n".encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text = output.decode().strip()
        if process.returncode != 0 or not text.startswith("{ok, "):
            problem = f"{expressions} failed: {text}"
            raise PrivateNodeError(problem)
        return text.removeprefix("{ok, ").removesuffix("}")

    @asynccontextmanager
    async def memory_alarm(self) -> AsyncIterator[None]:
        """Block publishers for the block, as if memory were short."""
        try:
            await self.begin_memory_alarm()
            yield
        finally:
            await self.end_memory_alarm()

    async def begin_memory_alarm(self) -> None:
        """Block publishers until `end_memory_alarm`; return when the alarm is on."""
        await self._limit_memory("{absolute, 1}", is_exceeded=True)

    async def end_memory_alarm(self) -> None:
        """Block publishers no longer; return when the alarm is off."""
        await self._limit_memory("0.7", is_exceeded=False)

    async def _limit_memory(self, limit: str, *, is_exceeded: bool) -> None:
        await self.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({limit}).")
        async with asyncio.timeout(_ALARM_TIMEOUT_S):
            while is_exceeded == (  # noqa: ASYNC110 - the node has no event for it
                "memory" not in await self.evaluate(_ALARMS)
            ):
                await asyncio.sleep(_ALARM_POLL_S)

    async def add_user(self, name: str, password: str, *permissions: str) -> None:
        """Create a user with patterns of what it may configure, write and read."""
        words = _erlang(name, password, _ACTING_USER)
        await self.evaluate(f"rabbit_auth_backend_internal:add_user({words}).")
        await self.set_permissions(name, *permissions)

    async def set_permissions(self, name: str, *permissions: str) -> None:
        """Change the patterns of what a user may configure, write and read."""
        words = _erlang(name, "/", *permissions, _ACTING_USER)
        await self.evaluate(f"rabbit_auth_backend_internal:set_permissions({words}).")

    async def delete_user(self, name: str) -> None:
        """Delete a user, whose connections are closed."""
        words = _erlang(name, _ACTING_USER)
        await self.evaluate(f"rabbit_auth_backend_internal:delete_user({words}).")

    async def _end(self, number: signal.Signals, *, within_s: float) -> None:
        if "node" not in self._kept.pids:
            return
        await self._kept.signal(
            "node", signal.SIGCONT
        )  # a stopped process ignores SIGTERM
        await self._kept.signal("node", number)
        await self._kept.wait_until_ended("node", within_s=within_s)


def _erl_call() -> Path:
    """Return the program of Erlang that sends expressions to a node."""
    erl = shutil.which("erl")
    if erl is None:
        problem = "Erlang is not installed: there is no `erl`"
        raise PrivateNodeError(problem)
    [program] = Path(erl).resolve().parents[1].glob("erts-*/bin/erl_call")
    return program


def _erlang(*texts: str) -> str:
    """Return arguments of an Erlang function."""
    return ", ".join(f"<<{json.dumps(text)}>>" for text in texts)


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
