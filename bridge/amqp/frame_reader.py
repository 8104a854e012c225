"""
Stream readers that take AMQP content frames straight out of the bytes from the broker.

aiormq reads frame by frame, with three awaits and one task per message; almost all of
its cost lies there. It accepts a stream reader from its transport, and that reader sees
each chunk of bytes first. The readers here remove the content frames they handle and
pass every other frame on, whole and in order. Connection, channels, heartbeats, TLS and
errors remain the library's job.

The library never decodes the removed content. This avoids its worst fault: it raises on
properties that RabbitMQ accepts, the connection dies, the broker redelivers the same
message, and the loop never ends.

A frame is type, channel, size, payload and end octet (AMQP 0-9-1 section 4.2.3). Content
is a method frame, a header frame and, unless the body is empty, body frames (4.2.6).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from struct import Struct
from struct import error as struct_error
from typing import Final, cast

from bridge.core.message import Delivery

_METHOD: Final = 1
_HEADER: Final = 2
_BODY: Final = 3
_KINDS: Final = frozenset({_METHOD, _HEADER, _BODY, 8})  # 8 is the heartbeat
_CONTENT: Final = (_HEADER, _BODY)
_END: Final = 0xCE

_FRAME: Final = Struct(">BHI").unpack_from  # kind, channel, size
_METHOD_FRAME: Final = Struct(">BHII").unpack_from  # and class and method
_HEADER_FRAME: Final = Struct(">BHIIQ").unpack_from  # and class and weight, body size
_ENVELOPE: Final = Struct(">QBB").unpack_from  # tag, redelivered, length of exchange
_CONFIRM: Final = Struct(">QB").unpack_from  # tag, bits; the first is `multiple`
_FRAME_HEAD_BYTES: Final = 7
_FRAME_OVERHEAD_BYTES: Final = 8  # head and end octet
_HEADER_HEAD_BYTES: Final = 19

_CHANNEL_CLOSE: Final = 20 << 16 | 40
_BASIC_DELIVER: Final = 60 << 16 | 60
_BASIC_RETURN: Final = 60 << 16 | 50

_HEARTBEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_HEARTBEAT_INTERVAL_S: Final = 1.0

OnDeliveries = Callable[[Sequence[Delivery]], None]
OnReturn = Callable[[int, int, str], None]


@dataclass(slots=True)
class Confirm:
    """
    The broker's answer to a publish; it is not frozen, because that would be slower.

    Attributes:
        tag: The number of the publish on its channel, from 1.
        is_multiple: Whether all earlier publishes are confirmed, too.
        is_ack: False if the broker could not store it.

    """

    tag: int
    is_multiple: bool
    is_ack: bool


@dataclass(slots=True)
class Returned:
    """
    A message that the broker returned, because no queue received it.

    Attributes:
        exchange: Where it was published.
        routing_key: With which routing key.
        raw_properties: Its properties, not decoded.

    """

    exchange: bytes
    routing_key: bytes
    raw_properties: bytes = b""


OnConfirm = Callable[[Confirm], None]
OnReturned = Callable[[Returned], None]


class FrameReader(asyncio.StreamReader):
    """
    A stream reader that passes on all frames except those a subclass removes.

    Bytes that are not AMQP frames, such as the broker's refusal of our protocol version,
    and frames that are too short for their type are passed on unchanged, and so is
    everything after them.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._is_raw = False
        self._incomplete = bytearray()  # the beginning of an incomplete frame
        self._frame_bytes = 0  # size of that frame, as far as known
        self._has_removed = False
        self._heartbeat_s = 0.0

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # asyncio gives bytes
        """Remove this reader's frames from `data` and pass on the rest."""
        if self._is_raw:
            super().feed_data(data)
            return
        if self._incomplete:
            if len(self._incomplete) + len(data) < self._frame_bytes:
                # Append without parsing again, so that a huge frame is copied once.
                self._incomplete += data
                self._pass_heartbeat()
                return
            data = b"".join((self._incomplete, data))
            self._incomplete.clear()
        self._read_frames(data)
        self._pass_heartbeat()

    def feed_eof(self) -> None:
        """Pass on the incomplete rest: the library's error says how many bytes it was."""
        if self._incomplete:
            super().feed_data(bytes(self._incomplete))
            self._incomplete.clear()
        super().feed_eof()

    def _read_frames(self, data: bytes) -> None:
        at = passed = (
            0  # `data` is parsed up to `at`, passed on or removed up to `passed`
        )
        end = len(data)
        needed = _FRAME_HEAD_BYTES
        while end - at >= _FRAME_HEAD_BYTES:
            kind, channel, size = _FRAME(data, at)
            stop = at + size + _FRAME_OVERHEAD_BYTES
            if kind not in _KINDS or (stop <= end and data[stop - 1] != _END):
                self._is_raw = True
                break
            if stop > end:
                needed = stop - at
                break
            try:
                removed_to = self._remove(data, kind, channel, at, stop)
            except (struct_error, IndexError):  # too short for its type
                self._is_raw = True
                break
            if removed_to > at:
                if passed < at:
                    super().feed_data(data[passed:at])
                at = passed = removed_to
                self._has_removed = True
            else:
                at = stop
        if self._is_raw:
            at = end
        if passed < at:
            super().feed_data(data[passed:at])
        if at < end:
            self._incomplete += data[at:]
            self._frame_bytes = needed

    def _remove(
        self,
        data: bytes,  # noqa: ARG002 - subclasses need all of these
        kind: int,  # noqa: ARG002
        channel: int,  # noqa: ARG002
        at: int,
        stop: int,  # noqa: ARG002
    ) -> int:
        """
        Remove the frame in `data` from `at` to `stop`, and frames after it at will.

        Returns:
            Where the removed bytes end. `at` passes the frame on, as the base class
            always does.

        """
        return at

    def _pass_heartbeat(self) -> None:
        # The library counts only frames that it sees as signs of life, and the broker
        # sends no heartbeats while it is busy sending deliveries.
        if self._has_removed and not self._is_raw:
            now_s = self._now()
            if now_s - self._heartbeat_s >= _HEARTBEAT_INTERVAL_S:
                self._heartbeat_s = now_s
                super().feed_data(_HEARTBEAT)


