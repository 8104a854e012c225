"""
One connection to a page, underneath socket.io: what is written, in what order, how much.

One session of engine.io: packets over long polling, a websocket, or the first becoming
the second. A websocket has no queue of ours at all: packets are written straight to the
TCP transport, in the order in which they are sent, and what waits there is counted. Long
polling has a queue, and the queue is counted.

A `Carrier` is one connection. It does not know users, rooms or inboxes. There is one for
each idle page, so it holds little, and nothing that most pages do not need.
"""

import asyncio
from collections.abc import Coroutine
from enum import StrEnum
from time import monotonic
from typing import TYPE_CHECKING, Any

from aiohttp import web

from bridge.core.frames import EncodedMessages, text_frame
from bridge.core.rate_limit import TokenBucket
from bridge.core.websocket import close_frame
from bridge.sockets.engineio.caller import Caller
from bridge.sockets.engineio.polling import PollQueue, Probe, read_packets
from bridge.sockets.engineio.websocket import Wire

if TYPE_CHECKING:
    from bridge.core.identity import ConnectOptions
    from bridge.sockets.engineio.server import Engine
    from bridge.sockets.window import Window


class Ending(StrEnum):
    """Why a session ended, for the log."""

    CLIENT_DISCONNECT = "the page left"
    SERVER_DISCONNECT = "the bridge closed it"
    PING_TIMEOUT = "the page does not answer"
    TRANSPORT_CLOSE = "the connection was closed"
    TRANSPORT_ERROR = "the page sent what makes no sense"


