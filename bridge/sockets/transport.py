"""
One connection to a page, underneath socket.io: what is written, in what order, how much.

Over python-engineio's socket, because its own keeps an unbounded queue for each client
and a writer task that hangs for ever when the client stops reading (traps 1.2, row 3).
Here a websocket has no queue of ours at all: packets are written straight to the TCP
transport, in the order in which they are sent, and what waits there is counted. Long
polling has a queue, and the queue is counted.

A `Carrier` is one connection. It does not know users, rooms or inboxes.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from aiohttp import ClientConnectionResetError, WSMessage, WSMsgType, web
from engineio import packet as engine
from engineio.async_socket import AsyncSocket
from engineio.exceptions import QueueEmpty, UnknownPacketError

from bridge.core.frames import Burst, text_frame
from bridge.core.rate import Allowance
from bridge.sockets.polling import PollQueue, probe, read_packets

if TYPE_CHECKING:
    from bridge.sockets.engine import EngineServer

# How long a connection that was told to go may take to read its last bytes.
_LAST_WORDS_S: Final = 2.0


class Carrier(AsyncSocket):  # type: ignore[misc] # engineio has no types
    """
    One engine.io session: a websocket, long polling, or the second becoming the first.

    Attributes:
        sid: Engine.io's session id: whoever knows it can poll the session.
        address: Where the page is, as far as it can be believed.
        is_origin_allowed: Whether pages of this origin may connect; if not, the session
            lives just long enough to be told so.

    """

    server: "EngineServer"

    def __init__(
        self,
        server: "EngineServer",
        sid: str,
        *,
        request: web.BaseRequest,
        address: str,
        is_origin_allowed: bool,
    ) -> None:
        # Not super().__init__: it makes an unbounded asyncio queue for each client.
        self.server = server
        self.sid = sid
        self.request = request
        self.address = address
        self.is_origin_allowed = is_origin_allowed
        self.connected = False
        self.upgrading = False
        self.upgraded = False
        self.closing = False
        self.closed = False
        self.opened_s = monotonic()
        self.closed_s = self.opened_s
        self.ping_due_s = self.opened_s + server.ping_interval
        self.pong_due_s: float | None = None
        self._allowance = Allowance(
            server.bounds.events_per_second,
            2 * server.bounds.events_per_second,
            self.opened_s,
        )
        self._answers = 0  # messages that were written and may be answered
        self._websocket: web.WebSocketResponse | None = None
        self._transport: asyncio.Transport | None = None
        self._queue = PollQueue()
        self._is_posting = False
        self.on_written: Callable[[int], None] | None = None

    # --- out

    @property
    def transport_name(self) -> str:
        """`websocket` or `polling`, as it is now."""
        return "polling" if self._transport is None else "websocket"

    @property
    def is_written_at_once(self) -> bool:
        """Whether what is sent goes straight to the page, not into a queue."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def waiting_bytes(self) -> int:
        """Bytes that were sent to this page and that it has not read yet."""
        if self._transport is None:
            return self._queue.waiting_bytes
        return self._transport.get_write_buffer_size()

    def write_burst(self, burst: Burst) -> bool:
        """
        Send messages at once, whatever transport there is: all of them or none.

        Returns:
            False if more would wait for this page than it may: nothing was sent.

        """
        transport = self._transport
        waiting_bytes = self.waiting_bytes + len(burst.frames)
        if waiting_bytes > self.server.bounds.outbound_bytes:
            return False
        self._answers += len(burst.packets)
        if transport is None:
            for offset, packet in burst.packets:
                self._queue.put(packet.decode(), offset)
        elif not transport.is_closing():  # else it is on its way out already
            transport.write(burst.frames)
        return True

    def write_packet(self, packet: str) -> None:
        """Send one engine.io packet of the bridge's own, at once."""
        if self._transport is None:
            self._queue.put(packet, 0)
        elif not self._transport.is_closing():
            self._transport.write(text_frame(packet.encode()))

    async def write_patiently(
        self, payload: bytes, offset: int, *, limit_s: float
    ) -> bool:
        """
        Send one packet and wait while the page has much to read.

        Returns:
            False if the page is gone, or read nothing for `limit_s`.

        """
        self._answers += 1
        try:
            async with asyncio.timeout(limit_s):
                if self._websocket is not None:
                    await self._websocket.send_frame(payload, WSMsgType.TEXT)
                else:
                    await self._enqueue_patiently(payload, offset)
        except (TimeoutError, ClientConnectionResetError, RuntimeError):
            return False
        return not self.closed

    async def send(self, pkt: engine.Packet) -> None:
        """Send a packet that engine.io itself made."""
        self.write_packet(pkt.encode())

    async def _enqueue_patiently(self, payload: bytes, offset: int) -> None:
        bound = self.server.bounds.outbound_bytes // 4
        while (
            self._websocket is None
            and not self.closed
            and self._queue.waiting_bytes > bound
        ):
            await self._queue.room()
        if self._websocket is not None:  # upgraded meanwhile
            await self._websocket.send_frame(payload, WSMsgType.TEXT)
        else:
            self._queue.put(payload.decode(), offset)

    # --- long polling

    async def poll(self, request: web.BaseRequest) -> list[str]:
        """
        Return what waits, at once or as soon as something does.

        Raises:
            QueueEmpty: If the session ended, the page is gone, or nothing came for as
                long as a page waits: pings come more often than that.

        """
        patience_s = self.server.ping_interval + self.server.ping_timeout
        fetched = await self._queue.fetch(request, within_s=patience_s)
        if fetched is None:
            self.end(self.server.reason.TRANSPORT_ERROR)
        if not fetched:
            raise QueueEmpty
        offset = max(offset for _, offset in fetched)
        if offset and self.on_written:
            self.on_written(offset)
        return [packet for packet, _ in fetched]

    async def handle_get_request(self, environ: dict[str, Any]) -> Any:  # noqa: ANN401 - engineio's
        """Answer a poll, or turn into a websocket if that is what is asked for."""
        request = environ["aiohttp.request"]
        if request.headers.get("Upgrade", "").lower() == "websocket":
            if self.closed or self.upgrading:
                raise UnknownPacketError  # one websocket at a time, or none is counted
            return await self._serve_websocket(request)
        if self.upgrading or self.upgraded:
            # What waits now belongs to the websocket.
            return ["6"]
        return await self.poll(request)

    async def handle_post_request(self, environ: dict[str, Any]) -> None:
        """
        Take the packets of a polling page.

        Raises:
            UnknownPacketError: If they cannot be read, or came together with others: a
                page posts once at a time.

        """
        is_taken = not self._is_posting and await self._take_post(
            environ["aiohttp.request"]
        )
        if not is_taken:
            self.end(self.server.reason.TRANSPORT_ERROR)
            # Engineio answers 400, but stumbles if the session is forgotten already.
            if self.sid in self.server.sockets:
                raise UnknownPacketError

    async def _take_post(self, request: web.BaseRequest) -> bool:
        self._is_posting = True
        try:
            packets = await read_packets(
                request,
                max_bytes=self.server.max_http_buffer_size,
                within_s=self.server.bounds.connect_s,
            )
            for packet in packets or ():
                await self.take(packet)
        finally:
            self._is_posting = False
        return packets is not None

    # --- websocket

    async def _serve_websocket(self, request: web.Request) -> web.StreamResponse:
        """Live as a websocket until the page or the bridge ends it."""
        websocket = web.WebSocketResponse(
            max_msg_size=self.server.max_http_buffer_size,
            compress=False,  # 115 kB a connection otherwise (traps 1.2, row 17)
            timeout=_LAST_WORDS_S,
            autoping=False,  # its pongs would be free of the allowance
        )
        await websocket.prepare(request)
        if self.connected and not await self._probe(websocket):
            await websocket.close()
            return websocket
        self._take_over(websocket, request)
        try:
            with suppress(ClientConnectionResetError):  # by a pong to who is gone
                async for message in websocket:
                    await self._take_frame(websocket, message)
        finally:
            self.end(self.server.reason.TRANSPORT_CLOSE)
        return websocket

    async def _take_frame(
        self, websocket: web.WebSocketResponse, message: WSMessage
    ) -> None:
        if message.type is WSMsgType.TEXT:
            await self.take(message.data)
        elif self._may_send():
            if message.type is WSMsgType.PING:
                await websocket.pong(message.data)
            else:
                self.server.ignore()

    async def _probe(self, websocket: web.WebSocketResponse) -> bool:
        self.upgrading = True
        try:
            is_done = await probe(
                websocket,
                end_poll=lambda: self._queue.put("6", 0),
                within_s=self.server.bounds.connect_s,
            )
        finally:
            self.upgrading = False
        return is_done and not self.closed

    def _take_over(
        self, websocket: web.WebSocketResponse, request: web.Request
    ) -> None:
        """From here on everything goes over the websocket; first what waited."""
        self.connected = True
        self.upgraded = True
        self._websocket = websocket
        self._transport = transport = request.transport
        if transport is None:
            return  # it is gone
        for packet, offset in self._queue.take_all():
            if packet != "6":
                transport.write(text_frame(packet.encode()))
                if offset and self.on_written:
                    self.on_written(offset)

    # --- in

    async def take(self, packet: str) -> None:
        """Do what a packet from the page asks for; what makes no sense ends the session."""
        if not self._may_send():
            return
        kind = packet[:1]
        if kind == "3":
            self.pong_due_s = None
        elif kind == "4":
            await self.server.message(self, packet[1:])
        elif kind == "1":
            self.end(self.server.reason.CLIENT_DISCONNECT)
        else:
            self.server.ignore()
            self.end(self.server.reason.TRANSPORT_ERROR)

    def _may_send(self) -> bool:
        """Count one thing from the page; false if it is closed, or is closed for this."""
        if self._answers:
            # A page may answer each message that it is sent, a replay of a thousand
            # too: nobody is closed for acks that were asked for.
            self._answers -= 1
        elif not self.closed and not self._allowance.take(monotonic()):
            self.server.flooded(self)
        return not self.closed

    # --- time and the end

    def tick(self, now_s: float) -> None:
        """Ping when it is time, and end the session of a page that does not answer."""
        if self.pong_due_s is not None:
            if now_s >= self.pong_due_s:
                self.end(self.server.reason.PING_TIMEOUT, abort=True)
        elif now_s >= self.ping_due_s and self.connected:
            self.ping_due_s = now_s + self.server.ping_interval
            self.pong_due_s = now_s + self.server.ping_timeout
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
        self.closing = self.closed = True
        self.closed_s = monotonic()
        self._queue.close()
        self.server.ended(self, reason)
        transport = self._transport
        if transport is None:
            return  # a poll may still fetch the last words; `tick` drops the rest
        if abort:
            transport.abort()
            return
        if not transport.is_closing():
            transport.write(
                b"\x88\x00"
            )  # websocket close frame, RFC 6455 section 5.5.1
            transport.close()
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, transport.abort)

    async def close(self, *_: object, **options: Any) -> None:  # noqa: ANN401 - engineio's
        """End the session, as engine.io asks for it. It never waits for the page."""
        self.end(
            options.get("reason") or self.server.reason.SERVER_DISCONNECT,
            abort=bool(options.get("abort")),
        )
