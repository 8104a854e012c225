"""
Long polling: what waits for a page, what it posts, and how it goes over to a websocket.

The whole body is read, unlike in engineio (traps 1.2, row 9), within a bound and a
deadline (aiohttp has none for bodies, traps 1.3).
"""

import asyncio
from collections import deque
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import ClassVar, Final
from weakref import WeakValueDictionary

from aiohttp import web

from bridge.core.frames import text_frame
from bridge.core.websocket import close_frame
from bridge.sockets.engineio.websocket import LAST_WORDS_S, Wire

# Engine.io joins the packets of one body with this character.
_SEPARATOR: Final = "\x1e"
# The Python client gives up on an answer with more (its Payload.max_decode_packets).
_PACKETS_A_POLL: Final = 16


class PollQueue:
    """Packets that wait for a polling page, in order and counted, each with its offset."""

    # Whose answer went last over a connection: a proxy keeps its connections, and sends
    # over each what any page asks. An entry goes with its queue at the latest.
    _answers: ClassVar[MutableMapping[asyncio.Transport, "PollQueue"]] = (
        WeakValueDictionary()
    )

    def __init__(self) -> None:
        self._packets: deque[tuple[str, int]] = deque()
        self._packets_bytes = 0
        self._changed = asyncio.Event()  # something to fetch, or the end
        self._emptied = asyncio.Event()  # something was fetched or read, or the end
        self._is_polled = False
        self._is_closed = False
        self._answered: asyncio.Transport | None = None  # where the last answer went

    @property
    def waiting_bytes(self) -> int:
        """What the page has not read yet, in the queue or in an answer on its way."""
        return self._packets_bytes + self._unread_bytes

    @property
    def _unread_bytes(self) -> int:
        # Where another page was answered since, this one had read its own before.
        if self._answered is None or self._answers.get(self._answered) is not self:
            return 0
        return self._answered.get_write_buffer_size()

    def put(self, packet: str, offset: int) -> None:
        """Add a packet; after `close` it is dropped."""
        if not self._is_closed:
            self._packets.append((packet, offset))
            self._packets_bytes += len(packet)
            self._changed.set()

    async def room(self) -> None:
        """Wait until something was fetched or read, or the end."""
        self._emptied.clear()
        await self._emptied.wait()

    def take_all(self) -> list[tuple[str, int]]:
        """Take what waits out of the queue, for a websocket."""
        taken = list(self._packets)
        self._packets.clear()
        self._packets_bytes = 0
        self._emptied.set()
        return taken

    async def fetch(
        self, request: web.BaseRequest, *, within_s: float
    ) -> list[tuple[str, int]] | None:
        """
        Take what `request` is answered with, at once or as soon as there is something.

        Returns:
            Nothing if the queue was closed, the page has hung up, or `within_s` is over;
            `None` if the page polls although it has not read its last answer: two polls
            at a time would tear messages apart, and unread answers are memory.

        """
        if self._is_polled or self._unread_bytes:
            return None
        self._emptied.set()  # the last answer was read: that makes room as well
        if not self._packets and not self._is_closed:
            self._changed.clear()
            self._is_polled = True
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(within_s):
                        await self._changed.wait()
            finally:
                self._is_polled = False
        # What a page that has hung up were given would count as delivered.
        if request.transport is None:
            return []
        self._answer_over(request.transport)
        if self._is_closed:
            # The last words come all at once: there is no other poll.
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self.cut)
            return self.take_all()
        count = min(_PACKETS_A_POLL, len(self._packets))
        taken = [self._packets.popleft() for _ in range(count)]
        self._packets_bytes -= sum(len(packet) for packet, _ in taken)
        self._emptied.set()
        return taken

    def _answer_over(self, connection: asyncio.Transport) -> None:
        if self._answered is not None and self._answers.get(self._answered) is self:
            del self._answers[self._answered]
        self._answered = connection
        self._answers[connection] = self

    def close(self) -> None:
        """Take no more, and let nobody wait."""
        self._is_closed = True
        self._changed.set()
        self._emptied.set()
        if self._unread_bytes:
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self.cut)

    def cut(self) -> None:
        """Cut the connection of an answer that the page does not read."""
        if self._answered is not None and self._unread_bytes:
            self._answered.abort()


async def read_packets(
    request: web.BaseRequest, *, max_bytes: int, within_s: float
) -> list[str] | None:
    """
    Return the packets in the body of `request`.

    Returns:
        `None` if the body is too large, comes too slowly or not at all, or is no text.

    """
    body = await read_body(request, max_bytes=max_bytes, within_s=within_s)
    try:
        return None if body is None else body.decode().split(_SEPARATOR)
    except UnicodeDecodeError:
        return None


async def read_body(
    request: web.BaseRequest, *, max_bytes: int, within_s: float
) -> bytes | None:
    """Return the body; ``None`` if it is too large, too slow, broken off or badly packed."""
    body = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    return None
    except (TimeoutError, ConnectionError, web.RequestPayloadError):
        return None
    return bytes(body)


class Probe:
    """
    Engine.io's handshake from polling to a websocket, as the wire's first listener.

    `end_poll` is called in the middle: the page goes over when its poll has returned.
    `done` is called once, with the wire if it is to be taken over.
    """

    __slots__ = ("_deadline", "_done", "_end_poll", "is_answered", "wire")

    def __init__(
        self,
        *,
        end_poll: Callable[[], None],
        done: Callable[[Wire | None], None],
        within_s: float,
    ) -> None:
        self.wire: Wire | None = None
        self._end_poll = end_poll
        self._done = done
        self.is_answered = False  # and the page ends its polling
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(within_s, self.hung_up)

    def hear(self, text: str) -> None:
        """Take the page's two words in turn; any other ends it."""
        wire = self.wire
        if text == "2probe" and not self.is_answered and wire is not None:
            self.is_answered = True
            wire.transport.write(text_frame(b"3probe"))
            self._end_poll()
        elif text == "5" and self.is_answered:
            self._deadline.cancel()
            self._done(wire)
        else:
            self.hung_up()

    def may_send(self) -> bool:
        """Take nothing but the two words."""
        self.hung_up()
        return False

    def ignore(self) -> None:
        """Never get here: see `may_send`."""

    def hung_up(self) -> None:
        """Give the websocket up; the page goes on polling."""
        self._deadline.cancel()
        if self.wire is not None:
            self.wire.close(close_frame())
            self.wire = None
        self._done(None)
