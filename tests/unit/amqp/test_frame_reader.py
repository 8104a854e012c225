"""Frame readers: any split into chunks gives the same deliveries and the same other frames."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from bridge.amqp.frame_reader import DeliveryReader, FrameReader, ReturnReader
from bridge.core.message import Delivery
from tests.conftest import eventually
from tests.unit.amqp.wire import (
    ACK,
    DELIVER,
    GET_OK,
    HEADER,
    HEARTBEAT,
    RETURN,
    content,
    deliver,
    frame,
    method,
    returned,
    short,
)

ReaderT = TypeVar("ReaderT", bound=FrameReader)

# The frames of a stream, each with whether it is passed on, and the deliveries in it.
Stream = tuple[list[tuple[bytes, bool]], list[Delivery]]


def still() -> float:
    """Return a constant time, so that no heartbeat is inserted."""
    return 0.0


other_frames = st.one_of(
    st.just(HEARTBEAT),
    st.binary(max_size=20).map(lambda rest: method(0, 10, rest, class_id=10)),
    st.binary(max_size=20).map(lambda rest: method(2, ACK, rest)),
    st.binary(max_size=20).map(lambda rest: frame(3, 7, rest)),
)
# Other content may stand between deliveries, also on the same channel.
other_contents = st.tuples(
    st.integers(1, 3), st.booleans(), st.binary(max_size=30), st.binary(max_size=30)
).map(
    lambda drawn: [
        returned(drawn[0]) if drawn[1] else method(drawn[0], GET_OK, b"\x00" * 12),
        *content(drawn[0], drawn[2], drawn[3], cuts=(5,)),
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    """Draw what a broker may send on a connection whose channel 1 consumes."""
    sent: list[tuple[bytes, bool]] = []
    deliveries: list[Delivery] = []
    for tag in range(1, draw(st.integers(1, 6)) + 1):
        for group in draw(st.lists(other_contents, max_size=2)):
            sent += [(part, True) for part in group]
        delivery = Delivery(
            tag=tag,
            redelivered=draw(st.booleans()),
            exchange=draw(st.binary(max_size=20)),
            routing_key=draw(st.binary(max_size=255)),
            raw_properties=draw(st.binary(min_size=2, max_size=60)),
            body=draw(st.binary(max_size=60)),
            queue="q1",
        )
        deliveries.append(delivery)
        cuts = draw(st.lists(st.integers(1, 59), max_size=3))
        own = [
            deliver(
                1,
                tag,
                exchange=delivery.exchange,
                routing_key=delivery.routing_key,
                redelivered=delivery.redelivered,
                consumer_tag=draw(st.binary(max_size=8)),
            ),
            *content(1, delivery.raw_properties, delivery.body, cuts=cuts),
        ]
        for part in own:
            sent.append((part, False))
            if draw(st.booleans()):
                sent.append((draw(other_frames), True))
    return sent, deliveries


def chunks(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted({cut % len(data) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


async def read_all(reader: FrameReader, parts: Sequence[bytes]) -> bytes:
    """Feed `parts`, and return the bytes that the library would receive."""
    for part in parts:
        reader.feed_data(part)
    reader.feed_eof()
    return await reader.read()


def delivery_reader(
    now: Callable[[], float] = still,
) -> tuple[DeliveryReader, list[Delivery]]:
    reader, found = DeliveryReader(now=now), list[Delivery]()
    reader.subscribe(1, "q1", found.extend)
    return reader, found


@given(stream=streams(), cuts=st.lists(st.integers(0, 10_000), max_size=40))
async def test_any_split_gives_the_same_deliveries_and_passes_on_the_same_frames(
    stream: Stream, cuts: list[int]
) -> None:
    """TCP splits anywhere; a byte too many or too few would end the connection."""
    sent, deliveries = stream
    data = b"".join(part for part, _ in sent)
    reader, found = delivery_reader()

    passed_on = await read_all(reader, chunks(data, cuts))

    assert found == deliveries
    assert passed_on == b"".join(part for part, is_passed_on in sent if is_passed_on)


@given(stream=streams())
async def test_a_stream_that_arrives_byte_by_byte_is_read(stream: Stream) -> None:
    """The hardest split: every head and every body is split everywhere."""
    sent, deliveries = stream
    reader, found = delivery_reader()

    await read_all(reader, [bytes((byte,)) for part, _ in sent for byte in part])

    assert found == deliveries


async def test_a_body_of_many_frames_is_joined() -> None:
    """A body above frame_max (128 KiB) has several frames."""
    body = bytes(range(256)) * 4096
    parts = [
        deliver(1, 1),
        *content(1, b"\x00\x00", body, cuts=range(131064, 1 << 20, 131064)),
    ]
    reader, found = delivery_reader()

    passed_on = await read_all(
        reader, chunks(b"".join(parts), range(0, 1 << 20, 65536))
    )

    assert [delivery.body for delivery in found] == [body]
    assert passed_on == b""


async def test_a_chunk_is_handed_over_in_one_call() -> None:
    """Waking the pipeline costs more than a delivery, so one call covers a chunk."""
    calls: list[int] = []
    reader = DeliveryReader(now=still)
    reader.subscribe(1, "q1", lambda deliveries: calls.append(len(deliveries)))
    one = [
        deliver(1, tag) + b"".join(content(1, b"\x00\x00", b"{}")) for tag in range(5)
    ]

    reader.feed_data(b"".join(one))

    assert calls == [5]


@given(
    bodies=st.lists(
        st.tuples(st.sampled_from([1, 2, 3]), st.binary(max_size=20)), max_size=12
    ),
    data=st.data(),
    cuts=st.lists(st.integers(0, 10_000), max_size=40),
)
async def test_frames_of_several_channels_may_be_interleaved(
    bodies: list[tuple[int, bytes]], data: st.DataObject, cuts: list[int]
) -> None:
    """Each shard has a channel; a delivery passed on to the library would be lost."""
    waiting: dict[int, list[bytes]] = {1: [], 2: [], 3: []}
    for channel, body in bodies:
        parts = [deliver(channel, 1), *content(channel, b"\x00\x00", body, cuts=[9])]
        waiting[channel] += parts
    sent: list[bytes] = []
    while any(waiting.values()):
        channel = data.draw(st.sampled_from([n for n in waiting if waiting[n]]))
        sent.append(waiting[channel].pop(0))
    reader = DeliveryReader(now=still)
    found: dict[int, list[Delivery]] = {1: [], 2: [], 3: []}
    for channel, deliveries in found.items():
        reader.subscribe(channel, f"q{channel}", deliveries.extend)

    passed_on = await read_all(reader, chunks(b"".join(sent) or b"\x08", cuts))

    assert passed_on == (b"" if sent else b"\x08")
    for channel, deliveries in found.items():
        expected = [body for of, body in bodies if of == channel]
        assert [delivery.body for delivery in deliveries] == expected
        assert {delivery.queue for delivery in deliveries} <= {f"q{channel}"}


async def test_a_heartbeat_is_passed_on_about_once_a_second_during_deliveries() -> None:
    """The library counts only frames that it sees, and would give up a busy broker."""
    clock = [100.0]
    reader, found = delivery_reader(now=lambda: clock[0])
    one = deliver(1, 1) + b"".join(content(1, b"\x00\x00", b"{}"))

    for _ in range(100):  # ten seconds, ten deliveries in each
        reader.feed_data(one)
        clock[0] += 0.1
    reader.feed_eof()
    seen = await reader.read()

    assert len(found) == 100
    assert seen == HEARTBEAT * (len(seen) // len(HEARTBEAT))
    assert 9 <= len(seen) // len(HEARTBEAT) <= 11


async def test_an_incomplete_body_counts_as_a_sign_of_life() -> None:
    """A huge body on a slow connection completes no frame for a long time."""
    clock = [100.0]
    reader, _ = delivery_reader(now=lambda: clock[0])
    parts = b"".join([deliver(1, 1), *content(1, b"\x00\x00", b"x" * 1000)])

    for at in range(0, len(parts), 100):
        reader.feed_data(parts[at : at + 100])
        clock[0] += 1.5
    reader.feed_eof()

    assert (await reader.read()).count(HEARTBEAT) >= 9


async def test_no_heartbeat_is_inserted_into_the_handshake() -> None:
    """Each frame of the handshake answers the one before; another one would break it."""
    reader, _ = delivery_reader(now=lambda: 1e9)
    start = method(0, 10, b"\x00" * 50, class_id=10)

    assert await read_all(reader, [start[:20], start[20:]]) == start


async def test_the_brokers_refusal_of_the_protocol_is_passed_on() -> None:
    """It is eight bytes without a frame; the library raises an error for it."""
    reader, _ = delivery_reader()

    assert (
        await read_all(reader, [b"AM", b"QP\x00\x00", b"\x09\x01"])
        == b"AMQP\x00\x00\x09\x01"
    )


@given(data=st.binary(min_size=1, max_size=200), cuts=st.lists(st.integers(0, 200)))
async def test_bytes_that_are_not_amqp_are_passed_on_unchanged(
    data: bytes, cuts: list[int]
) -> None:
    """The greeting of another server must reach the library, which reports it."""
    reader, found = delivery_reader()
    garbage = b"HTTP/1.1 400 Bad Request\r\n" + data

    assert await read_all(reader, chunks(garbage, cuts)) == garbage
    assert found == []


async def test_a_frame_without_its_end_octet_is_passed_on_with_all_later_bytes() -> (
    None
):
    """The stream is out of step, and the library has to end the connection."""
    good = deliver(1, 1) + b"".join(content(1, b"\x00\x00", b"{}"))
    bad = HEARTBEAT[:-1] + b"\x00"
    reader, found = delivery_reader()

    passed_on = await read_all(reader, [good, bad + good, good])

    assert len(found) == 1
    assert passed_on == bad + good + good


@pytest.mark.parametrize(
    "bad",
    [
        method(1, DELIVER, b"\xff" + b"\x00" * 20),
        method(1, DELIVER, b"\x00" + b"\x00" * 8 + b"\x00\xff"),
        deliver(1, 2) + frame(HEADER, 1, b"\x00"),
    ],
    ids=["consumer tag", "exchange", "header"],
)
@pytest.mark.parametrize("size", [1, 1000])
async def test_a_delivery_that_is_too_short_is_passed_on_with_all_later_bytes(
    bad: bytes, size: int
) -> None:
    """An error raised here would end the connection without a word about its cause."""
    good = deliver(1, 1) + b"".join(content(1, b"\x00\x00", b"{}"))
    reader, found = delivery_reader()
    stream = good + bad + good

    passed_on = await read_all(reader, chunks(stream, range(0, len(stream), size)))

    assert [delivery.tag for delivery in found] == [1]
    assert passed_on.endswith(bad[-9:] + good)


@pytest.mark.parametrize("size", [1, 1000])
async def test_the_text_of_a_frame_ends_with_the_frame(size: int) -> None:
    """Its length must not make bytes of the next frame part of it."""
    returns: list[tuple[int, int, str]] = []
    reader = ReturnReader(now=still)
    reader.subscribe(lambda *facts: returns.append(facts))
    stream = (
        method(0, 60, b"\xfflow", class_id=10)
        + method(1, RETURN, b"\x01\x38\xffNO_ROUTE")
        + HEARTBEAT
    )

    await read_all(reader, chunks(stream, range(0, len(stream), size)))

    assert reader.blocked_for == "low"
    assert returns == [(1, 312, "NO_ROUTE")]


async def test_only_content_frames_belong_to_a_delivery() -> None:
    """Another frame on its channel is for the library, and no part of the body."""
    start, *rest = content(1, b"\x00\x00", b"{}")
    other = frame(8, 1, b"xy")
    reader, found = delivery_reader()

    passed_on = await read_all(reader, [deliver(1, 1), start, other, *rest])

    assert [delivery.body for delivery in found] == [b"{}"]
    assert passed_on == other


async def test_deliveries_without_a_subscription_are_dropped() -> None:
    """The broker redelivers them when the channel closes."""
    reader = DeliveryReader(now=still)
    one = deliver(1, 1) + b"".join(content(1, b"\x00\x00", b"{}"))

    assert await read_all(reader, [one, HEARTBEAT]) == HEARTBEAT


@given(
    raw_properties=st.binary(max_size=60),
    body=st.binary(max_size=60),
    cuts=st.lists(st.integers(0, 300), max_size=20),
)
async def test_a_return_is_reported_with_its_channel_and_its_content_is_dropped(
    raw_properties: bytes, body: bytes, cuts: list[int]
) -> None:
    """Its properties come from an unknown producer: decoding them can end the connection."""
    returns: list[tuple[int, int, str]] = []
    reader = ReturnReader(now=still)
    reader.subscribe(lambda *facts: returns.append(facts))
    ack = method(9, ACK, b"\x00" * 9)
    data = returned(9, text=b"NO_ROUTE\xff") + b"".join(
        content(9, raw_properties, body)
    )

    passed_on = await read_all(reader, chunks(data + ack, cuts))

    assert returns == [(9, 312, "NO_ROUTE�")]
    assert passed_on == ack


async def test_a_return_without_a_subscription_is_dropped() -> None:
    """It may belong to a publish that has timed out."""
    reader = ReturnReader(now=still)
    data = returned(9) + b"".join(content(9, b"\x00\x00", b"{}"))

    assert await read_all(reader, [data]) == b""


async def test_the_base_reader_passes_everything_on() -> None:
    """It serves connections that neither consume nor publish."""
    data = deliver(1, 1) + b"".join(content(1, b"\x00\x00", short(b"x"))) + HEARTBEAT

    assert await read_all(FrameReader(now=still), chunks(data, range(0, 99, 7))) == data


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_nothing_is_read_while_a_channel_has_paused_reading(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Also on uvloop, whose transports do not inherit from asyncio's."""

    async def read_after_resume() -> None:
        ours, theirs = socket.socketpair()
        reader = DeliveryReader()
        taken: list[int] = []
        reader.subscribe(
            1, "q1", lambda found: taken.extend(each.tag for each in found)
        )
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: protocol, sock=ours
        )
        with theirs:
            reader.pause(1)
            reader.pause(2)
            parts = [deliver(1, 7), *content(1, b"\x00\x00", b"body", cuts=())]
            theirs.sendall(b"".join(parts))
            await asyncio.sleep(0.05)
            reader.resume(1)
            reader.resume(1)
            await asyncio.sleep(0.05)
            assert not taken
            reader.resume(2)
            await eventually(lambda: taken)
            transport.close()
            reader.pause(1)
            reader.resume(1)  # too late, and harmless
        assert taken == [7]

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(read_after_resume())
