"""The commands of docs/operations.md do what the page says, when run unchanged."""

import asyncio
import re
import shlex
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any, Final

import aiohttp
import orjson
import pytest

from bridge.errors import PrivateNodeError
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.programs import (
    RunningProgram,
    environment,
    program,
    settings_for_program,
)
from tests.integration.running import OPERATOR_TOKEN, Worker, open_worker
from tests.local_node import LocalNode
from tests.tokens import SECRET, token

_PAGE: Final = Path(__file__).parents[2] / "docs" / "operations.md"
_BLOCK: Final = re.compile(r"^( *)```sh\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LIMIT_S: Final = 60 * SLOW_FACTOR


def blocks(section: str) -> list[list[str]]:
    """Return the commands of each code block under this heading."""
    text = _PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1]
    found = _BLOCK.findall(text.partition("\n## ")[0])
    return [[line.strip() for line in block.splitlines()] for _, block in found]


@dataclass
class Machine:
    """Runs the commands of the page, with `systemctl` and `bridge` of this test."""

    node: LocalNode
    namespace: str
    inbox: Path
    backup: Path
    stack: AsyncExitStack
    running: RunningProgram | None = None
    printed: list[str] = field(default_factory=list)

    @property
    def _settings(self) -> dict[str, str]:
        return {"inbox": f"sqlite:{self.inbox}", "jwt_secret": SECRET}

    async def type(self, line: str) -> None:
        """Run one command, which must succeed."""
        match shlex.split(line):
            case ["systemctl", "start", "bridge"]:
                self.running = await self.stack.enter_async_context(
                    program(self.node, self.namespace, **self._settings)
                )
            case ["systemctl", "stop", "bridge"]:
                assert self.running is not None
                self.running.process.terminate()
                assert await self.running.ended() == 0
            case ["rabbitmq-diagnostics", *arguments]:
                self.printed.append(
                    await self.node.ctl(*arguments, program="rabbitmq-diagnostics")
                )
            case _:
                await self._shell(line)

    async def _shell(self, line: str) -> None:
        assert self.running is not None
        settings = settings_for_program(self.node, self.namespace, **self._settings)
        settings["operator_port"] = self.running.operator_url.rpartition(":")[2]
        names = {"INBOX": str(self.inbox), "BACKUP": str(self.backup)}
        python = shlex.quote(sys.executable)
        commands = f'bridge() {{ {python} -m bridge "$@"; }}\n{line}'
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-euc",
            commands,
            env=environment(**settings) | names,
            stdout=PIPE,
            stderr=STDOUT,
        )
        async with asyncio.timeout(_LIMIT_S):
            output, _ = await process.communicate()
        assert process.returncode == 0, (line, output.decode())
        self.printed.append(output.decode())


@dataclass
class PageVisit:
    """What one connection of a page received, and its position afterwards."""

    data: list[object]
    sync: dict[str, Any]
    position: dict[str, object]


async def connect(machine: Machine, position: dict[str, object]) -> PageVisit:
    """Connect as Ann's page from `position`, and disconnect once it is synced."""
    assert machine.running is not None
    url = f"{machine.running.public_url}/socket.io/?EIO=4&transport=websocket"
    visit = PageVisit([], {}, dict(position))
    auth = orjson.dumps({"token": token(sub="ann"), **position}).decode()
    async with (
        asyncio.timeout(_LIMIT_S),
        aiohttp.ClientSession() as session,
        session.ws_connect(url) as page,
    ):
        await page.send_str(f"40{auth}")
        async for packet in page:
            if packet.data.startswith("40"):
                visit.position["pid"] = orjson.loads(packet.data[2:])["pid"]
            elif packet.data.startswith("42"):
                event, data, *offset = orjson.loads(packet.data[2:])
                if event == "bridge:sync":
                    visit.sync = data
                    break
                visit.data.append(data)
                visit.position["offset"] = offset[0]
    return visit


async def publish(machine: Machine, worker: Worker, *numbers: int) -> None:
    """Publish `numbers` to Ann, and wait until they are stored."""
    assert machine.running is not None
    for number in numbers:
        await worker.publish("ann", number)
    url = f"{machine.running.operator_url}/api/users/ann"
    headers = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def is_stored() -> bool:
            async with session.get(f"{url}/inbox?data=true") as response:
                items = (await response.json()).get("items", [])
            return {str(number) for number in numbers} <= {one["data"] for one in items}

        await eventually(is_stored)


async def test_an_upgrade_and_a_rollback_report_every_gap(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """A page that is newer than the restored copy must not be told that it missed nothing."""
    before, upgrade, after, back = blocks("Upgrade without loss")
    async with AsyncExitStack() as stack, open_worker(broker, namespace) as worker:
        machine = Machine(
            broker, namespace, tmp_path / "inbox.sqlite3", tmp_path / "kept", stack
        )
        await machine.type("systemctl start bridge")
        await publish(machine, worker, 1, 2, 3)
        old = await connect(machine, {})
        for line in [*before, *upgrade, *after]:
            await machine.type(line)
        await publish(machine, worker, 4, 5)
        new = await connect(machine, old.position)
        for line in back:
            await machine.type(line)
        await publish(machine, worker, 6, 7)
        again = await connect(machine, new.position)

    assert (old.data, new.data) == ([1, 2, 3], [4, 5])
    assert new.sync["complete"] is True
    assert again.sync["complete"] is False
    assert again.data[-2:] == [6, 7]
    assert f"{namespace}.inbound.0" in machine.printed[-4]


async def test_the_diagnostics_of_a_broker_that_is_down_or_blocked(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """The command for alarms fails and names the alarm."""
    [commands] = blocks("Broker down")
    async with AsyncExitStack() as stack:
        machine = Machine(broker, namespace, tmp_path, tmp_path, stack)
        for line in commands:
            await machine.type(line)

        async with broker.memory_alarm():
            with pytest.raises(PrivateNodeError, match="alarm"):
                await machine.type(commands[-1])

    assert "Alarms" in machine.printed[0]
