"""`bridge publish`: messages from a shell, one or many."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, Queue
from tempfile import SpooledTemporaryFile
from threading import Thread
from typing import IO, Annotated, Final
from uuid import uuid4

import orjson
import typer
from rich.console import Console

from bridge.amqp.connection import Purpose, open_connection
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.publish.messages import MessagePublisher
from bridge.amqp.publish.publisher import Publisher
from bridge.cli.options import AmqpUrl, ConfigFile, parse_ttl_s
from bridge.core.broker_names import BrokerNames
from bridge.core.contracts.messages import Problem, PublishRequest
from bridge.core.contracts.validation import parse_publish_request
from bridge.core.event_schemas import EventSchemas
from bridge.enums import EVENT_DEFAULT
from bridge.errors import BridgeError, ConfigError, PublishRefusedError, first_error
from bridge.logging import configure_logs
from bridge.metrics import Metrics
from bridge.settings.load import load_settings
from bridge.settings.model import Settings
from bridge.wiring import broker_address, schemas_of

_STDIN: Final = "-"
_AT_ONCE: Final = 32
_READ_AHEAD: Final = 1024
_PROGRESS_EACH: Final = 1000
_PROBLEMS_MAX: Final = 100
_IN_MEMORY_BYTES: Final = 16 << 20


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
    ttl: Annotated[
        str | None,
        typer.Option(
            help="After it the message is not delivered any more, as 90s, 15m or 1h."
        ),
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
    line that cannot be published and says which one it was. With BRIDGE_SCHEMAS all of
    stdin is checked first: nothing is published unless every line may be.

    Examples:

        bridge publish ann '{"text": "hello"}'

        bridge publish ann --text "hello" --event note --ttl 15m

        seq 1000 | bridge publish ann -

        echo '{"user": "ann", "event": "note", "data": {"n": 1}}' | bridge publish -

    """
    # Only the broker's settings matter here; a worker's machine has no token secrets.
    settings = load_settings(
        {"amqp_url": amqp_url, "auth": "open", "host": "127.0.0.1"},
        config_file=str(config_file) if config_file else None,
    )
    configure_logs(level="error", log_format=settings.log_format)
    ttl_s = None if ttl is None else parse_ttl_s(ttl)
    common = {"event": event, "id": message_id, "ttl_s": ttl_s}
    given = {name: value for name, value in common.items() if value is not None}
    reader = _Reader(user, data, given, is_text=text, schemas=schemas_of(settings))
    with _input(reader) as stream:
        asyncio.run(_publish_all(settings, reader.lines(stream), shows_ids=json))


class _Reader:
    """From arguments and lines of stdin to requests, each checked as the HTTP door would."""

    def __init__(
        self,
        user: str,
        data: str | None,
        given: Mapping[str, object],
        *,
        is_text: bool,
        schemas: EventSchemas | None,
    ) -> None:
        if user == _STDIN and data is not None:
            raise ConfigError(["DATA: comes with the lines of stdin, leave it out"])
        if user != _STDIN and data is None:
            raise ConfigError(
                ["DATA: is missing, give one JSON value, or - to read them from stdin"]
            )
        self.needs_stdin = _STDIN in {user, data}
        self.schemas = schemas
        self._user = user
        self._data = data or ""
        self._given = given
        self._is_text = is_text

    def lines(self, stream: IO[bytes]) -> Iterator[_Line]:
        """Yield what is to be published; `ConfigError` at the first that cannot be."""
        for number, line in self._numbered(stream):
            yield _Line(number, self._read(number, line))

    def check(self, stream: IO[bytes]) -> None:
        """
        Read all, and keep nothing.

        Raises:
            ConfigError: With a line for each that cannot be published.

        """
        problems: list[str] = []
        count = 0
        for number, line in self._numbered(stream):
            try:
                self._read(number, line)
            except ConfigError as exc:
                count += 1
                if count <= _PROBLEMS_MAX:
                    problems += exc.problems
        if count > _PROBLEMS_MAX:
            problems.append(f"and {count - _PROBLEMS_MAX} lines more")
        if problems:
            raise ConfigError([*problems, "nothing was published"])

    def _numbered(self, stream: IO[bytes]) -> Iterable[tuple[int, bytes]]:
        if not self.needs_stdin:
            yield 0, self._data.encode()
            return
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, line.rstrip(b"\r\n")

    def _read(self, number: int, line: bytes) -> PublishRequest:
        if self._user == _STDIN:
            request = _checked(line, number)
        else:
            request = self._read_data(number, line)
        schema = self.schemas and self.schemas.find(request.event or EVENT_DEFAULT)
        violation = schema.violation(request.data) if schema else None
        if violation is not None:
            raise ConfigError([f"{_where(number)}{violation.text}"])
        return request

    def _read_data(self, number: int, line: bytes) -> PublishRequest:
        try:
            value: object = line.decode() if self._is_text else orjson.loads(line)
        except (UnicodeDecodeError, orjson.JSONDecodeError) as exc:
            hint = "" if self._is_text else "; for plain text add --text"
            problem = f"{_where(number)}DATA is not JSON: {exc}{hint}"
            raise ConfigError([problem]) from exc
        fields = {"user": self._user, "data": value, **self._given}
        try:
            return _checked(orjson.dumps(fields), number)
        except orjson.JSONEncodeError as exc:
            raise ConfigError([f"{_where(number)}{exc}"]) from exc


