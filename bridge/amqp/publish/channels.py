"""
The channels of one publishing connection. All but one have at most one publish in flight.

The difficulty is to match returns with publishes. The broker answers an unroutable message
with Basic.Return and then with an ordinary confirm, and a return carries no number. aiormq
finds the publish by its `message_id`, which producers choose and may use twice, and the
broker may render properties differently. So a return belongs to the one publish that is in
flight on its channel, whatever its bytes; concurrent publishes use several channels. The
channel of a publish that timed out is not used again before the broker has confirmed it.

One channel is for publishes that must keep their order, several at a time. A return there counts
for all that are in flight: some may be published twice then, none is lost.
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

# How many publishes may be in flight concurrently.
CHANNELS_MAX: Final = 32
# Frame header, class, weight, body size and frame end: the rest of a content header frame.
_AROUND_PROPERTIES_BYTES: Final = 20


class RawProperties(Basic.Properties):
    """
    Properties that are sent byte by byte as given.

    aiormq finds returns by `message_id` and draws a random one if it is missing. The constant
    one is never sent, and the reader takes the returns before aiormq sees them.
    """

    def __init__(self, raw: bytes) -> None:
        super().__init__(message_id="-")
        self._raw = raw

    def marshal(self) -> bytes:
        """Return the raw bytes."""
        return self._raw


@dataclass(slots=True)
class PublishChannel:
    """
    A channel.

    Attributes:
        wire: The channel of the library.
        returned: The text of the return for a publish in flight, if there was one.
        users: Publishes in flight, or confirmed while their tasks have not run since.

    """

    wire: aiormq.Channel
    returned: str | None = None
    users: int = 0

    @property
    def is_confirmed(self) -> bool:
        """Whether the broker has confirmed everything that was sent on the channel."""
        return not self.wire.confirmations


class ChannelPool:
    """
    The publishing channels of one connection.

    Attributes:
        has_closed: Set when the connection closes.

    """

    def __init__(self, connection: BrokerConnection[ReturnReader]) -> None:
        self._connection = connection
        self._wire = connection.wire
        self._channels: dict[int, PublishChannel] = {}
        self._idle: list[
            PublishChannel
        ] = []  # unconfirmed after a publish that timed out
        self._ordered: PublishChannel | None = None
        self._opening_ordered = asyncio.Lock()
        self.has_closed = asyncio.Event()
        connection.reader.subscribe(self._on_return)
        self._wire.closing.add_done_callback(lambda _: self.has_closed.set())

    @property
    def max_properties_bytes(self) -> int:
        """The size of the largest properties that fit into one frame."""
        frame_max: int = self._wire.connection_tune.frame_max or 0
        if not frame_max:  # no limit
            return PROPERTIES_MAX_BYTES
        return min(frame_max - _AROUND_PROPERTIES_BYTES, PROPERTIES_MAX_BYTES)

    def check_size(self, exchange: str, raw_properties: bytes) -> None:
        """Refuse properties above one frame, for which the broker closes the connection."""
        if len(raw_properties) > self.max_properties_bytes:
            problem = (
                f"the properties have {len(raw_properties)} bytes, "
                f"one frame holds {self.max_properties_bytes}"
            )
            raise PublishRefusedError(exchange, problem)

    def problem(self) -> str | None:
        """Return the problem that makes the connection unusable; ``None`` if there is none."""
        if not self._wire.is_opened:
            return "the connection was lost"
        # The number of idle channels alone is enough to know that all is well.
        if (
            len(self._idle)
            > CHANNELS_MAX
            < sum(not channel.is_confirmed for channel in self._idle)
        ):
            return "the broker leaves too many publishes unconfirmed"
        return None

    @property
    def blocked_for(self) -> str | None:
        """The reason while the broker blocks the connection; ``None`` if it does not."""
        return self._connection.reader.blocked_for

    async def ready(self) -> None:
        """Wait while the broker blocks the connection (memory or disk alarm)."""
        # A message sent now would wait in the socket. The broker would store it after the
        # alarm, long after the call has failed.
        await self._wire.ready()

    @asynccontextmanager
    async def channel(self, *, in_order: bool) -> AsyncIterator[PublishChannel]:
        """Lend out a channel: the one for publishes in order, or one with none in flight."""
        if in_order:
            channel = await self._ordered_channel()
        else:
            channel = self._take_free() or await self._open()
        channel.users += 1
        try:
            yield channel
        finally:
            channel.users -= 1
            # Not earlier: each of its publishes must see a return.
            if channel is not self._ordered and not channel.users:
                self._idle.append(channel)

    async def _ordered_channel(self) -> PublishChannel:
        async with self._opening_ordered:
            channel = self._ordered
            if channel is None or channel.wire.is_closed or channel.returned:
                channel = self._take_free() or await self._open()
                if self._ordered is not None and not self._ordered.users:
                    self._idle.append(self._ordered)
                self._ordered = channel
            return channel

    def _take_free(self) -> PublishChannel | None:
        """Return an open channel whose publishes are all confirmed, the last used first."""
        for channel in [one for one in self._idle if one.wire.is_closed]:
            self._idle.remove(channel)
            # A newer channel may have got the same number.
            if self._channels.get(channel.wire.number) is channel:
                del self._channels[channel.wire.number]
        for channel in reversed(self._idle):
            if channel.is_confirmed:
                self._idle.remove(channel)
                channel.returned = None
                return channel
        return None

    async def _open(self) -> PublishChannel:
        opened = await self._connection.open_channel(confirms=True)
        channel = self._channels[opened.number] = PublishChannel(opened)
        return channel

    def _on_return(self, channel_number: int, code: int, text: str) -> None:
        channel = self._channels.get(channel_number)
        if channel is not None:
            channel.returned = f"returned by the broker ({code} {text})"
