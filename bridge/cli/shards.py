"""`bridge shards`: show or change the number of inbound queues."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

import orjson
import typer

from bridge.amqp.connection import BrokerConnection, Purpose, connected
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.shards.layout import ShardLayout, ShardPlan
from bridge.amqp.shards.migration import ShardMigration, publish_end_markers
from bridge.cli.options import ConfigFile
from bridge.cli.tables import print_note
from bridge.core.broker_names import SHARDS_MAX
from bridge.logging import configure_logs
from bridge.settings.load import load_settings
from bridge.settings.model import Settings
from bridge.wiring import broker_address, shard_plan

app = typer.Typer(rich_markup_mode="markdown")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback(invoke_without_command=True)
def shards(
    context: typer.Context, json: AsJson = False, config_file: ConfigFile = None
) -> None:
    """
    Show the number of shards, and the queues that remain from an earlier number.

    The broker records the number; BRIDGE_SHARDS applies to an empty broker only. The
    command connects to RabbitMQ; no bridge needs to run. Exit status: 0 done, 3 the broker
    cannot be reached.

    Examples:

        bridge shards

        bridge shards --json | jq .shards

        bridge shards set 8

    """
    if context.invoked_subcommand is not None:
        return
    settings = _settings(config_file)
    layout, left = asyncio.run(_look(settings))
    if json:
        facts = {
            "shards": layout.shards,
            "setting": settings.shards,
            "before": layout.previous_shards,
            "left_of_before": list(left),
        }
        typer.echo(orjson.dumps(facts).decode())
        return
    typer.echo(_rendered(layout.shards))
    if left:
        typer.echo(
            f"new queues are not consumed until these are empty: {', '.join(left)}"
        )
    if layout.shards != settings.shards:
        print_note(
            f"BRIDGE_SHARDS is {settings.shards}; the number of the broker applies"
        )


@app.command("set")
def set_shards(
    number: Annotated[
        int, typer.Argument(min=1, max=SHARDS_MAX, help="The new number of shards.")
    ],
    wait: Annotated[
        bool,
        typer.Option("--wait/--no-wait", help="Wait until the old queues are empty."),
    ] = True,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Change nothing; print what would be done."),
    ] = False,
    config_file: ConfigFile = None,
) -> None:
    """
    Change the number of shards while bridges run and workers publish.

    New messages go to the new queues at once. They are consumed when the old queues are
    empty: later, but in order, without loss or repeats. Running bridges apply the change
    automatically; all of them must support shards (`bridge --help` lists this command)
    before the first change. The command may be interrupted and repeated at any time. More than one
    shard needs a plugin on each node: rabbitmq_sharding before RabbitMQ 4.2,
    rabbitmq_consistent_hash_exchange with 4.2, none from 4.3 on.

    Exit status: 0 done, 1 refused (an earlier change is not finished), 3 the broker cannot
    be reached.

    Examples:

        rabbitmq-plugins enable rabbitmq_sharding

        bridge shards set 8

        bridge shards set 8 --dry-run

    """
    settings = _settings(config_file)
    if dry_run:
        typer.echo(asyncio.run(_would_change(settings, number)))
        return
    asyncio.run(_change(settings, number, waits=wait))


def _rendered(shards: int) -> str:
    return f"{shards} shards" if shards > 1 else "1 shard"


def _settings(config_file: ConfigFile) -> Settings:
    settings = load_settings(config_file=config_file, is_complete=False)
    configure_logs(level="critical", log_format=settings.log_format)
    return settings


@asynccontextmanager
async def _connected(
    settings: Settings,
) -> AsyncIterator[tuple[BrokerConnection[FrameReader], ShardPlan]]:
    async with connected(
        broker_address(settings), purpose=Purpose.OPERATE, reader=FrameReader
    ) as connection:
        yield connection, shard_plan(settings)


async def _look(settings: Settings) -> tuple[ShardLayout, Sequence[str]]:
    async with _connected(settings) as (connection, plan):
        migration = ShardMigration(connection, plan)
        layout = await migration.records.expect()
        return layout, await migration.records.previous_queues(layout)


async def _would_change(settings: Settings, number: int) -> str:
    """Describe what `_change` would do; raises the same errors."""
    async with _connected(settings) as (connection, plan):
        migration = ShardMigration(connection, plan)
        layout = await migration.records.read()
        await migration.check_change(layout, number)
        if layout.shards != number:
            return f"from {layout.shards} to {_rendered(number)}"
        left = await migration.records.previous_queues(layout)
        return f"wait for {', '.join(left)}" if left else "nothing to do"


async def _change(settings: Settings, number: int, *, waits: bool) -> None:
    async with _connected(settings) as (connection, plan):
        migration = ShardMigration(connection, plan)
        layout = await migration.change(number)
        typer.echo(_rendered(number))
        while waits and (left := await migration.records.previous_queues(layout)):
            print_note(f"waiting for the bridges to empty {', '.join(left)}")
            await asyncio.sleep(plan.marker_interval_s)
            await publish_end_markers(connection, plan, layout)
        if layout.is_migrating and not await migration.records.previous_queues(layout):
            await migration.complete(layout)
