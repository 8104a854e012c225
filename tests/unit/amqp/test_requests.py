"""Requests in flight on one channel: each ends once, whatever the broker sends."""

import asyncio
import struct
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.amqp.connection import BrokerConnection
from bridge.amqp.frame_reader import Confirm, RequestReader, Returned
from bridge.amqp.requests import OutgoingRequest, RequestChannel, RequestResult
from bridge.core.message import Delivery
from bridge.core.properties import Properties, parse_properties, render_properties
from bridge.enums import RequestOutcome
from bridge.metrics import Metrics
from tests.conftest import eventually
from tests.unit.amqp.wire import (
    ACK,
    BODY,
    HEADER,
    HEARTBEAT,
    METHOD,
    content,
    deliver,
    frame,
    method,
    returned,
    short,
)

NACK = 120
MIB = 1 << 20


@dataclass
class FakeWire:
    """A channel or connection of the library."""

    number: int = 1
    closing: "asyncio.Future[None]" = field(default_factory=asyncio.Future)
    connection_tune: Any = None


@dataclass
class FakeConnection:
    """Records what is written to the broker."""

    reader: RequestReader = field(default_factory=RequestReader)
    written: list[bytes] = field(default_factory=list)
    is_open: bool = True

    def __post_init__(self) -> None:
        self.wire = FakeWire(connection_tune=type("Tune", (), {"frame_max": 4096}))

    def write(self, frames: bytes) -> bool:
        """Record `frames`."""
        self.written.append(frames)
        return self.is_open


@dataclass
class Stage:
    """A channel, and how its requests have ended."""

    connection: FakeConnection
    channel: RequestChannel
    ends: list[tuple[int, RequestResult]] = field(default_factory=list)

    def publish(
        self, number: int, *, body: bytes = b"1", wants_reply: bool = True
    ) -> Properties:
        """Publish a request, and return the properties that it was written with."""
        request = OutgoingRequest("job", body, {"x-bridge-user": "ann"}, wants_reply)
        self.channel.publish(request, lambda result: self.ends.append((number, result)))
        return parse_properties(frames_of(self.connection.written[-1])[1][1][12:])

    def confirm(self, tag: int, *, multiple: bool = False, ack: bool = True) -> None:
        """Process a confirm of the broker."""
        self.channel._confirmed(Confirm(tag, is_multiple=multiple, is_ack=ack))


@pytest.fixture
async def stage() -> Stage:
    return stage_with(timeout_s=60.0)


def stage_with(*, timeout_s: float) -> Stage:
    connection = FakeConnection()
    channel = RequestChannel(
        cast("BrokerConnection[RequestReader]", connection),
        cast("Any", FakeWire()),
        exchange="bridge.requests",
        timeout_s=timeout_s,
        metrics=Metrics(),
    )
    return Stage(connection, channel)


def frames_of(data: bytes) -> list[tuple[int, bytes]]:
    """Return the kind and the payload of each frame."""
    found = []
    while data:
        kind, _, size = struct.unpack_from(">BHI", data)
        assert data[7 + size] == 0xCE
        found.append((kind, data[7 : 7 + size]))
        data = data[size + 8 :]
    return found


def reply_to(properties: Properties) -> Delivery:
    raw = render_properties(Properties(correlation_id=properties.correlation_id))
    return Delivery(
        1,
        redelivered=False,
        exchange=b"",
        routing_key=b"r",
        raw_properties=raw,
        body=b"1",
        queue="q",
    )


async def test_a_large_body_is_cut_into_frames_that_the_broker_accepts(
    stage: Stage,
) -> None:
    """RabbitMQ closes the connection for a frame above the negotiated size."""
    body = bytes(range(256)) * 40
    stage.publish(1, body=body)

    written = stage.connection.written[0]
    frames = frames_of(written)
    assert [kind for kind, _ in frames] == [METHOD, HEADER, BODY, BODY, BODY]
    assert all(len(payload) + 8 <= 4096 for _, payload in frames)
    assert b"".join(payload for kind, payload in frames if kind == BODY) == body
    arguments = b"\x00\x3c\x00\x28\x00\x00\x0fbridge.requests\x03job\x01"
    assert frames[0][1] == arguments
    assert struct.unpack_from(">HHQ", frames[1][1]) == (60, 0, len(body))


async def test_ids_of_requests_cannot_be_guessed(stage: Stage) -> None:
    """A worker that knows one request must not be able to answer others."""
    ids = {stage.publish(number).correlation_id for number in range(1000)}

    assert len(ids) == 1000
    assert all(len(each or b"") == 24 for each in ids)  # 96 random bits


async def test_the_first_end_of_a_request_counts(stage: Stage) -> None:
    """A reply may come before its confirm, twice, or after the connection is lost."""
    reply = reply_to(stage.publish(1))
    second = reply_to(stage.publish(2))
    stage.channel._replied([reply, reply])
    stage.confirm(1, ack=False)
    stage.channel.close()
    stage.channel._replied([second])
    stage.confirm(2)

    assert stage.ends == [(1, reply), (2, RequestOutcome.NOT_AVAILABLE)]


async def test_a_confirm_of_several_publishes_ends_those_that_want_no_reply(
    stage: Stage,
) -> None:
    """RabbitMQ confirms publishes together when it can."""
    for number in range(1, 6):
        stage.publish(number, wants_reply=number % 2 == 0)
    stage.confirm(4)
    stage.confirm(3, multiple=True)
    stage.confirm(5, ack=False)

    assert stage.ends == [
        (1, RequestOutcome.SENT),
        (3, RequestOutcome.SENT),
        (5, RequestOutcome.NOT_AVAILABLE),
    ]