class Carrier:
    """
    One engine.io session: a websocket, long polling, or the second becoming the first.

    Attributes:
        sid: Engine.io's session id: whoever knows it can poll the session.
        address: Where the page is.
        caller: Who it says it is, until it was let in.
        auth: What it passed in CONNECT, when it was let in.
        window: The window that it became.
        closed: Whether it has ended. Nothing is written after that.

    """

    __slots__ = (
        "__weakref__",
        "_allowance",
        "_answers",
        "_is_posting",
        "_outbound_bytes",
        "_probe",
        "_queue",
        "_wire",
        "address",
        "auth",
        "caller",
        "closed",
        "closed_s",
        "engine",
        "opened_s",
        "ping_due_s",
        "pong_due_s",
        "sid",
        "window",
    )

    def __init__(self, engine: "Engine", sid: str, caller: Caller) -> None:
        self.engine = engine
        self.sid = sid
        self.address = caller.address
        self.caller: Caller | None = caller
        self.auth: ConnectOptions | None = None
        self.window: Window | None = None
        self.closed = False
        self.opened_s = self.closed_s = monotonic()
        self.ping_due_s = self.opened_s + engine.ping_interval_s
        self.pong_due_s: float | None = None
        per_second = engine.bounds.events_per_second
        self._allowance = TokenBucket(per_second, 2 * per_second, self.opened_s)
        self._answers = 0  # messages that were written and may be answered
        self._outbound_bytes = 0  # what may wait, while one message alone is more
        self._wire: Wire | None = None
        self._queue: PollQueue | None = None
        self._probe: Probe | None = None
        self._is_posting = False

    # --- out

    @property
    def transport_name(self) -> str:
        """`websocket` or `polling`, as it is now."""
        return "polling" if self._wire is None else "websocket"

    @property
    def transport(self) -> asyncio.Transport | None:
        """Where frames may be written at once, past this; ``None`` = nowhere (now)."""
        return None if self._wire is None or self.closed else self._wire.transport

    @property
    def waiting_bytes(self) -> int:
        """Bytes that were sent to this page and that it has not read yet."""
        if self._wire is not None:
            return self._wire.transport.get_write_buffer_size()
        return 0 if self._queue is None else self._queue.waiting_bytes

    @property
    def has_too_much(self) -> bool:
        """Whether more waits for the page than may, whatever it was sent for."""
        waiting_bytes = self.waiting_bytes
        outbound_bytes = self.engine.bounds.outbound_bytes
        if waiting_bytes <= outbound_bytes:
            self._outbound_bytes = 0
            return False
        return waiting_bytes > max(outbound_bytes, self._outbound_bytes)

    def write_burst(self, burst: EncodedMessages) -> bool:
        """
        Send messages at once, whatever transport there is: all of them or none.

        Returns:
            False if more would wait for this page than it may: nothing was sent.

        """
        frames = burst.frames
        wire = self._wire
        if wire is not None:
            transport = wire.transport
            waiting_bytes = transport.get_write_buffer_size()
            if waiting_bytes + len(frames) > self.engine.bounds.outbound_bytes:
                return False
            if not self.closed:
                transport.write(frames)
        elif self.waiting_bytes + len(frames) > self.engine.bounds.outbound_bytes:
            return False
        else:
            for offset, packet in burst.packets:
                self._enqueue(packet.decode(), offset)
        self._answers += len(burst.packets)
        return True

    def expect_answers(self, number: int) -> None:
        """Let the page answer so many messages, that were written past this."""
        self._answers += number

    def write_packet(self, packet: str) -> None:
        """Send one engine.io packet of the bridge's own, at once."""
        if self.closed:
            return
        if self._wire is not None:
            self._wire.transport.write(text_frame(packet.encode()))
        else:
            self._enqueue(packet, 0)

    async def write_patiently(
        self, payload: bytes, offset: int, *, limit_s: float
    ) -> bool:
        """
        Send one packet when the page has read most of what was sent before.

        Returns:
            False if the page is gone, or read nothing for `limit_s`.

        """
        while self._is_full and not self.closed:
            waiting_bytes = self.waiting_bytes
            try:
                async with asyncio.timeout(limit_s):
                    await self._room()
            except TimeoutError:
                if self.waiting_bytes >= waiting_bytes:
                    return False
        if self.closed:
            return False
        self._answers += 1
        # One message may be larger than what may wait. It is let through alone.
        self._outbound_bytes = self.engine.bounds.outbound_bytes + len(payload)
        if self._wire is not None:
            self._wire.transport.write(text_frame(payload))
        else:
            self._enqueue(payload.decode(), offset)
        return True

    @property
    def _is_full(self) -> bool:
        if self._wire is not None:
            return self._wire.is_full
        return self.waiting_bytes > self.engine.bounds.outbound_bytes // 4

    async def _room(self) -> None:
        if self._wire is not None:
            await self._wire.room()
        elif self._queue is not None:
            await self._queue.room()

    def _enqueue(self, packet: str, offset: int) -> None:
        if self._queue is None:
            self._queue = PollQueue()
        self._queue.put(packet, offset)

    # --- long polling

    async def poll(self, request: web.BaseRequest) -> list[str]:
        """
        Return what waits, at once or as soon as something does.

        Returns:
            Nothing if the session is over, also because the page is gone, or nothing
            came for as long as a page waits: pings come more often than that.

        """
        if self._wire is not None or (self._probe and self._probe.is_answered):
            return ["6"]  # what waits now belongs to the websocket
        if self._queue is None:
            if self.closed:
                return []
            self._queue = PollQueue()
        patience_s = self.engine.ping_interval_s + self.engine.ping_timeout_s
        fetched = await self._queue.fetch(request, within_s=patience_s)
        if not fetched and self.transport_name == "websocket":
            return ["6"]  # it went over meanwhile
        if not fetched:  # it polls twice, has hung up, or does not answer pings
            self.end(Ending.TRANSPORT_CLOSE)
            return []
        self._was_fetched(max(offset for _, offset in fetched))
        return [packet for packet, _ in fetched]

    def _was_fetched(self, offset: int) -> None:
        """A polling page took its messages with it."""
        if offset and self.window is not None:
            self.engine.owner.fetched(self.window, offset)

    async def post(self, request: web.BaseRequest) -> bool:
        """
        Take the packets of a polling page.

        Returns:
            False if they cannot be read, or came together with others: a page posts
            once at a time. The session is over then.

        """
        is_taken = not self._is_posting and await self._take_post(request)
        if not is_taken:
            self.end(Ending.TRANSPORT_ERROR)
        return is_taken

    async def _take_post(self, request: web.BaseRequest) -> bool:
        self._is_posting = True
        try:
            packets = await read_packets(
                request,
                max_bytes=self.engine.max_event_bytes,
                within_s=self.engine.bounds.connect_s,
            )
            for packet in packets or ():
                work = self._take(packet)
                if work is not None:
                    await work
        finally:
            self._is_posting = False
        return packets is not None

    # --- websocket

    @property
    def is_upgrading(self) -> bool:
        """Whether a page that polls has begun to go over to a websocket."""
        return self._probe is not None

    def open(self, wire: Wire) -> None:
        """Live over `wire`, from the first packet on."""
        self._wire = wire
        wire.limit(self.engine.bounds.outbound_bytes)

    def probe(self) -> Probe:
        """Begin to go over from polling to a websocket, by way of what is returned."""
        self._probe = Probe(
            end_poll=lambda: self._enqueue("6", 0),
            done=self._probed,
            within_s=self.engine.bounds.connect_s,
        )
        return self._probe

    def _probed(self, wire: Wire | None) -> None:
        self._probe = None
        if wire is None:
            return
        if not self.closed:
            wire.listener = self
            self.open(wire)
        queue, self._queue = self._queue, None
        offset = 0
        # From here on everything goes over the websocket; first what waited.
        for packet, at in queue.take_all() if queue else ():
            if packet != "6":
                wire.transport.write(text_frame(packet.encode()))
                offset = max(offset, at)
        if self.closed:
            wire.close(close_frame())  # those were its last words
        if queue is not None:
            queue.close()  # nobody waits there any more
        self._was_fetched(offset)

    # --- in

    def hear(self, text: str) -> None:
        """Take a packet that came over the websocket."""
        work = self._take(text)
        if work is not None and self._wire is not None:
            self._wire.hold()
            self.engine.owner.spawn(self._finish(work), name="request")

    async def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        await work
        if self._wire is not None:
            self._wire.release()

    def _take(self, packet: str) -> Coroutine[Any, Any, None] | None:
        """Do what a packet asks for; what makes no sense ends the session."""
        if not self.may_send():
            return None
        kind = packet[:1]
        if kind == "3":
            self.pong_due_s = None
        elif kind == "4":
            return self.engine.owner.take(self, packet[1:])
        elif kind == "1":
            self.end(Ending.CLIENT_DISCONNECT)
        else:
            self.ignore()
            self.end(Ending.TRANSPORT_ERROR)
        return None

    def may_send(self) -> bool:
        """Count one thing from the page; false if it is closed, or is closed for this."""
        if not self._answers and self.window is not None:
            self._answers = self.window.take_written()
        if self._answers:
            # A page may answer each message that it is sent, a replay of a thousand
            # too: nobody is closed for acks that were asked for.
            self._answers -= 1
        elif not self.closed and not self._allowance.take(monotonic()):
            self.engine.owner.flooded(self)
        return not self.closed

    def ignore(self) -> None:
        """Count something that means nothing."""
        self.engine.owner.ignore()

    def hung_up(self) -> None:
        """End with the connection."""
        self.end(Ending.TRANSPORT_CLOSE)

    # --- time and the end

    def tick(self, now_s: float) -> None:
        """Ping when it is time, and end the session of a page that does not answer."""
        if self.pong_due_s is not None:
            if now_s >= self.pong_due_s:
                self.end(Ending.PING_TIMEOUT, abort=True)
        elif now_s >= self.ping_due_s:
            self.ping_due_s = now_s + self.engine.ping_interval_s
            self.pong_due_s = now_s + self.engine.ping_timeout_s
            self.write_packet("2")

    def end(self, reason: str, *, abort: bool = False) -> None:
        """
        End the session; nothing is written after this. May be called again.

        What was written before still goes out, for a moment, unless `abort`: then the
        connection is cut at once, because a page that does not read would keep it and
        what waits in it for ever.
        """
        if self.closed:
            return
        self.closed = True
        self.closed_s = monotonic()
        self.engine.ended(self, reason)
        if self._queue is not None:
            self._queue.close()  # a poll may still fetch the last words
        # A probe goes on to its end: the stock client, which pauses its polling then,
        # would not notice that the websocket is closed in the middle of it.
        if self._wire is None:
            return
        if abort:
            self._wire.abort()
        else:
            self._wire.close(close_frame())
