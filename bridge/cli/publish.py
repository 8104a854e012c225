"""`bridge publish`: messages from a shell, one or many."""

import asyncio
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final
from uuid import uuid4

import orjson
import typer
from rich.console import Console

from bridge.broker.connection import Purpose, open_connection
from bridge.broker.frame_reader import FrameReader
from bridge.broker.messages import MessagePublisher
from bridge.broker.publisher import Publisher
from bridge.cli.options import AmqpUrl, ConfigFile
from bridge.core.contracts.messages import Problem, PublishRequest
from bridge.core.contracts.publish_request import parse_publish_request
from bridge.errors import BridgeError, ConfigError, first_of
from bridge.logs import configure_logs
from bridge.metrics import Metrics
from bridge.names import BrokerNames
from bridge.options import broker_address
from bridge.settings.load import load_settings
from bridge.settings.model import Settings

_STDIN: Final = "-"
_AT_ONCE: Final = 32
_PROGRESS_EACH: Final = 1000


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    request: PublishRequest


def publish(
    user: Annotated[
        str,
        typer.Argument(
            help="Who gets it; - reads one whole message a line from stdin."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Argument(
            help="One JSON value; - reads one JSON value a line from stdin."
        ),
    ] = None,
    event: Annotated[
        str | None, typer.Option(help="Event name. Without it: message.")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="DATA is plain text, not JSON.")
    ] = False,
    message_id: Annotated[
        str | None,
        typer.Option("--id", help="Message id: publishing it again is harmless."),
    ] = None,
    ttl_s: Annotated[
        float | None,
        typer.Option("--ttl", help="Seconds after which it is not delivered."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the ids as JSON, one line a message.")
    ] = False,
    amqp_url: AmqpUrl = None,
    config_file: ConfigFile = None,
) -> None:
    """
    Publish to users through RabbitMQ, each message confirmed by the broker.

    Messages of one user are published in their order. With stdin it stops at the first
    line that cannot be published and says which one it was.

    Examples:
        bridge publish ann '{"text": "hello"}'

        bridge publish ann --text "hello" --event note --ttl 60

        seq 1000 | bridge publish ann -

        echo '{"user": "ann", "event": "note", "data": {"n": 1}}' | bridge publish -

    """
    # Only the broker's settings matter here; a worker's machine has no token secrets.
    settings = load_settings(
        {"amqp_url": amqp_url, "auth": "open", "host": "127.0.0.1"},
        config_file=str(config_file) if config_file else None,
    )
    configure_logs(level="error", log_format=settings.log_format)
    common = {"event": event, "id": message_id, "ttl_s": ttl_s}
    given = {name: value for name, value in common.items() if value is not None}
    lines = _requests(user, data, given, is_text=text)
    asyncio.run(_publish_all(settings, lines, shows_ids=json))


def _requests(
    user: str, data: str | None, given: Mapping[str, object], *, is_text: bool
) -> Iterator[_Line]:
    """Yield what is to be published, each checked as the HTTP door would."""
    if user == _STDIN and data is not None:
        raise ConfigError(["DATA: comes with the lines of stdin, leave it out"])
    if user == _STDIN:
        for number, line in _stdin_lines():
            yield _Line(number, _checked(line, number))
    elif data == _STDIN:
        for number, line in _stdin_lines():
            yield _Line(number, _one(user, line, given, number, is_text=is_text))
    elif data is None:
        raise ConfigError(
            ["DATA: is missing, give one JSON value, or - to read them from stdin"]
        )
    else:
        yield _Line(0, _one(user, data.encode(), given, 0, is_text=is_text))


def _stdin_lines() -> Iterable[tuple[int, bytes]]:
    for number, line in enumerate(sys.stdin.buffer, start=1):
        if line.strip():
            yield number, line.rstrip(b"\r\n")


def _one(
    user: str, data: bytes, given: Mapping[str, object], number: int, *, is_text: bool
) -> PublishRequest:
    try:
        value: object = data.decode() if is_text else orjson.loads(data)
    except (UnicodeDecodeError, orjson.JSONDecodeError) as exc:
        hint = "" if is_text else "; for plain text add --text"
        raise ConfigError([f"{_where(number)}DATA is not JSON: {exc}{hint}"]) from exc
    fields = {"user": user, "data": value, **given}
    try:
        return _checked(orjson.dumps(fields), number)
    except orjson.JSONEncodeError as exc:
        raise ConfigError([f"{_where(number)}{exc}"]) from exc


def _checked(body: bytes, number: int) -> PublishRequest:
    request = parse_publish_request(body)
    if isinstance(request, Problem):
        raise ConfigError([f"{_where(number)}{request.detail}"])
    return request


def _where(number: int) -> str:
    return f"line {number}: " if number else ""


async def _publish_all(
    settings: Settings, lines: Iterable[_Line], *, shows_ids: bool
) -> None:
    publisher = Publisher(
        broker_address(settings), BrokerNames(settings.namespace), metrics=Metrics()
    )
    messages = MessagePublisher(publisher, BrokerNames(settings.namespace))
    talk = Console(stderr=True, highlight=False)
    count = 0
    # Once by itself, so that no broker or a wrong password is told at once, with what
    # to do. The publisher would wait for them.
    probe = await open_connection(
        broker_address(settings), purpose=Purpose.CHECK, reader=FrameReader
    )
    await probe.leave()
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(publisher.run(), name="publisher")
            for batch in _batches(lines):
                ids = await _publish_batch(messages, batch)
                if shows_ids:
                    for message_id in ids:
                        typer.echo(orjson.dumps({"id": message_id}).decode())
                count += len(ids)
                if count // _PROGRESS_EACH != (count - len(ids)) // _PROGRESS_EACH:
                    talk.print(f"{count} published …")
            running.cancel()
    except* BridgeError as group:
        failure = first_of(group)
        if count:
            talk.print(f"{count} published before this:")
    else:
        talk.print(f"{count} published, confirmed by the broker")
        return
    raise failure


def _batches(lines: Iterable[_Line]) -> Iterator[list[_Line]]:
    """
    Join neighbours of different users: they may overtake each other, one user's not.

    What stands before a bad line is handed over before its error is raised.
    """
    batch: list[_Line] = []
    try:
        for line in lines:
            users = {other.request.user for other in batch}
            if line.request.user in users or len(batch) == _AT_ONCE:
                yield batch
                batch = []
            batch.append(line)
    except ConfigError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


async def _publish_batch(messages: MessagePublisher, batch: list[_Line]) -> list[str]:
    ids = [line.request.id or str(uuid4()) for line in batch]
    async with asyncio.TaskGroup() as tasks:
        for line, message_id in zip(batch, ids, strict=True):
            request = line.request
            tasks.create_task(
                messages.publish_message(
                    user=request.user,
                    event=request.event,
                    data=orjson.dumps(request.data),
                    message_id=message_id,
                    ttl_s=request.ttl_s,
                ),
                name="publish",
            )
    return ids