async def test_a_broker_that_does_not_confirm_gets_a_limited_number_of_bytes(
    stage: Stage,
) -> None:
    """A frozen broker reads nothing; the requests of all windows would fill the memory."""
    for number in range(10):
        stage.publish(number, body=b"x" * MIB)
    written = len(stage.connection.written)
    stage.confirm(10, multiple=True)
    stage.publish(10)

    assert stage.ends == [(n, RequestOutcome.NOT_AVAILABLE) for n in range(4, 10)]
    assert written == 4


async def test_a_closed_connection_takes_no_request(stage: Stage) -> None:
    """The loss is noticed by the write at first, and then by the library."""
    stage.connection.is_open = False
    stage.publish(1)
    stage.connection.is_open = True
    stage.connection.wire.closing.set_result(None)
    await eventually(lambda: stage.channel.problem)
    written = len(stage.connection.written)
    request = OutgoingRequest("job", b"1", {}, wants_reply=True)
    stage.channel.publish(request, lambda result: stage.ends.append((2, result)))

    assert len(stage.connection.written) == written
    assert [result for _, result in stage.ends] == [RequestOutcome.NOT_AVAILABLE] * 2


async def test_requests_end_at_their_timeout_in_order() -> None:
    """One timer serves all of them."""
    stage = stage_with(timeout_s=0.05)
    for number in range(100):
        stage.publish(number)
    await eventually(lambda: len(stage.ends) == 100)
    stage.publish(100)
    await eventually(lambda: len(stage.ends) == 101)

    assert stage.ends == [(n, RequestOutcome.TIMEOUT) for n in range(101)]


# --- the reader -----------------------------------------------------------------------


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, list[object], bytes]:
    """Draw what a broker sends on the channel, what is reported, and what is passed on."""
    sent = passed = b""
    reported: list[object] = []
    for number in range(draw(st.integers(1, 6))):
        body = draw(st.binary(max_size=30))
        raw = render_properties(Properties(correlation_id=b"%d" % number))
        # A heartbeat may come between any two frames.
        frames = draw(st.sampled_from(["ack", "nack", "return", "reply", "other"]))
        match frames:
            case "ack" | "nack":
                is_ack = frames == "ack"
                arguments = struct.pack(">QB", number, is_ack)
                parts = [method(1, ACK if is_ack else NACK, arguments)]
                reported.append(Confirm(number, is_multiple=is_ack, is_ack=is_ack))
            case "return":
                parts = [returned(1), *content(1, raw, body, cuts=(7,))]
                reported.append(Returned(b"x", b"k", raw))
            case "reply":
                parts = [deliver(1, number), *content(1, raw, body, cuts=(7,))]
                reported.append(body)
            case _:
                parts = [method(1, 11, b"", class_id=20)]
                passed += parts[0]
        for part in parts:
            sent += part
            if draw(st.booleans()):
                sent += HEARTBEAT
                passed += HEARTBEAT
    return sent, reported, passed


@given(drawn=answers(), cuts=st.lists(st.integers(1, 400), max_size=8))
def test_any_split_into_chunks_reports_the_same(
    drawn: tuple[bytes, list[object], bytes], cuts: list[int]
) -> None:
    """The socket cuts the stream anywhere."""
    sent, reported, passed = drawn
    found: list[object] = []

    async def read() -> bytes:
        reader = RequestReader(now=lambda: 0.0)
        reader.subscribe(1, "q", lambda all_: found.extend(one.body for one in all_))
        reader.subscribe_publishes(1, found.append, found.append)
        edges = sorted({0, *(cut for cut in cuts if cut < len(sent)), len(sent)})
        for start, stop in pairwise(edges):
            reader.feed_data(sent[start:stop])
        reader.feed_eof()
        return await reader.read()

    rest = asyncio.run(read())

    # Replies are handed over at the end of a chunk, so the order of all is not certain.
    def confirms(all_: list[object]) -> list[object]:
        return [one for one in all_ if isinstance(one, Confirm)]

    assert sorted(map(repr, found)) == sorted(map(repr, reported))
    assert confirms(found) == confirms(reported)
    assert rest == passed


async def test_late_confirms_of_an_earlier_channel_confirm_nothing() -> None:
    """Tags begin at 1 on each channel: what the broker does not have would be forgotten."""
    reader = RequestReader()
    earlier: list[object] = []
    found: list[object] = []
    reader.subscribe_publishes(1, earlier.append, earlier.append)
    reader.subscribe_publishes(2, found.append, found.append)
    raw = render_properties(Properties(correlation_id=b"1"))
    reader.feed_data(method(1, ACK, struct.pack(">QB", 3, 1)))
    reader.feed_data(b"".join((returned(1), *content(1, raw, b"1"))))

    assert found == []
    reader.feed_data(method(2, ACK, struct.pack(">QB", 1, 0)))
    assert found == [Confirm(1, is_multiple=False, is_ack=True)]
    assert earlier == []


def test_the_reader_knows_when_the_broker_blocks_the_connection() -> None:
    """A request that is written then would be published after the alarm."""

    async def reasons() -> list[str | None]:
        reader = RequestReader()
        blocked = method(0, 60, short(b"low on memory"), class_id=10)
        found = []
        for data in (blocked, method(0, 61, b"", class_id=10), frame(8, 0, b"")):
            reader.feed_data(data)
            found.append(reader.blocked_for)
        return found

    assert asyncio.run(reasons()) == ["low on memory", None, None]
