"""`bridge publish`: publish one message or many from a shell."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Final
from uuid import uuid4

import orjson
import typer

from bridge.amqp.connection import Purpose, open_connection
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.publish.messages import MessagePublisher, message_properties
from bridge.amqp.publish.publisher import Publisher
from bridge.amqp.publish.receipt_wait import REPLY_TO, publish_and_wait
from bridge.cli.options import AmqpUrl, ConfigFile, parse_seconds
from bridge.cli.publish_input import STDIN, PublishInput, RequestBatches
from bridge.cli.tables import print_note
from bridge.core.broker_names import BrokerNames
from bridge.core.contracts.messages import PublishRequest
from bridge.core.json_text import render_json
from bridge.enums import ExitCode, ReceiptOutcome
from bridge.errors import BridgeError, ConfigError, PublishRefusedError, first_error
from bridge.logging import configure_logs
from bridge.metrics import Metrics
from bridge.settings.load import load_settings
from bridge.settings.model import Settings
from bridge.wiring import broker_address, message_limits, schemas_of

_PROGRESS_EACH: Final = 1000


def publish(
    user: Annotated[
        str,
        typer.Argument(
            help="The recipient; - reads one complete message per line from stdin."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Argument(
            help="One JSON value; - reads one JSON value per line from stdin."
        ),
    ] = None,
    event: Annotated[
        str | None, typer.Option(help="Event name. Default: message.")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="DATA is plain text, not JSON.")
    ] = False,
    message_id: Annotated[
        str | None,
        typer.Option("--id", help="Message id: publishing it again is harmless."),
    ] = None,
    ttl: Annotated[
        str | None,
        typer.Option(
            help="Lifetime, such as 90s, 15m or 1h; then the message expires."
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Replace the older message with this key and event."),
    ] = None,
    throttle: Annotated[
        str | None,
        typer.Option(
            help="With --key: at most one message to each open window in this time, such as "
            "250ms."
        ),
    ] = None,
    retain: Annotated[
        bool,
        typer.Option(
            "--retain", help="With --key: new windows receive the newest message first."
        ),
    ] = False,
    clear: Annotated[
        bool, typer.Option("--clear", help="With --key: the key is no longer retained.")
    ] = False,
    ephemeral: Annotated[
        bool,
        typer.Option(
            "--ephemeral", help="Only for the windows that are open now; never stored."
        ),
    ] = False,
    receipt: Annotated[
        bool,
        typer.Option(
            "--receipt",
            help="Workers receive the outcome from the exchange bridge.events.",
        ),
    ] = False,
    undelivered_after: Annotated[
        str | None,
        typer.Option(
            help="Workers are notified if the user has not received it in this time, such as "
            "45s."
        ),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(
            help="Ask for a receipt, wait this long for the outcome, such as 30s, and print it."
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the ids, or the receipt, as JSON, one line per message.",
        ),
    ] = False,
    amqp_url: AmqpUrl = None,
    config_file: ConfigFile = None,
) -> None:
    """
    Publish to users through RabbitMQ, each message confirmed by the broker.

    Messages of one user are published in order. With stdin it stops at the first line
    that cannot be published and prints its number. With BRIDGE_SCHEMAS all of stdin is
    checked first: nothing is published unless every line is valid. The limits of bridge
    (BRIDGE_MAX_MESSAGE_BYTES, BRIDGE_INBOX_MAX_AGE) are those that are set here.

    Exit status: 0 confirmed by the broker, 1 refused by it, 2 wrong use, 3 the broker cannot
    be reached, 130 Ctrl-C. With --wait, 0 means delivered, and 1 any other outcome or none in
    time; without an outcome the message may still be delivered later.

    Examples:

        bridge publish ann '{"text": "hello"}'

        bridge publish ann --text "hello" --event note --ttl 15m

        seq 1000 | bridge publish ann -

        bridge publish ann 40 --event progress --key job-17 --retain

        bridge publish ann '{"text": "hello"}' --wait 30s

        bridge publish ann '{"text": "hello"}' --undelivered-after 45s

        echo '{"user": "ann", "event": "note", "data": {"n": 1}}' | bridge publish -

    """
    settings = load_settings(
        {"amqp_url": amqp_url}, config_file=config_file, is_complete=False
    )
    configure_logs(level="error", log_format=settings.log_format)
    ttl_s = None if ttl is None else parse_seconds(ttl, option="--ttl")
    options = {
        "event": event,
        "id": message_id,
        "ttl_s": ttl_s,
        "ephemeral": ephemeral or None,
        "key": key,
        "throttle": throttle,
        "retain": retain or None,
        "clear": clear or None,
        "receipt": receipt or wait is not None or None,
        "undelivered_after": undelivered_after,
    }
    wait_s = (
        None
        if wait is None
        else parse_seconds(wait, option="--wait", allows_zero=False)
    )
    if wait_s is not None and STDIN in {user, data}:
        raise ConfigError(["--wait: is for one message, not for lines of stdin"])
    source = PublishInput(
        user,
        data,
        {name: value for name, value in options.items() if value is not None},
        is_text=text,
        limits=message_limits(settings),
        schemas=schemas_of(settings),
    )
    if wait_s is not None:
        _publish_one(settings, source, wait_s=wait_s, as_json=json)
        return
    with source.requests() as requests:
        count = asyncio.run(_publish_all(settings, requests, shows_ids=json))
    limit = settings.inbox_max_messages
    if user != STDIN and count > limit:
        print_note(
            f"the inbox of {user} keeps the newest {limit} (BRIDGE_INBOX_MAX_MESSAGES): "
            "older ones are deleted, delivered or not"
        )


def _publish_one(
    settings: Settings, source: PublishInput, *, wait_s: float, as_json: bool
) -> None:
    """Publish one message, wait for its outcome, print it and exit."""
    with source.requests() as requests:
        [request] = requests
    options = request.options
    assert options.tracking is not None  # noqa: S101 - `receipt` was set
    message_id = request.id or str(uuid4())
    tracking = replace(options.tracking, reply_to=REPLY_TO)
    waiting = publish_and_wait(
        broker_address(settings),
        BrokerNames(settings.namespace).messages,
        request.user,
        body=render_json(request.data),
        properties=message_properties(
            event=request.event,
            message_id=message_id,
            ttl_s=request.ttl_s,
            options=replace(options, tracking=tracking),
        ),
        wait_s=wait_s,
    )
    try:
        body = asyncio.run(waiting)
    except PublishRefusedError as exc:
        raise _with_fix(exc) from exc
    except KeyboardInterrupt:
        print_note(
            f"stopped: `bridge trace {message_id}` shows what happened to the message"
        )
        raise
    if body is None:
        print_note(
            f"published, but no outcome within {wait_s:g} s: `bridge trace {message_id}` shows "
            "whether it waits for a window. If it does not wait, `bridge check` shows whether "
            "bridge may send receipts to reply_to"
        )
        found = {"message_id": message_id, "outcome": None}
    else:
        found = orjson.loads(body)
    outcome = found["outcome"]
    if as_json:
        typer.echo(orjson.dumps(found).decode())
    elif outcome is not None:
        typer.echo(outcome)
    if outcome != ReceiptOutcome.DELIVERED:
        raise typer.Exit(ExitCode.FAILED)


async def _publish_all(
    settings: Settings, requests: Iterable[PublishRequest], *, shows_ids: bool
) -> int:
    names = BrokerNames(settings.namespace)
    publisher = Publisher(broker_address(settings), names, metrics=Metrics())
    messages = MessagePublisher(publisher, names)
    count = 0
    # The publisher would retry for ever. This connection fails at once if the broker is
    # unreachable or refuses the password, with an error that says what to do.
    probe = await open_connection(
        broker_address(settings), purpose=Purpose.CHECK, reader=FrameReader
    )
    await probe.disconnect()
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(publisher.run(), name="publisher")
            async for batch in RequestBatches(requests).batches():
                ids = await _publish_batch(messages, batch)
                if shows_ids:
                    for message_id in ids:
                        typer.echo(orjson.dumps({"id": message_id}).decode())
                count += len(ids)
                if count // _PROGRESS_EACH != (count - len(ids)) // _PROGRESS_EACH:
                    print_note(f"{count} published …")
            running.cancel()
    except* BridgeError as group:
        failure = _with_fix(first_error(group))
        if count:
            print_note(f"{count} published before this:")
    else:
        print_note(f"{count} published, confirmed by the broker")
        return count
    raise failure


def _with_fix(failure: BaseException) -> BaseException:
    """Add the fix for a missing exchange, which this command does not declare."""
    if isinstance(failure, PublishRefusedError) and "no exchange" in failure.problem:
        fix = "bridge run declares it: has one run there, with this BRIDGE_NAMESPACE?"
        return PublishRefusedError(failure.exchange, f"{failure.problem}; {fix}")
    return failure


async def _publish_batch(
    messages: MessagePublisher, batch: list[PublishRequest]
) -> list[str]:
    ids = [request.id or str(uuid4()) for request in batch]
    async with asyncio.TaskGroup() as tasks:
        for request, message_id in zip(batch, ids, strict=True):
            tasks.create_task(
                messages.publish_message(
                    user=request.user,
                    event=request.event,
                    data=render_json(request.data),
                    message_id=message_id,
                    ttl_s=request.ttl_s,
                    options=request.options,
                ),
                name="publish",
            )
    return ids
