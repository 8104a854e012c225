"""
The fast way in: AMQP content frames taken straight out of the bytes from the broker.

aiormq reads frame by frame, with three awaits and a task for each message; almost all
of its cost is there. It lets a transport bring its own stream reader, though, and a
reader sees each chunk of bytes first. Those here take out what they know and hand every
other frame on, whole and in order, so connection, channels, heartbeats, TLS and errors
stay with the library.

What is taken out is never decoded by the library either. That closes its worst fault:
it raises on properties that RabbitMQ accepts, the connection dies, the broker delivers
the same message again, and so on without end (traps 1.1 row 1).

Frames: AMQP 0-9-1 section 4.2.3, type, channel and size, payload, end octet. Content:
section 4.2.6, a method frame, a header frame, and body frames unless the body is empty.
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
_END: Final = 0xCE

_FRAME: Final = Struct(">BHI").unpack_from  # kind, channel, size
_METHOD_FRAME: Final = Struct(">BHII").unpack_from  # and class and method
_HEADER_FRAME: Final = Struct(">BHIIQ").unpack_from  # and class and weight, body size
_ENVELOPE: Final = Struct(">QBB").unpack_from  # tag, redelivered, length of exchange
_FRAME_HEAD_BYTES: Final = 7
_AROUND_BYTES: Final = 8  # head and end octet
_HEADER_HEAD_BYTES: Final = 19

_BASIC_DELIVER: Final = 60 << 16 | 60
_BASIC_RETURN: Final = 60 << 16 | 50

_HEARTBEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_HEARTBEAT_EACH_S: Final = 1.0

Deliveries = Callable[[Sequence[Delivery]], None]
Returned = Callable[[int, int, str], None]


class FrameReader(asyncio.StreamReader):
    """
    A stream reader that hands on all frames but those that a subclass takes out.

    Bytes that are no AMQP frames, such as the broker's refusal of our protocol version,
    go on untouched, and so does everything after them.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._is_raw = False
        self._held = bytearray()  # the beginning of a frame
        self._needed = 0  # bytes of that frame, as far as known
        self._has_taken = False
        self._heartbeat_s = 0.0

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # asyncio gives bytes
        """Take what is ours out of `data`, and pass on the rest."""
        if self._is_raw:
            super().feed_data(data)
            return
        if self._held:
            if len(self._held) + len(data) < self._needed:
                # Gathered without looking again, so a huge frame costs its size once.
                self._held += data
                self._show_life()
                return
            data = b"".join((self._held, data))
            self._held.clear()
        self._read_frames(data)
        self._show_life()

    def feed_eof(self) -> None:
        """Pass on what is left: the library's error says how much that was."""
        if self._held:
            super().feed_data(bytes(self._held))
            self._held.clear()
        super().feed_eof()

    def _read_frames(self, data: bytes) -> None:
        at = passed = 0  # up to where it was looked at; up to where it is dealt with
        end = len(data)
        needed = _FRAME_HEAD_BYTES
        while end - at >= _FRAME_HEAD_BYTES:
            kind, channel, size = _FRAME(data, at)
            stop = at + size + _AROUND_BYTES
            if kind not in _KINDS or (stop <= end and data[stop - 1] != _END):
                self._is_raw = True
                break
            if stop > end:
                needed = stop - at
                break
            taken_to = self._take(data, kind, channel, at, stop)
            if taken_to > at:
                if passed < at:
                    super().feed_data(data[passed:at])
                at = passed = taken_to
                self._has_taken = True
            else:
                at = stop
        if self._is_raw:
            at = end
        if passed < at:
            super().feed_data(data[passed:at])
        if at < end:
            self._held += data[at:]
            self._needed = needed

    def _take(
        self,
        data: bytes,  # noqa: ARG002 - for subclasses, as all of them
        kind: int,  # noqa: ARG002
        channel: int,  # noqa: ARG002
        at: int,
        stop: int,  # noqa: ARG002
    ) -> int:
        """
        Take the frame that stands in `data` from `at` to `stop`, and more if it suits.

        Returns:
            Up to where it was taken; `at`, as here always, hands the frame on.

        """
        return at

    def _show_life(self) -> None:
        # The library counts only frames that it sees as signs of life, and the broker
        # sends no heartbeats while it is busy sending deliveries.
        if self._has_taken and not self._is_raw:
            now_s = self._now()
            if now_s - self._heartbeat_s >= _HEARTBEAT_EACH_S:
                self._heartbeat_s = now_s
                super().feed_data(_HEARTBEAT)


@dataclass(slots=True)
class _Unfinished:
    """A delivery whose content is not complete yet."""

    delivery: Delivery
    missing: int | None = None  # bytes of body; None before the header
    parts: list[bytes] = field(default_factory=list)


