"""What all fuzzed parsers share: how they are loaded, and inputs that do not need a fuzzer."""

import asyncio
import atexit
from collections.abc import Callable, Coroutine, Iterator, Sequence
from importlib import import_module
from itertools import count
from random import Random
from typing import Any, Final, Protocol, TypeVar, cast

ResultT = TypeVar("ResultT")

PARSERS: Final = (
    "amqp_frames",
    "amqp_properties",
    "websocket_frames",
    "websocket_handshake",
    "engineio_packets",
    "socketio_packets",
    "tokens",
    "http_bodies",
    "forwarded_for",
    "origins",
    "schemas",
)


class Parser(Protocol):
    """
    A module of `tests/fuzz/parsers/`.

    Attributes:
        SEEDS: Inputs that reach most of the parser; the fuzzer starts from them.
        MODULES: The modules of bridge whose lines count as covered.

    """

    SEEDS: Sequence[bytes]
    MODULES: Sequence[str]

    def fuzz_one(self, data: bytes) -> None:
        """Parse `data`; any exception is a finding."""


def load(name: str) -> Parser:
    """Import the parser `name`, and with it the modules of bridge that it uses."""
    return cast("Parser", import_module(f"tests.fuzz.parsers.{name}"))


class Choices:
    """Decisions drawn from the bytes of an input; without bytes, the first choice."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, below: int) -> int:
        """Return a number under `below`, which is at most 256."""
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1] % below

    def one_of(self, options: Sequence[ResultT]) -> ResultT:
        """Return one of up to 256 options."""
        return options[self.number(len(options))]

    def rest(self) -> bytes:
        """Return the bytes that no choice has used."""
        return self._data[self._at :]


def pieces(data: bytes, size: int) -> list[bytes]:
    """Split `data` into pieces of `size` bytes, as a network may."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine; the same loop for all, because a new one takes longer than a parser."""
    return _loop().run_until_complete(work)


_LOOPS: Final[list[asyncio.AbstractEventLoop]] = []


def _loop() -> asyncio.AbstractEventLoop:
    if not _LOOPS:
        _LOOPS.append(asyncio.new_event_loop())
        atexit.register(_LOOPS[0].close)
    return _LOOPS[0]


def mutated(seeds: Sequence[bytes], *, inputs: int) -> Iterator[bytes]:
    """Yield the seeds and mutations of them, the same at each call."""
    random = Random(14)  # noqa: S311 - not for secrets
    yield from seeds
    for _ in range(inputs - len(seeds)):
        data = bytearray(random.choice(seeds))
        for _ in range(random.randint(1, 4)):
            random.choice(_MUTATIONS)(random, data, random.choice(seeds))
        yield bytes(data)


def _replace_byte(random: Random, data: bytearray, _other: bytes) -> None:
    if data:
        data[random.randrange(len(data))] = random.choice(_BYTES)


def _insert_bytes(random: Random, data: bytearray, _other: bytes) -> None:
    at = random.randint(0, len(data))
    data[at:at] = random.choice(_TEXTS)


def _delete(random: Random, data: bytearray, _other: bytes) -> None:
    at = random.randint(0, len(data))
    del data[at : at + random.randint(1, 8)]


def _repeat(random: Random, data: bytearray, _other: bytes) -> None:
    at = random.randint(0, len(data))
    end = at + random.randint(1, 16)
    data[at:at] = data[at:end] * random.randint(1, 5)


def _splice(random: Random, data: bytearray, other: bytes) -> None:
    at = random.randint(0, len(data))
    data[at:] = other[random.randint(0, len(other)) :]


_MUTATIONS: Final[Sequence[Callable[[Random, bytearray, bytes], None]]] = (
    _replace_byte,
    _replace_byte,
    _insert_bytes,
    _delete,
    _repeat,
    _splice,
)
_BYTES: Final = [*range(256), *b'\x00\x7f\x80\xff[]{}",:.-0123456789']
_TEXTS: Final = (
    b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff\xff\xff\xff\xff", b"\xed\xa0\x80",
    b"\\ud800", b"1e999", b"99999999999999999999", b"NaN", b"[[[[", b'{"a":', b"null", b"-", b"%00",
    b"\xd9\xa2", b"xn--", b"\r\n", b"\x1e",
)  # fmt: skip


def first_difference(left: Sequence[object], right: Sequence[object]) -> int | None:
    """Return where two sequences differ, as far as both reach."""
    for at in count():
        if at >= min(len(left), len(right)):
            return None
        if left[at] != right[at]:
            return at
    return None
