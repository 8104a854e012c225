"""A message that crashes the process is dead-lettered, and no other message is lost."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from bridge.core.broker_names import BrokerNames
from bridge.core.message import Delivery
from bridge.core.properties import Properties, header_bytes
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
from tests.local_node import LocalNode

CRASHES_MAX = 8


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


async def test_a_message_that_crashes_the_process_is_dead_lettered_after_a_few_crashes(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """The broker's delivery limit would dead-letter everything else in flight as well."""
    names = BrokerNames(namespace)
    store = tmp_path / "inbox.sqlite3"
    settings = settings_for(broker, namespace)
    async with running_bridge(settings):
        pass  # it declares the queues; messages wait there for the next bridge
    async with open_worker(broker, namespace) as worker:
        for number in range(40):
            user = "ann" if number < 20 else "bob"
            if number == 20:
                await worker.publish("ann", "deadly")
            # With an id: a message stored and not acked at a crash is stored once.
            once = Properties(message_id=b"message-%d" % number)
            await worker.publish(user, number, properties=once)

    crashes = 0
    letters: list[Delivery] = []
    while not letters:
        process = await start_deadly(broker, namespace, store)
        try:

            async def has_crashed_or_dead_lettered(process: Process = process) -> bool:
                letters.extend(await take_all(broker, names.dead))
                return process.returncode is not None or bool(letters)

            await eventually(has_crashed_or_dead_lettered, within_s=20 * SLOW_FACTOR)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()
        crashes += not letters
        assert crashes <= CRASHES_MAX

    (letter,) = letters
    assert letter.body == b'"deadly"'
    table = letter.properties.headers
    assert header_bytes(table, Header.REASON) == b"crashed"
    assert header_bytes(table, Header.ERROR) == (
        b"the process died 2 times while it settled this message"
    )
    await assert_no_other_message_is_affected(broker, namespace, store)


async def assert_no_other_message_is_affected(
    broker: LocalNode, namespace: str, store: Path
) -> None:
    """All other messages are in their inboxes, once, in order; none is a dead letter."""
    settings = settings_for(broker, namespace, inbox=f"sqlite:{store}")
    async with running_bridge(settings) as running:
        tokens = [running.token(user) for user in ("ann", "bob")]
        async with open_windows(running.listening.public_url, tokens) as (ann, bob):
            await eventually(lambda: len(ann.data()) >= 20 and len(bob.data()) >= 20)
            assert ann.data() == list(range(20))
            assert bob.data() == list(range(20, 40))
        names = BrokerNames(namespace)
        assert await take_all(broker, names.dead) == []