class DeliveryReader(FrameReader):
    """
    Takes deliveries out, for a connection that consumes on one channel or on several.

    Other content (of Basic.Get, of returns) is handed on. Deliveries are given by a plain
    call, in order, once for each chunk of bytes or run of one channel in it: to that of
    `takers` which has the channel's number. Those of other channels are dropped.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(now=now)
        self.takers: dict[int, Deliveries] = {}
        self._found: list[Delivery] = []
        self._found_on = 0  # the channel that all of them came on
        self._unfinished: dict[int, _Unfinished] = {}  # by channel
        self._carrier: asyncio.Transport | None = None
        self._held_back_by: set[int] = set()

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """Know where the bytes come from."""
        super().set_transport(transport)
        self._carrier = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def hold_back(self, channel: int) -> None:
        """
        Read nothing more until `channel` lets it come: the broker waits.

        For some seconds at most: heartbeats are not read either.
        """
        if self._carrier is not None:
            self._held_back_by.add(channel)
            self._carrier.pause_reading()

    def let_come(self, channel: int) -> None:
        """Read on, unless another channel holds it back; harmless if nothing is held."""
        if channel not in self._held_back_by:
            return
        self._held_back_by.remove(channel)
        carrier = self._carrier
        if carrier is None or self._held_back_by or carrier.is_closing():
            return
        carrier.resume_reading()

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # asyncio gives bytes
        """Take the deliveries out of `data`, hand them over, pass on the rest."""
        super().feed_data(data)
        if self._found:
            self._hand_over()

    def _hand_over(self) -> None:
        found, self._found = self._found, []
        take = self.takers.get(self._found_on)
        if take is not None:
            take(found)

    def _turn_to(self, channel: int) -> None:
        """Let what is found from now on be of `channel`."""
        if self._found:
            self._hand_over()
        self._found_on = channel

    def _take(self, data: bytes, kind: int, channel: int, at: int, stop: int) -> int:
        if self._unfinished and kind != _METHOD and channel in self._unfinished:
            self._continue(data, kind, channel, at, stop)
            return stop
        if kind != _METHOD or stop - at < _FRAME_HEAD_BYTES + 4 + _AROUND_BYTES:
            return at
        if channel != self._found_on:
            self._turn_to(channel)
        taken_to = self._take_whole(data, at, channel)
        if taken_to == at and _METHOD_FRAME(data, at)[3] == _BASIC_DELIVER:
            self._unfinished[channel] = _Unfinished(_parse_deliver(data, at))
            return stop
        return taken_to

    def _take_whole(self, data: bytes, at: int, channel: int) -> int:
        """
        Take all deliveries of `channel` from `at` on, each in three frames at most.

        The hot path: a few microseconds for each delivery. The first that is not so
        simple or not complete, and anything else, ends it.
        """
        end = len(data)
        found = self._found.append
        try:
            while at < end:  # else each chunk would end in an exception
                kind, method_channel, size, method = _METHOD_FRAME(data, at)
                if (
                    method != _BASIC_DELIVER
                    or kind != _METHOD
                    or method_channel != channel
                ):
                    return at
                header_at = at + size + _AROUND_BYTES
                kind, header_channel, size, _, body_size = _HEADER_FRAME(
                    data, header_at
                )
                stop = body_at = header_at + size + _AROUND_BYTES
                if kind != _HEADER or header_channel != channel:
                    return at
                if body_size:
                    kind, body_channel, size = _FRAME(data, body_at)
                    stop = body_at + size + _AROUND_BYTES
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
                    )
                )
                at = stop
        except struct_error:  # the chunk ends within a head
            return at
        return at

    def _continue(
        self, data: bytes, kind: int, channel: int, at: int, stop: int
    ) -> None:
        """Add a header or body frame to what is unfinished; hand it over when complete."""
        unfinished = self._unfinished[channel]
        if kind == _HEADER:
            unfinished.missing = _HEADER_FRAME(data, at)[4]
            unfinished.delivery.raw_properties = data[
                at + _HEADER_HEAD_BYTES : stop - 1
            ]
        elif unfinished.missing is not None:
            part = data[at + _FRAME_HEAD_BYTES : stop - 1]
            unfinished.parts.append(part)
            unfinished.missing -= len(part)
        if unfinished.missing is not None and unfinished.missing <= 0:
            del self._unfinished[channel]
            unfinished.delivery.body = b"".join(unfinished.parts)
            if channel != self._found_on:
                self._turn_to(channel)
            self._found.append(unfinished.delivery)


class ReturnReader(FrameReader):
    """
    Takes returns out, for a connection that publishes and never consumes or gets.

    A return brings the properties back that were sent. Those of a dead letter are a
    stranger's, and decoding them may kill the connection, so all content is dropped
    here, where nothing is decoded. `on_return` is given channel, code and text.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(now=now)
        self.on_return: Returned | None = None

    def _take(self, data: bytes, kind: int, channel: int, at: int, stop: int) -> int:
        if kind in (_HEADER, _BODY):
            return stop
        if kind != _METHOD or data[at + 7 : at + 11] != _RETURN_BYTES:
            return at
        code = int.from_bytes(data[at + 11 : at + 13], "big")
        text = data[at + 14 : at + 14 + data[at + 13]].decode(errors="replace")
        if self.on_return is not None:
            self.on_return(channel, code, text)
        return stop


_RETURN_BYTES: Final = _BASIC_RETURN.to_bytes(4, "big")


def _parse_deliver(data: bytes, at: int) -> Delivery:
    """Read the method frame at `at`, all of which is there; the content is to come."""
    envelope_at = at + 12 + data[at + 11]
    tag, redelivered, length = _ENVELOPE(data, envelope_at)
    exchange_at = envelope_at + 10
    key_at = exchange_at + length + 1
    return Delivery(
        tag=tag,
        redelivered=redelivered != 0,
        exchange=data[exchange_at : key_at - 1],
        routing_key=data[key_at : key_at + data[key_at - 1]],
        raw_properties=b"",
        body=b"",
    )
