"""
The channels of one publishing connection: one publish in flight on each at a time.

Who got a return is the hard part. The broker answers an unroutable message with
Basic.Return and then with an ordinary confirm, and a return carries no number: aiormq
finds its publish by `message_id`, which producers choose and may use twice (traps 1.1
row 9), and the broker may write properties in its own way. So a return on a channel
belongs to the one publish that is in flight there, whatever its bytes; many at a time
take many channels. A publish that is given up leaves its channel aside until the broker
has answered.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiormq
from pamqp.commands import Basic

from bridge.amqp.connection import BrokerConnection
from bridge.amqp.frame_reader import ReturnReader
from bridge.core.settlement import PROPERTIES_MAX_BYTES
from bridge.errors import PublishRefusedError

# How many publishes can be in flight at a time.
CHANNELS_MAX: Final = 32
# Frame head and end, and class, weight and body size: what stands around properties.
_AROUND_PROPERTIES_BYTES: Final = 20


class RawProperties(Basic.Properties):
    """
    Property bytes that go out as they are.

    aiormq asks for a `message_id` to find returns by, and sets one where there is none;
    here it is never sent, and returns never get as far as aiormq.
    """

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self._raw = raw

    def marshal(self) -> bytes:
        """Return the bytes that the class was made for."""
        return self._raw


@dataclass(slots=True)
class Slot:
    """A channel, and the return of its publish in flight, if one came."""

    channel: aiormq.Channel
    returned: str | None = None

    @property
    def is_usable(self) -> bool:
        """Whether the broker has not closed it."""
        return not self.channel.is_closed

    @property
    def is_answered(self) -> bool:
        """Whether the broker has confirmed all that was ever sent on the channel."""
        return not self.channel.confirmations


class PublishSession:
    """The channels of one connection."""

    def __init__(self, connection: BrokerConnection[ReturnReader]) -> None:
        self._connection = connection
        self._wire = connection.wire
        self._slots: dict[int, Slot] = {}
        self._free: list[Slot] = []
        self._given_up: list[Slot] = []
        self.look = asyncio.Event()
        self.needs_repair = False
        connection.reader.subscribe(self._on_return)
        self._wire.closing.add_done_callback(lambda _: self.look.set())

    @property
    def max_properties_bytes(self) -> int:
        """The largest properties that fit into one frame."""
        frame_max: int = self._wire.connection_tune.frame_max or 0
        if not frame_max:  # no limit
            return PROPERTIES_MAX_BYTES
        return min(frame_max - _AROUND_PROPERTIES_BYTES, PROPERTIES_MAX_BYTES)

    def check_size(self, exchange: str, raw_properties: bytes) -> None:
        """Refuse what does not fit into one frame: the broker would close it all."""
        if len(raw_properties) > self.max_properties_bytes:
            problem = (
                f"the properties have {len(raw_properties)} bytes, "
                f"one frame holds {self.max_properties_bytes}"
            )
            raise PublishRefusedError(exchange, problem)

    def problem(self) -> str | None:
        """Say what is wrong with the connection, ``None`` if nothing is."""
        if not self._wire.is_opened:
            return "the connection was lost"
        if len(self._given_up) > CHANNELS_MAX:
            return "the broker leaves too many publishes unanswered"
        return None

    async def ready(self) -> None:
        """Wait while the broker has the connection blocked (memory or disk alarm)."""
        # Sent now, it would wait in the socket and be taken when the alarm is over,
        # long after we told that it failed.
        await self._wire.ready()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Hand out a channel on which nothing is in flight."""
        slot = self._take_free() or await self._open()
        try:
            yield slot
        finally:
            if slot.is_answered:
                self._give_back(slot)
            elif slot.is_usable:
                self._given_up.append(slot)
            else:
                self._forget(slot)

    def _take_free(self) -> Slot | None:
        for slot in [slot for slot in self._given_up if slot.is_answered]:
            self._given_up.remove(slot)
            self._give_back(slot)
        while self._free:
            slot = self._free.pop()
            if slot.is_usable:
                return slot
            self._forget(slot)
        return None

    def _give_back(self, slot: Slot) -> None:
        slot.returned = None
        if slot.is_usable:
            self._free.append(slot)
        else:
            self._forget(slot)

    def _forget(self, slot: Slot) -> None:
        self._slots.pop(slot.channel.number, None)

    async def _open(self) -> Slot:
        channel = await self._connection.open_channel(confirms=True)
        slot = self._slots[channel.number] = Slot(channel)
        return slot

    def _on_return(self, channel_number: int, code: int, text: str) -> None:
        slot = self._slots.get(channel_number)
        if slot is not None:
            slot.returned = f"returned by the broker ({code} {text})"