@dataclass(frozen=True, slots=True)
class _Subscription:
    """The queue consumed on a channel, and the callback for its deliveries."""

    queue: str
    on_deliveries: OnDeliveries


@dataclass(slots=True)
class _PartialDelivery:
    """A delivery whose content is not complete yet."""

    delivery: Delivery
    missing: int | None = None  # bytes of body; None before the header
    parts: list[bytes] = field(default_factory=list)


class DeliveryReader(FrameReader):
    """
    Removes deliveries, for a connection that consumes on one or several channels.

    Other content (of Basic.Get and of returns) is passed on. The callback of a channel's
    subscription receives its deliveries in order: one plain call per chunk of bytes, or
    per run of frames of that channel within a chunk. Deliveries on channels without a
    subscription are dropped: the broker redelivers them after the channel is closed.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(now=now)
        self._subscriptions: dict[int, _Subscription] = {}  # by channel
        self._found: list[Delivery] = []
        self._found_on = 0  # the channel of all deliveries in `_found`
        self._partials: dict[int, _PartialDelivery] = {}  # by channel
        self._source: asyncio.Transport | None = None
        self._paused_by: set[int] = set()  # channels
        self._closed: set[int] = set()  # channels

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport, so that reading can be paused."""
        super().set_transport(transport)
        # uvloop's transports do not inherit from asyncio.Transport.
        self._source = cast("asyncio.Transport", transport)

    def subscribe(self, channel: int, queue: str, on_deliveries: OnDeliveries) -> None:
        """
        Hand deliveries of `channel` to `on_deliveries`, each marked as coming from `queue`.

        `on_deliveries` runs inside the reading of bytes and must not block.
        """
        self._closed.discard(channel)
        self._subscriptions[channel] = _Subscription(queue, on_deliveries)

    def was_closed(self, channel: int) -> bool:
        """
        Return whether the broker has closed `channel` since its subscription.

        The library reports that some turns of the event loop later, after its answer.
        """
        return channel in self._closed

    def unsubscribe(self, channel: int, on_deliveries: OnDeliveries) -> None:
        """
        Drop deliveries of `channel` from now on.

        A subscription with another callback is kept: after a channel has closed, the
        library gives its number to a new channel, whose consumer may have subscribed.
        """
        subscription = self._subscriptions.get(channel)
        if subscription is not None and subscription.on_deliveries == on_deliveries:
            del self._subscriptions[channel]

    def pause(self, channel: int) -> None:
        """
        Read nothing more from the broker until `channel` calls `resume`.

        A few seconds at most: heartbeats are not read either.
        """
        if self._source is not None and not self._source.is_closing():
            self._paused_by.add(channel)
            self._source.pause_reading()

    def resume(self, channel: int) -> None:
        """Continue reading unless another channel has paused it; may be repeated."""
        if channel not in self._paused_by:
            return
        self._paused_by.remove(channel)
        transport = self._source
        if transport is None or self._paused_by or transport.is_closing():
            return
        transport.resume_reading()

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # asyncio gives bytes
        """Remove the deliveries from `data`, hand them over, pass on the rest."""
        super().feed_data(data)
        if self._found:
            self._hand_over()

    def _hand_over(self) -> None:
        found, self._found = self._found, []
        subscription = self._subscriptions.get(self._found_on)
        if subscription is not None:
            subscription.on_deliveries(found)

    def _switch_to(self, channel: int) -> None:
        """Hand over the deliveries of the channel before, and collect those of `channel`."""
        if self._found:
            self._hand_over()
        self._found_on = channel

    def _queue_of(self, channel: int) -> str:
        subscription = self._subscriptions.get(channel)
        return "" if subscription is None else subscription.queue

    def _remove(self, data: bytes, kind: int, channel: int, at: int, stop: int) -> int:
        if self._partials and kind in _CONTENT and channel in self._partials:
            self._continue(data, kind, channel, at, stop)
            return stop
        if kind != _METHOD or stop - at < _FRAME_HEAD_BYTES + 4 + _FRAME_OVERHEAD_BYTES:
            return at
        if channel != self._found_on:
            self._switch_to(channel)
        removed_to = self._remove_complete(data, at, channel)
        if removed_to == at:
            method = _METHOD_FRAME(data, at)[3]
            if method == _BASIC_DELIVER:
                delivery = _parse_deliver(data[at : stop - 1], self._queue_of(channel))
                self._partials[channel] = _PartialDelivery(delivery)
                return stop
            if method == _CHANNEL_CLOSE:
                self._closed.add(channel)
        return removed_to

    def _remove_complete(self, data: bytes, at: int, channel: int) -> int:
        """
        Remove the deliveries of `channel` from `at` on that have at most three frames.

        This is the hot path: a few microseconds per delivery. It stops at the first
        delivery that is incomplete or has more frames, and at any other frame.
        """
        end = len(data)
        found = self._found.append
        queue = self._queue_of(channel)
        try:
            while at < end:  # without this test, every chunk would end in an exception
                kind, method_channel, size, method = _METHOD_FRAME(data, at)
                if (
                    method != _BASIC_DELIVER
                    or kind != _METHOD
                    or method_channel != channel
                ):
                    return at
                header_at = at + size + _FRAME_OVERHEAD_BYTES
                kind, header_channel, size, _, body_size = _HEADER_FRAME(
                    data, header_at
                )
                stop = body_at = header_at + size + _FRAME_OVERHEAD_BYTES
                if kind != _HEADER or header_channel != channel:
                    return at
                if body_size:
                    kind, body_channel, size = _FRAME(data, body_at)
                    stop = body_at + size + _FRAME_OVERHEAD_BYTES
                    if size != body_size or kind != _BODY or body_channel != channel:
                        return at
                if stop > end or data[stop - 1] != _END:
                    return at
                envelope_at = at + 12 + data[at + 11]  # behind the consumer tag
                tag, redelivered, length = _ENVELOPE(data, envelope_at)
                exchange_at = envelope_at + 10
                key_at = exchange_at + length + 1
                found(
                    Delivery(
                        tag,
                        redelivered != 0,
                        data[exchange_at : key_at - 1],
                        data[key_at : key_at + data[key_at - 1]],
                        data[header_at + _HEADER_HEAD_BYTES : body_at - 1],
                        data[body_at + _FRAME_HEAD_BYTES : stop - 1]
                        if body_size
                        else b"",
                        queue,
                    )
                )
                at = stop
        except (struct_error, IndexError):  # the chunk ends within a frame
            return at
        return at

    def _continue(
        self, data: bytes, kind: int, channel: int, at: int, stop: int
    ) -> None:
        """Add a header or body frame to an incomplete delivery; collect it when complete."""
        partial = self._partials[channel]
        if kind == _HEADER:
            partial.missing = _HEADER_FRAME(data[at : stop - 1])[4]
            partial.delivery.raw_properties = data[at + _HEADER_HEAD_BYTES : stop - 1]
        elif partial.missing is not None:
            part = data[at + _FRAME_HEAD_BYTES : stop - 1]
            partial.parts.append(part)
            partial.missing -= len(part)
        if partial.missing is not None and partial.missing <= 0:
            del self._partials[channel]
            partial.delivery.body = b"".join(partial.parts)
            if channel != self._found_on:
                self._switch_to(channel)
            self._found.append(partial.delivery)


