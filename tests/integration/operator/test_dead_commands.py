"""`bridge dead`: tables, JSON, confirmation prompts, exit codes, Ctrl-C."""

import asyncio
import os
import signal
import subprocess
import sys

import orjson
import pytest

from bridge.core.broker_names import BrokerNames
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.dead_letters import take_all
from tests.integration.operator.api_client import asking
from tests.integration.operator.commands import (
    CommandOutput,
    environment,
    run_command,
    run_with,
)
from tests.integration.operator.dead_letter_fixtures import (
    numbers,
    publish_dead_letters,
    ready,
)
from tests.integration.running import (
    OPERATOR_TOKEN,
    RunningBridge,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode


async def command(
    running: RunningBridge, *arguments: str, expect: int = 0, stdin: str = ""
) -> CommandOutput:
    """Run `bridge dead ARGUMENTS` while the bridge is running."""
    return await asyncio.to_thread(
        run_command, running, "dead", *arguments, expect=expect, stdin=stdin
    )


async def test_dead_letters_are_listed_as_a_table_and_as_json(
    broker: LocalNode, namespace: str
) -> None:
    """People get a table, programs the response of the API; hints go to stderr."""
    names = BrokerNames(namespace)
    async with running_bridge(settings_for(broker, namespace)) as running:
        await publish_dead_letters(broker, names, 5, users=("ann", "[red]tom"))
        table = await command(running, "list", "--limit", "3")
        listed = await command(running, "list", "--user", "ann", "--json")
        dead_letters = orjson.loads(listed.stdout)["items"]
        shown = await command(running, "show", dead_letters[1]["id"], "--body")
        hidden = await command(running, "show", dead_letters[1]["id"], "--json")
        missing = await command(running, "show", "f" * 24, expect=1)
        wrong = await command(running, "list", "--token", "wrong", expect=2)

    assert table.stdout.count("attempts_exhausted") == 3
    assert "[red]tom" in table.stdout  # markup in a producer's text is not interpreted
    assert "3 shown, 5 in the queue" in table.stderr
    assert "--cursor" in table.stderr
    assert len(dead_letters) == 3
    assert "header x-bridge-time" in shown.stdout
    assert "body text" in shown.stdout
    assert orjson.loads(hidden.stdout)["body_text"] is None
    assert "there is no such dead letter" in missing.stderr
    expected = "expected BRIDGE_OPERATOR_TOKEN of the running bridge"
    assert wrong.stderr.strip() == f"the key is wrong: {expected}"


async def test_redrive_and_discard_report_counts_and_discard_asks_first(
    broker: LocalNode, namespace: str
) -> None:
    """A discard needs a confirmation; a dry run changes nothing."""
    names = BrokerNames(namespace)
    async with running_bridge(settings_for(broker, namespace)) as running:
        await running.bridge.components.intake.stop_consuming()
        await running.bridge.components.intake.settled()
        await publish_dead_letters(broker, names, 9, users=("ann", "tom", "eve"))
        dry = await command(running, "redrive", "--user", "ann", "--dry-run")
        dry_json = await command(running, "discard", "--all", "--dry-run", "--json")
        refused = await command(running, "discard", "--all", expect=1, stdin="n\n")
        assert await ready(broker, names.dead) == 9
        discarded = await command(running, "discard", "--user", "tom", stdin="y\n")
        redriven = await command(
            running, "redrive", "--user", "ann", "--rate", "1000", "--json"
        )
        emptied = await command(running, "discard", "--all", "--yes")
        gone = await command(running, "discard", "--yes", "f" * 24, expect=1)

    assert dry.stdout == "3 dead letters would be redriven\n"
    assert orjson.loads(dry_json.stdout) == {"would": 9}
    assert "Discard 9 dead letters permanently?" in refused.stderr
    assert discarded.stdout.endswith("3 of 3 dead letters discarded\n")
    assert orjson.loads(redriven.stdout)["done"] == 3
    assert emptied.stdout == "3 of 3 dead letters discarded\n"
    assert emptied.stderr == ""  # no line of a progress bar without a terminal
    assert (
        "1 id is not in the queue" in gone.stderr
    )  # which was to be gone, but by this command
    assert numbers(await take_all(broker, names.inbound_queue())) == [0, 3, 6]


async def test_ctrl_c_cancels_the_job_and_reports_its_progress(
    broker: LocalNode, namespace: str
) -> None:
    """The job runs in the bridge and would otherwise continue unnoticed."""
    names = BrokerNames(namespace)
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        asking(running) as api,
    ):
        await running.bridge.components.intake.stop_consuming()
        await running.bridge.components.intake.settled()
        await publish_dead_letters(broker, names, 100)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bridge", "dead", "redrive", "--all", "--rate", "20",
            env=environment(running), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

        async def has_begun() -> bool:
            jobs = (await api.get("/api/jobs"))["items"]
            return bool(jobs and jobs[0]["done"] >= 2)

        await eventually(has_begun, within_s=30)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30 * SLOW_FACTOR):
            printed, _ = await process.communicate()
        job = (await api.get("/api/jobs"))["items"][0]

    assert process.returncode == 1
    assert job["state"] == "cancelled"
    assert printed.decode().startswith(
        f"{job['done']} of 100 dead letters redriven; cancelled"
    )


@pytest.mark.parametrize(
    ("arguments", "changes", "status", "text"),
    [
        (["list"], {"BRIDGE_OPERATOR_PORT": "1"}, 3, "cannot be reached"),
        (["list"], {"BRIDGE_OPERATOR_TOKEN": None}, 2, "BRIDGE_OPERATOR_TOKEN"),
        (["list", "--since", "soon"], {}, 2, "--since"),
        (["list", "--url", "nowhere"], {}, 2, "--url"),
        (["redrive"], {}, 2, "--all"),
        (["redrive", "--all", "--user", "ann"], {}, 2, "only one of these"),
        (["redrive", "xyz"], {}, 2, "'xyz' is not an id; bridge dead list"),
        (["redrive", "--all", "--rate", "0"], {}, 2, "--rate"),
    ],
    ids=str,
)
def test_the_exit_code_tells_the_kind_of_failure(
    arguments: list[str], changes: dict[str, str | None], status: int, text: str
) -> None:
    """0 done, 1 failed, 2 invalid usage or settings, 3 a peer cannot be reached."""
    given = {
        "BRIDGE_OPERATOR_TOKEN": OPERATOR_TOKEN,
        "BRIDGE_OPERATOR_PORT": "1",
        **changes,
    }
    environment = {
        **dict.fromkeys(name for name in os.environ if "BRIDGE" in name),
        **given,
    }

    done = run_with(environment, "dead", *arguments, expect=status)

    assert text in done.stderr
