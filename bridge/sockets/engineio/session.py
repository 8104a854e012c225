"""
An Engine.IO session: the connection of one client over long polling or a WebSocket.

A session over a WebSocket has no queue: packets are written straight to the TCP transport
in the order in which they are sent, and the bytes buffered there are counted. Long polling
has a queue whose bytes are counted. An upgrade replaces the one by the other.

A session knows bytes, limits and time. It knows no users, tokens or inboxes: these belong
to the layer above, which attaches its own state to the session. There is one session for
each idle window, so it holds as little as possible.
"""

import asyncio
from base64 import b64encode
from collections.abc import Coroutine
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from sys import intern
from time import monotonic
from typing import Any, Final, Literal, Protocol

import orjson
from aiohttp import web

from bridge.core.frames import EncodedMessages, short_binary_frame, text_frame
from bridge.core.rate_limit import TokenBucket
from bridge.core.websocket import close_frame
from bridge.enums import Closing
from bridge.metrics import Metrics
from bridge.sockets.engineio.handshake import OpeningRequest
from bridge.sockets.engineio.polling import NOOP, BodyError, PollQueue, read_packets
from bridge.sockets.engineio.upgrade import UpgradeHandshake
from bridge.sockets.engineio.websocket import WebSocketTransport

# How long a poll waits for packets while the client should end its polling. The stock
# client waits for the end of its poll before it completes an upgrade.
_UPGRADE_POLL_S: Final = 0.1
# A CONNECT contains a token, which may be longer than any event.
_CONNECT_MAX_BYTES: Final = 1 << 16
# Packet types that a client never sends and that change nothing: open, upgrade, noop.
_IGNORED_TYPES: Final = frozenset({"0", "5", NOOP})

# The rest of the processing of a packet; it never raises.
Work = Coroutine[Any, Any, None]


class CloseReason(StrEnum):
    """Why a session was closed, for the log."""

    CLIENT_DISCONNECT = "the client disconnected"
    SERVER_DISCONNECT = "the bridge closed it"
    PING_TIMEOUT = "the client did not answer a ping"
    TRANSPORT_CLOSE = "the connection was closed"
    TRANSPORT_ERROR = "the client sent an invalid packet"
    SECOND_POLL = "the client sent a second poll"


# What a pending poll returns when its session is closed with nothing else to say. For all
# other reasons it is refused: python-socketio takes a close packet as a wish of its user,
# and does not connect again.
_LAST_PACKETS: Final[dict[str, str]] = {
    CloseReason.CLIENT_DISCONNECT: NOOP,
    CloseReason.SECOND_POLL: "1",
}


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """
    What sessions may cost, and their timing.

    Attributes:
        outbound_bytes: Bytes that may wait for one client (BRIDGE_SLOW_CLIENT_BYTES).
        events_per_second: Packets that one client may send on average
            (BRIDGE_MAX_EVENTS_PER_SECOND).
        sessions_per_address: Concurrent sessions of one client address
            (BRIDGE_MAX_WINDOWS_PER_ADDRESS).
        connect_s: Time from the first byte of a client to its CONNECT packet
            (BRIDGE_CONNECT_TIMEOUT).
        ping_interval_s: Time between two pings.
        ping_timeout_s: Time for the pong.
        max_packet_bytes: Largest WebSocket message or polling body of a client that is
            connected (BRIDGE_MAX_EVENT_BYTES).

    """

    outbound_bytes: int
    events_per_second: int
    sessions_per_address: int
    connect_s: float
    ping_interval_s: int
    ping_timeout_s: int
    max_packet_bytes: int

    @property
    def max_connect_bytes(self) -> int:
        """The largest WebSocket message or polling body until a client is connected."""
        return max(self.max_packet_bytes, _CONNECT_MAX_BYTES)


class SessionHandler(Protocol):
    """The layer above Engine.IO. No method raises."""

    def is_suspended(self, address: str) -> bool:
        """Return whether an address may not open sessions now."""

    def message_received(self, session: "EngineSession", text: str) -> Work | None:
        """Process a message; a returned coroutine delays the client's next packet."""

    def binary_received(self, session: "EngineSession") -> None:
        """Process a binary message, whose content is dropped."""

    def take_expected_replies(self, session: "EngineSession") -> int:
        """Return how many messages that bypassed the session were written since asked."""

    def messages_received(self, session: "EngineSession", offset: int) -> None:
        """Process that the client has received the messages up to `offset`."""

    def ping_sent(self, session: "EngineSession") -> None:
        """Process that a ping was sent, after everything that was written before."""

    def pong_received(self, session: "EngineSession") -> None:
        """Process that the client has answered a ping, or sent a pong unasked."""

    def client_closing(self, session: "EngineSession") -> None:
        """Process that the client, not its network, ends the session; `close` follows."""

    def limit_exceeded(self, session: "EngineSession", code: Closing) -> None:
        """Close a session that exceeds a limit."""

    def session_checked(self, session: "EngineSession", real_s: float) -> None:
        """Check an open session at a real time; called about once a second."""

    def session_closed(self, session: "EngineSession", reason: str) -> None:
        """Process the end of a session."""


