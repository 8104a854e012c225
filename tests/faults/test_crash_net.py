"""A message that makes the process die is set aside, and takes nobody with it."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from bridge.core.broker_names import BrokerNames
from bridge.core.message import Delivery
from bridge.core.properties import Properties, header_bytes
from bridge.demo.private_node import LocalNode
from bridge.enums import Header
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.dead_letters import take_all
from tests.integration.programs import environment, settings_for_program
from tests.integration.running import (
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)

DEATHS_MAX = 8


async def start_deadly(broker: LocalNode, namespace: str, store: Path) -> Process:
    settings = settings_for_program(broker, namespace, inbox=f"sqlite:{store}")
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.faults.crashing_program",
        "run",
        env=environment(**settings),
        stdout=PIPE,
        stderr=PIPE,
    )


async def test_what_kills_the_process_is_set_aside_after_a_few_deaths(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """A delivery limit would take all that was in flight with it (traps 1.1, row 1b)."""
    names = BrokerNames(namespace)
    store = tmp_path / "inbox.sqlite3"
    settings = settings_for(broker, namespace)
    async with running_bridge(settings):
        pass  # declares; what is published now waits for the next one
    async with open_worker(broker, namespace) as worker:
        for number in range(40):
            user = "ann" if number < 20 else "bob"
            if number == 20:
                await worker.publish("ann", "deadly")
            # With an id: what is stored and not acked at a death is stored once.
            once = Properties(message_id=b"message-%d" % number)
            await worker.publish(user, number, properties=once)

    deaths = 0
    letters: list[Delivery] = []
    while not letters:
        process = await start_deadly(broker, namespace, store)
        try:

            async def died_or_set_aside(process: Process = process) -> bool:
                letters.extend(await take_all(broker, names.dead))
                return process.returncode is not None or bool(letters)

            await eventually(died_or_set_aside, within_s=20 * SLOW_FACTOR)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()
        deaths += not letters
        assert deaths <= DEATHS_MAX

    (letter,) = letters
    assert letter.body == b'"deadly"'
    table = letter.properties.headers
    assert header_bytes(table, Header.REASON) == b"crashed"
    assert header_bytes(table, Header.ERROR) == (
        b"the process died 2 times while it settled this message"
    )
    await nobody_else_was_hurt(broker, namespace, store)


async def nobody_else_was_hurt(broker: LocalNode, namespace: str, store: Path) -> None:
    """All neighbours are in their inboxes, once, in order; none is a dead letter."""
    settings = settings_for(broker, namespace, inbox=f"sqlite:{store}")
    async with running_bridge(settings) as running:
        tokens = [running.token(user) for user in ("ann", "bob")]
        async with open_windows(running.listening.public_url, tokens) as (ann, bob):
            await eventually(lambda: len(ann.data()) >= 20 and len(bob.data()) >= 20)
            assert ann.data() == list(range(20))
            assert bob.data() == list(range(20, 40))
        names = BrokerNames(namespace)
        assert await take_all(broker, names.dead) == []