class PublishingReader(FrameReader):
    """
    The base of readers for connections that publish.

    Attributes:
        blocked_for: The broker's reason while it blocks the connection, as in "low on
            memory"; ``None`` while it does not.

    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(now=now)
        self.blocked_for: str | None = None

    def _note_blocked(self, payload: bytes) -> None:
        """Note whether a method of the connection blocks or unblocks publishing."""
        if payload[:4] == _BLOCKED_BYTES:
            reason = payload[5 : 5 + payload[4]]
            self.blocked_for = reason.decode(errors="replace")
        elif payload[:4] == _UNBLOCKED_BYTES:
            self.blocked_for = None


class ReturnReader(PublishingReader):
    """
    Removes returns, for a connection that publishes and never consumes or gets.

    A return carries the properties that were sent. Those of a dead letter come from an
    unknown producer, and decoding them may end the connection, so this reader drops all
    content without decoding it.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(now=now)
        self._on_return: OnReturn | None = None

    def subscribe(self, on_return: OnReturn) -> None:
        """Call `on_return` with channel, reply code and reply text of each return."""
        self._on_return = on_return

    def _remove(self, data: bytes, kind: int, channel: int, at: int, stop: int) -> int:
        if kind in _CONTENT:
            return stop
        payload = data[at + _FRAME_HEAD_BYTES : stop - 1]
        method = payload[:4]
        if channel == 0 and kind == _METHOD:
            self._note_blocked(payload)
            return at  # the library stops writing until then
        if kind != _METHOD or method != _RETURN_BYTES:
            return at
        code = int.from_bytes(payload[4:6], "big")
        text = payload[7 : 7 + payload[6]].decode(errors="replace")
        if self._on_return is not None:
            self._on_return(channel, code, text)
        return stop