@contextmanager
def _input(reader: _Reader) -> Iterator[IO[bytes]]:
    """
    Open stdin; with schemas, a copy of all of it that was found good.

    So nothing is sent unless everything may be. Without schemas lines are sent as they
    come, which may be never-ending.
    """
    if reader.schemas is None:
        # Not sys.stdin, whose lock a thread that waits for a line would keep to the end.
        # Nor is it closed: that would wait for the line as well.
        yield open(sys.stdin.fileno(), "rb", closefd=False)  # noqa: SIM115
        return
    with SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as copy:
        if reader.needs_stdin:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.seek(0)
        reader.check(copy)
        copy.seek(0)
        yield copy


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
    await probe.disconnect()
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(publisher.run(), name="publisher")
            async for batch in _Feed(lines).batches():
                ids = await _publish_batch(messages, batch)
                if shows_ids:
                    for message_id in ids:
                        typer.echo(orjson.dumps({"id": message_id}).decode())
                count += len(ids)
                if count // _PROGRESS_EACH != (count - len(ids)) // _PROGRESS_EACH:
                    talk.print(f"{count} published …")
            running.cancel()
    except* BridgeError as group:
        failure = _with_way_out(first_error(group))
        if count:
            talk.print(f"{count} published before this:")
    else:
        talk.print(f"{count} published, confirmed by the broker")
        return
    raise failure


def _with_way_out(failure: BaseException) -> BaseException:
    """Say what to do where no bridge has run yet: here nobody declares the exchange."""
    if isinstance(failure, PublishRefusedError) and "no exchange" in failure.problem:
        fix = "bridge run makes it: has one run there, with this BRIDGE_NAMESPACE?"
        return PublishRefusedError(failure.exchange, f"{failure.problem}; {fix}")
    return failure


class _Feed:
    """
    Batches of lines, read by a thread of their own: stdin may be silent for hours.

    The loop goes on meanwhile, with heartbeats for the broker and an ear for Ctrl-C, which
    does not wait for the thread.
    """

    def __init__(self, lines: Iterable[_Line]) -> None:
        self._lines = lines
        self._loop = asyncio.get_running_loop()
        # The end comes as what ended it.
        self._read: Queue[_Line | Exception] = Queue(maxsize=_READ_AHEAD)
        self._has_come = asyncio.Event()
        Thread(target=self._read_all, name="lines", daemon=True).start()

    def _read_all(self) -> None:
        end: Exception = StopAsyncIteration()
        try:
            for line in self._lines:
                self._put(line)
        except Exception as exc:  # noqa: BLE001 - whoever waits for lines raises it
            end = exc
        self._put(end)

    def _put(self, item: _Line | Exception) -> None:
        self._read.put(item)
        with suppress(RuntimeError):  # the loop has ended, and nobody wants it
            self._loop.call_soon_threadsafe(self._has_come.set)

    async def batches(self) -> AsyncIterator[list[_Line]]:
        """
        Join neighbours of different users: they may overtake each other, one user's not.

        What has come goes out without waiting for what may come. What stands before a bad
        line is handed over before its error is raised.
        """
        batch: list[_Line] = []
        while True:
            try:
                item = self._read.get_nowait()
            except Empty:
                if batch:
                    yield batch
                    batch = []
                else:
                    await self._has_come.wait()
                    self._has_come.clear()
                continue
            if isinstance(item, _Line) and _joins(item, batch):
                batch.append(item)
                continue
            if batch:
                yield batch
            if isinstance(item, StopAsyncIteration):
                return
            if isinstance(item, Exception):
                raise item
            batch = [item]


def _joins(line: _Line, batch: list[_Line]) -> bool:
    users = {other.request.user for other in batch}
    return line.request.user not in users and len(batch) < _AT_ONCE


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