class SessionOwner(Protocol):
    """
    The server that a session belongs to.

    Attributes:
        limits: Replaced when the settings are reloaded; open sessions follow.
        is_running: Whether received messages are processed.

    """

    limits: SessionLimits
    handler: SessionHandler
    metrics: Metrics

    @property
    def is_running(self) -> bool:
        """Return false before the start and during shutdown."""

    def spawn(self, work: Work, *, name: str) -> None:
        """Run `work`, which never raises, as a task."""

    def spawn_in_turn(self, work: Work, *, name: str) -> None:
        """Run `work` as `spawn`, but begin only a few in each turn of the event loop."""

    def session_closed(self, session: "EngineSession", reason: str) -> None:
        """Forget a closed session."""


class EngineSession:
    """
    One Engine.IO session.

    Attributes:
        sid: The session id. It is a secret: it is all that a poll needs.
        address: The client's address.
        counted_as: The address or network to whose limits the session counts.
        request: The request that opened the session, until `attach`.
        client: The state of the layer above; ``None`` before `attach` and after `detach`.
        is_closed: Whether the session is closed; nothing is written after that.
        opened_s: Monotonic time.
        closed_s: Monotonic time.

    """

    __slots__ = (
        "__weakref__",
        "_bucket",
        "_expected_replies",
        "_is_posting",
        "_oversize_bytes",
        "_owner",
        "_post_timestamp",
        "_queue",
        "_upgrade",
        "_websocket",
        "address",
        "client",
        "closed_s",
        "counted_as",
        "is_closed",
        "opened_s",
        "ping_due_s",
        "pong_due_s",
        "request",
        "sid",
    )

    def __init__(self, owner: SessionOwner, sid: str, request: OpeningRequest) -> None:
        limits = owner.limits
        self._owner = owner
        self.sid = sid
        # All sessions of an address share one string.
        self.address = intern(request.address)
        self.counted_as = intern(request.counted_as)
        self.request: OpeningRequest | None = request
        self.client: object | None = None
        self.is_closed = False
        self.opened_s = self.closed_s = monotonic()
        self.ping_due_s = self.opened_s + limits.ping_interval_s
        self.pong_due_s: float | None = None  # ``None`` = no ping is unanswered
        per_second = limits.events_per_second
        self._bucket = TokenBucket(per_second, 2 * per_second, self.opened_s)
        self._expected_replies = 0  # packets that the rate limit does not count
        self._oversize_bytes = 0  # the limit while one message alone exceeds it
        self._websocket: WebSocketTransport | None = None  # ``None`` = long polling
        self._queue: PollQueue | None = None
        self._upgrade: UpgradeHandshake | None = None
        self._is_posting = False
        self._post_timestamp: str | None = None  # of the last POST that was read

    def attach(self, client: object) -> None:
        """Set the state of the layer above and release the opening request."""
        self.client = client
        self.request = None
        if self._websocket is not None:
            self._websocket.limit_messages(self._max_bytes)

    def detach(self) -> object | None:
        """Remove and return the state of the layer above."""
        client, self.client = self.client, None
        return client

    @property
    def _max_bytes(self) -> int:
        limits = self._owner.limits
        if self.client is None:
            return limits.max_connect_bytes
        return limits.max_packet_bytes

    # --- sending

    @property
    def transport_name(self) -> Literal["polling", "websocket"]:
        """The transport that the session uses now."""
        return "polling" if self._websocket is None else "websocket"

    @property
    def transport(self) -> asyncio.Transport | None:
        """The TCP transport for direct writes of frames; ``None`` = polling or closed."""
        if self._websocket is None or self.is_closed:
            return None
        return self._websocket.transport

    @property
    def waiting_bytes(self) -> int:
        """Bytes that were sent and that the client has not read."""
        if self._websocket is not None:
            return self._websocket.transport.get_write_buffer_size()
        return 0 if self._queue is None else self._queue.waiting_bytes

    @property
    def is_over_limit(self) -> bool:
        """Whether more bytes wait for the client than allowed."""
        waiting_bytes = self.waiting_bytes
        outbound_bytes = self._owner.limits.outbound_bytes
        if waiting_bytes <= outbound_bytes:
            self._oversize_bytes = 0
            return False
        return waiting_bytes > max(outbound_bytes, self._oversize_bytes)

    def send(self, *texts: str) -> None:
        """Send messages at once, together; a closed session drops them."""
        if self.is_closed or not texts:
            return
        packets = [b"4" + text.encode() for text in texts]
        if self._websocket is not None:
            self._websocket.transport.write(b"".join(map(text_frame, packets)))
        elif self._queue is not None:
            for packet in packets:
                self._queue.put(packet.decode(), 0)

    def send_binary(self, data: bytes) -> None:
        """Send a binary message of 126 to 65535 bytes; a closed session drops it."""
        if self.is_closed:
            return
        if self._websocket is not None:
            self._websocket.transport.write(short_binary_frame(data))
        elif self._queue is not None:
            self._queue.put(f"b{b64encode(data).decode()}", 0)

    def send_encoded(self, messages: EncodedMessages) -> bool:
        """
        Send messages at once, all of them or none.

        Returns:
            False if more bytes would wait for the client than allowed.

        """
        frames = messages.frames
        if self.waiting_bytes + len(frames) > self._owner.limits.outbound_bytes:
            return False
        if self._websocket is None:
            for offset, packet in messages.packets:
                self._write(packet, messages.complete(offset))
        elif not self.is_closed:
            self._websocket.transport.write(frames)
        self._expected_replies += len(messages.packets)
        return True

    async def send_when_writable(
        self, payload: bytes, offset: int, *, timeout_s: float
    ) -> bool:
        """
        Send one packet as soon as the client has read most of what was sent before.

        Returns:
            False if the session is closed or the client read nothing for `timeout_s`.

        """
        while self._is_congested and not self.is_closed:
            waiting_bytes = self.waiting_bytes
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wait_until_writable()
            except TimeoutError:
                if self.waiting_bytes >= waiting_bytes:
                    return False
        if self.is_closed:
            return False
        self._expected_replies += 1
        # A message larger than the limit is sent while nothing else waits.
        self._oversize_bytes = self._owner.limits.outbound_bytes + len(payload)
        self._write(payload, offset)
        return True

    def expect_replies(self, count: int) -> None:
        """Allow `count` more packets, for messages that were written to `transport`."""
        self._expected_replies += count

    @property
    def _is_congested(self) -> bool:
        if self._websocket is not None:
            return self._websocket.is_congested
        return self.waiting_bytes > self._owner.limits.outbound_bytes // 4

    async def _wait_until_writable(self) -> None:
        if self._websocket is not None:
            await self._websocket.wait_until_writable()
        elif self._queue is not None:
            await self._queue.wait_until_drained()

    def _write(self, packet: bytes, offset: int) -> None:
        if self._websocket is not None:
            self._websocket.transport.write(text_frame(packet))
        elif self._queue is not None:
            self._queue.put(packet.decode(), offset)

    # --- opening

    def open_polling(self) -> None:
        """Use long polling, and queue the first packet."""
        self._queue = PollQueue()
        self._write(self._open_packet(upgrades=("websocket",)), 0)

    def open_websocket(
        self, transport: asyncio.Transport, *, response: bytes, received: bytes
    ) -> None:
        """
        Use a WebSocket from the start.

        Args:
            transport: The TCP connection.
            response: The response to the handshake, not yet written.
            received: Frames that the client has sent already.

        """
        websocket = WebSocketTransport(transport, self, max_bytes=self._max_bytes)
        self._use(websocket)
        transport.write(response + text_frame(self._open_packet()))
        if received:
            websocket.data_received(received)

    def _use(self, websocket: WebSocketTransport) -> None:
        self._websocket = websocket
        websocket.limit_messages(self._max_bytes)
        websocket.limit_buffer(self._owner.limits.outbound_bytes)

    def _open_packet(self, *, upgrades: tuple[str, ...] = ()) -> bytes:
        limits = self._owner.limits
        return b"0" + orjson.dumps(
            {
                "sid": self.sid,
                "upgrades": upgrades,
                "pingTimeout": limits.ping_timeout_s * 1000,
                "pingInterval": limits.ping_interval_s * 1000,
                "maxPayload": limits.max_packet_bytes,
            }
        )

    # --- long polling

    async def poll(self, request: web.BaseRequest) -> list[str]:
        """
        Return the packets for a poll, as soon as there are some.

        Returns:
            Nothing if the session is closed, also because the client has disconnected or
            no packet came in the time within which a ping must come.

        """
        queue = self._queue
        if queue is None:  # closed at the end of an upgrade
            return []
        is_repeat = queue.is_repeat(request)
        if not is_repeat:
            self._report_received(queue.take_received())
        limits = self._owner.limits
        timeout_s: float = limits.ping_interval_s + limits.ping_timeout_s
        is_upgrading = self._upgrade is not None and self._upgrade.is_probed
        respond = queue.repeat if is_repeat else queue.poll
        packets = await respond(
            request, timeout_s=_UPGRADE_POLL_S if is_upgrading else timeout_s
        )
        if packets == [] and is_upgrading and not self.is_closed:
            return [NOOP]
        if packets is None:
            self.close(CloseReason.SECOND_POLL)
            return []
        if not packets:  # a lost client, or no answer to pings
            self.close(CloseReason.TRANSPORT_CLOSE)
            return []
        return [packet for packet, _ in packets]

    def _report_received(self, offset: int) -> None:
        if offset:
            self._owner.handler.messages_received(self, offset)

    async def post(self, request: web.BaseRequest) -> HTTPStatus:
        """
        Process the packets in a posted body.

        A POST with the `t` of the last one repeats it, because its connection was lost:
        it is not processed again.

        Returns:
            The status of the response. After a body that cannot be read, or while another
            POST is in progress, which no client does, the session is closed.

        """
        timestamp = request.query.get("t")
        if timestamp is not None and timestamp == self._post_timestamp:
            return HTTPStatus.OK
        if self._is_posting:
            status = HTTPStatus.BAD_REQUEST
        else:
            status = await self._process_post(request)
        if status is not HTTPStatus.OK:
            self.close(CloseReason.TRANSPORT_ERROR)
        return status

    async def _process_post(self, request: web.BaseRequest) -> HTTPStatus:
        limits = self._owner.limits
        self._is_posting = True
        try:
            packets = await read_packets(
                request, max_bytes=self._max_bytes, timeout_s=limits.connect_s
            )
            self._post_timestamp = request.query.get("t")
            for packet in packets:
                work = self._process_packet(packet)
                if work is not None:
                    await work
        except BodyError as exc:
            return exc.status
        finally:
            self._is_posting = False
        return HTTPStatus.OK

    # --- upgrade

    @property
    def can_upgrade(self) -> bool:
        """Whether an upgrade to a WebSocket may start."""
        return not self.is_closed and self._websocket is None and self._upgrade is None

    def start_upgrade(
        self, transport: asyncio.Transport, *, response: bytes, received: bytes
    ) -> None:
        """Start the upgrade to a WebSocket; the arguments are as in `open_websocket`."""
        limits = self._owner.limits
        upgrade = self._upgrade = UpgradeHandshake(
            transport,
            max_bytes=limits.max_packet_bytes,
            timeout_s=limits.connect_s,
            on_probe=self._end_poll,
            on_done=self._finish_upgrade,
        )
        transport.write(response)
        if received:
            upgrade.websocket.data_received(received)

    def refuse_upgrade(
        self, transport: asyncio.Transport, *, response: bytes, received: bytes
    ) -> None:
        """
        Close another WebSocket than the one of this session.

        The handshake succeeds, as with Node's server: clients treat a failed one as an
        error of the network. The arguments are as in `open_websocket`.
        """
        websocket = WebSocketTransport(transport, self, max_bytes=0)
        transport.write(response)
        websocket.close(close_frame())
        if received:
            websocket.data_received(received)

    def _end_poll(self) -> None:
        if self._queue is not None and self._queue.is_polled:
            self._queue.put(NOOP, 0)

    def _finish_upgrade(self, websocket: WebSocketTransport | None) -> None:
        self._upgrade = None
        if websocket is None:
            return
        if not self.is_closed:
            websocket.hand_over(self)
            self._use(websocket)
        queue, self._queue = self._queue, None
        # The client waits for the end of its last poll before it upgrades.
        received = queue.take_received() if queue else 0
        # Queued packets come first: from here on all packets go to the WebSocket.
        for packet, _ in queue.take_all() if queue else ():
            if packet != NOOP:
                websocket.transport.write(text_frame(packet.encode()))
        if self.is_closed:
            websocket.close(close_frame())  # after the last packets of the session
        if queue is not None:
            queue.close(NOOP)  # ends a poll that is still pending
        self._report_received(received)

    # --- receiving

    def text_received(self, text: str) -> None:
        """Process a packet that was received over the WebSocket."""
        work = self._process_packet(text)
        if work is not None and self._websocket is not None:
            self._websocket.hold_messages()
            # All windows of a proxy connect at once when it restarts.
            self._owner.spawn_in_turn(self._finish_request(work), name="request")

    async def _finish_request(self, work: Work) -> None:
        await work
        if self._websocket is not None:
            self._websocket.release_messages()

    def _process_packet(self, packet: str) -> Work | None:
        if not self.admit_frame():
            return None
        packet_type = packet[:1]
        if packet_type == "3":
            self.pong_due_s = None
            self._owner.handler.pong_received(self)
        elif packet_type == "4":
            if self._owner.is_running:
                return self._owner.handler.message_received(self, packet[1:])
        elif packet_type == "1":
            self.close_for_client()
        elif packet_type == "b":
            self.binary_received()
        else:
            self.frame_ignored()
            if packet_type not in _IGNORED_TYPES:
                self.close(CloseReason.TRANSPORT_ERROR)
        return None

    def admit_frame(self) -> bool:
        """Count a frame or packet against the rate limit; false if the session is closed."""
        if not self._expected_replies:
            self._expected_replies = self._owner.handler.take_expected_replies(self)
        if self._expected_replies:
            # A client may ack each message, also those of a long replay. These acks are
            # not counted, or a fast replay would close its client for flooding.
            self._expected_replies -= 1
        elif not self.is_closed and not self._bucket.take(monotonic()):
            self._owner.handler.limit_exceeded(self, Closing.FLOODING)
        return not self.is_closed

    def frame_ignored(self) -> None:
        """Count a frame or packet without meaning."""
        self._owner.metrics.ignored.inc()

    def binary_received(self) -> None:
        """Process a binary message, whose content is dropped."""
        self._owner.handler.binary_received(self)

    def close_received(self) -> None:
        """
        Process a close frame with which a page ends its connection.

        A browser sends the same frame for a page whose process has died. A page that has
        not answered a ping may have been dead or frozen for long.
        """
        if self.pong_due_s is None:
            self._owner.handler.client_closing(self)

    def connection_closed(self) -> None:
        """Close the session: its WebSocket is gone."""
        self.close(CloseReason.TRANSPORT_CLOSE)

    # --- time and closing

    def tick(self, now_s: float) -> bool:
        """Send a ping if it is due; false if a pong is overdue and closed the session."""
        if self.pong_due_s is not None:
            if now_s >= self.pong_due_s:
                self.close(CloseReason.PING_TIMEOUT, abort=True)
        elif now_s >= self.ping_due_s:
            self.ping(now_s)
        return not self.is_closed

    def ping(self, now_s: float) -> None:
        """Send a ping at the monotonic time `now_s`, unless one is unanswered."""
        if self.pong_due_s is not None or self.is_closed:
            return
        self.ping_due_s = now_s + self._owner.limits.ping_interval_s
        self.pong_due_s = now_s + self._owner.limits.ping_timeout_s
        self._write(b"2", 0)
        self._owner.handler.ping_sent(self)

    def close_for_client(self) -> None:
        """
        Close the session because its client asks for it.

        Over long polling that proves nothing about the last response: the stock clients
        also post a close packet when the connection of a poll was cut.
        """
        self._owner.handler.client_closing(self)
        self.close(CloseReason.CLIENT_DISCONNECT)

    def close(self, reason: str, *, abort: bool = False) -> None:
        """
        Close the session; closing it again does nothing.

        Packets that were sent before still go out for a moment, unless `abort`: then they
        are dropped and the connection is aborted at once. A client that does not read
        would otherwise keep the connection and its buffer forever.
        """
        if self.is_closed:
            return
        self.is_closed = True
        self.closed_s = monotonic()
        self._owner.session_closed(self, reason)
        if self._queue is not None:
            if abort:
                self._queue.take_all()
            # A later poll may still fetch the last packets.
            self._queue.close(_LAST_PACKETS.get(reason))
        # An upgrade continues to its end: the stock client has paused its polling then and
        # would not notice that the new WebSocket is closed in the middle.
        if self._websocket is None:
            return
        if abort:
            self._websocket.abort()
        else:
            self._websocket.close(close_frame())