class RequestReader(PublishingReader, DeliveryReader):
    """
    Removes deliveries, confirms and returns, for a channel that publishes and consumes.

    Only bridge publishes on the connection, so the properties of a return are its own.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(now=now)
        self._publishing = 0  # the channel
        self._on_confirm: OnConfirm | None = None
        self._on_returned: OnReturned | None = None
        self._returning: Returned | None = None  # its content follows

    def subscribe_publishes(
        self, channel: int, on_confirm: OnConfirm, on_returned: OnReturned
    ) -> None:
        """
        Call `on_confirm` for each ack and nack, and `on_returned` for each return.

        Both run inside the reading of bytes and must not block. They replace those of an
        earlier channel, whose late confirms have the same tags and are dropped.
        """
        self._publishing = channel
        self._on_confirm = on_confirm
        self._on_returned = on_returned

    def _remove(self, data: bytes, kind: int, channel: int, at: int, stop: int) -> int:
        if kind in _CONTENT and self._returning is not None:
            if (
                kind == _HEADER
                and channel == self._publishing
                and self._on_returned is not None
            ):
                self._returning.raw_properties = data[
                    at + _HEADER_HEAD_BYTES : stop - 1
                ]
                self._on_returned(self._returning)
            return stop
        if kind == _METHOD and channel == 0:  # may come between the frames of a return
            self._note_blocked(data[at + _FRAME_HEAD_BYTES : stop - 1])
        elif kind == _METHOD:
            method_at = at + _FRAME_HEAD_BYTES
            method = data[method_at : method_at + 4]
            self._returning = None
            if method == _RETURN_BYTES:
                self._returning = _parse_return(data[method_at + 4 : stop - 1])
                return stop
            if method in _CONFIRM_BYTES and self._on_confirm is not None:
                tag, bits = _CONFIRM(data, method_at + 4)
                if channel == self._publishing:
                    is_ack = method == _ACK_BYTES
                    self._on_confirm(Confirm(tag, bool(bits & 1), is_ack))
                return stop
        return super()._remove(data, kind, channel, at, stop)


_RETURN_BYTES: Final = _BASIC_RETURN.to_bytes(4, "big")
_ACK_BYTES: Final = (60 << 16 | 80).to_bytes(4, "big")
_CONFIRM_BYTES: Final = (_ACK_BYTES, (60 << 16 | 120).to_bytes(4, "big"))
_BLOCKED_BYTES: Final = (10 << 16 | 60).to_bytes(4, "big")
_UNBLOCKED_BYTES: Final = (10 << 16 | 61).to_bytes(4, "big")


def _parse_return(arguments: bytes) -> Returned:
    exchange_at = 4 + arguments[2]  # after the reply code and the reply text
    key_at = exchange_at + arguments[exchange_at - 1] + 1
    return Returned(arguments[exchange_at : key_at - 1], arguments[key_at:])


def _parse_deliver(frame: bytes, queue: str) -> Delivery:
    """Read a method frame without its end octet; the content frames follow later."""
    envelope_at = 12 + frame[11]
    tag, redelivered, length = _ENVELOPE(frame, envelope_at)
    exchange_at = envelope_at + 10
    key_at = exchange_at + length + 1
    return Delivery(
        tag=tag,
        redelivered=redelivered != 0,
        exchange=frame[exchange_at : key_at - 1],
        routing_key=frame[key_at : key_at + frame[key_at - 1]],
        raw_properties=b"",
        body=b"",
        queue=queue,
    )
