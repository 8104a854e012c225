"""The messages of `bridge publish`, read from its arguments or from stdin and checked."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from queue import Empty, Queue
from tempfile import SpooledTemporaryFile
from threading import Thread
from typing import IO, Final

import orjson

from bridge.core.contracts.messages import Problem, PublishRequest
from bridge.core.contracts.validation import parse_publish_request, publish_problem
from bridge.core.event_schemas import EventSchemas
from bridge.core.json_text import parse_json_exactly, render_json
from bridge.core.message import MessageLimits
from bridge.errors import ConfigError

STDIN: Final = "-"
# Fields whose options have other names.
_OPTIONS: Final = {"user": "USER", "data": "DATA", "ttl_s": "--ttl"}
_BATCH_MAX: Final = 32
_READ_AHEAD: Final = 1024
_PROBLEMS_MAX: Final = 100
_IN_MEMORY_BYTES: Final = 16 << 20


class PublishInput:
    """
    Reads requests from arguments or stdin, each checked as the HTTP API would check it.

    Raises:
        ConfigError: If the arguments do not go together.

    """

    def __init__(
        self,
        user: str,
        data: str | None,
        common: Mapping[str, object],
        *,
        is_text: bool,
        limits: MessageLimits,
        schemas: EventSchemas | None,
    ) -> None:
        if user == STDIN:
            given = [] if data is None else ["DATA"]
            given += map(_option, common)
            given += ["--text"] if is_text else []
            if given:
                omit = "omit it, because the lines of stdin are complete messages"
                raise ConfigError([f"{name}: {omit}" for name in given])
        if user != STDIN and data is None:
            raise ConfigError(
                ["DATA: is missing; give one JSON value, or - to read them from stdin"]
            )
        self._reads_stdin = STDIN in {user, data}
        self._limits = limits
        self._schemas = schemas
        self._user = user
        self._data = data or ""
        self._common = common
        self._is_text = is_text

    @contextmanager
    def requests(self) -> Iterator[Iterator[PublishRequest]]:
        """
        Open the requests; the iterator raises `ConfigError` at the first invalid line.

        With schemas all of stdin is read and checked first, so that nothing is published
        unless every line is valid. Without schemas the input may be endless.

        Raises:
            ConfigError: If a request is invalid that does not come from stdin. With schemas:
                one problem for each invalid line.

        """
        if not self._reads_stdin:
            yield iter((self._parse(0, os.fsencode(self._data)),))
            return
        if self._user != STDIN:  # do not wait for a line to refuse the options
            self._check(0, self._body(0, b"null"), schemas=None)
        if self._schemas is None:
            # Not sys.stdin: the thread that waits for a line would hold its lock until
            # the interpreter exits. Not closed either, because close() waits for the line.
            yield self._parsed(open(sys.stdin.fileno(), "rb", closefd=False))  # noqa: SIM115
            return
        with SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.seek(0)
            self._check_all(copy)
            copy.seek(0)
            yield self._parsed(copy)

    def _parsed(self, stream: IO[bytes]) -> Iterator[PublishRequest]:
        for number, line in _numbered(stream):
            yield self._parse(number, line)

    def _check_all(self, stream: IO[bytes]) -> None:
        problems: list[str] = []
        count = 0
        for number, line in _numbered(stream):
            try:
                self._parse(number, line)
            except ConfigError as exc:
                count += 1
                if count <= _PROBLEMS_MAX:
                    problems += exc.problems
        if count > _PROBLEMS_MAX:
            problems.append(f"and {count - _PROBLEMS_MAX} more lines")
        if problems:
            raise ConfigError([*problems, "nothing was published"])

    def _parse(self, number: int, line: bytes) -> PublishRequest:
        body = line if self._user == STDIN else self._body(number, line)
        return self._check(number, body, schemas=self._schemas)

    def _check(
        self, number: int, body: bytes, *, schemas: EventSchemas | None
    ) -> PublishRequest:
        found = parse_publish_request(body)
        if isinstance(found, PublishRequest):
            data = render_json(found.data)
            problem = publish_problem(found, data, limits=self._limits, schemas=schemas)
            if problem is None:
                return found
            found = problem
        raise ConfigError([f"{_where(number)}{self._text(found)}"])

    def _text(self, problem: Problem) -> str:
        """Return what is wrong, with names of options instead of names of fields."""
        if self._user == STDIN:
            return problem.detail
        # A sentence about one field begins with its name; others are about several.
        named, rest = problem.detail, ""
        if problem.pointer:
            named, space, rest = problem.detail.partition(" ")
            rest = space + rest
        words = named.split(" ")
        fields = PublishRequest.model_fields
        return " ".join(_option(one) if one in fields else one for one in words) + rest

    def _body(self, number: int, line: bytes) -> bytes:
        try:
            value = line.decode() if self._is_text else parse_json_exactly(line)
        except (UnicodeDecodeError, orjson.JSONDecodeError) as exc:
            hint = "" if self._is_text else "; for plain text add --text"
            problem = f"{_where(number)}DATA is not JSON: {exc}{hint}"
            raise ConfigError([problem]) from exc
        try:
            return render_json({"user": self._user, "data": value, **self._common})
        except orjson.JSONEncodeError as exc:
            raise ConfigError([f"{_where(number)}{exc}"]) from exc


def _numbered(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield number, line.rstrip(b"\r\n")


def _option(field: str) -> str:
    return _OPTIONS.get(field, f"--{field.replace('_', '-')}")


def _where(number: int) -> str:
    return f"line {number}: " if number else ""


class RequestBatches:
    """
    Reads requests in a thread of its own and hands them out in batches.

    A pipe may be silent for hours. Meanwhile the event loop sends heartbeats to the broker
    and handles Ctrl-C, which does not wait for the thread.
    """

    def __init__(self, requests: Iterable[PublishRequest]) -> None:
        self._requests = requests
        self._loop = asyncio.get_running_loop()
        # At the end comes an error, or None for the end of the input.
        self._read: Queue[PublishRequest | Exception | None] = Queue(_READ_AHEAD)
        self._has_read = asyncio.Event()
        Thread(target=self._read_all, name="lines", daemon=True).start()

    def _read_all(self) -> None:
        end: Exception | None = None
        try:
            for request in self._requests:
                self._put(request)
        except Exception as exc:  # noqa: BLE001 - `batches` raises it
            end = exc
        self._put(end)

    def _put(self, item: PublishRequest | Exception | None) -> None:
        self._read.put(item)
        with suppress(RuntimeError):  # the loop has ended; nothing reads the queue
            self._loop.call_soon_threadsafe(self._has_read.set)

    async def batches(self) -> AsyncIterator[list[PublishRequest]]:
        """
        Yield batches of requests that may be published concurrently.

        A batch has at most one request per user, which keeps the order of each user. It
        does not wait for further input. Valid requests before an invalid line are handed
        out before its error is raised.
        """
        batch: list[PublishRequest] = []
        while True:
            try:
                item = self._read.get_nowait()
            except Empty:
                if batch:
                    yield batch
                    batch = []
                else:
                    await self._has_read.wait()
                    self._has_read.clear()
                continue
            if isinstance(item, PublishRequest) and _fits(item, batch):
                batch.append(item)
                continue
            if batch:
                yield batch
            if isinstance(item, PublishRequest):
                batch = [item]
            elif item is None:
                return
            else:
                raise item


def _fits(request: PublishRequest, batch: list[PublishRequest]) -> bool:
    users = {other.user for other in batch}
    return request.user not in users and len(batch) < _BATCH_MAX
