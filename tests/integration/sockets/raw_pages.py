"""Clients that speak Engine.IO and Socket.IO by hand and may break the protocols."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import aiohttp

from tests.conftest import SLOW_FACTOR
from tests.integration.sockets.running_server import RunningServer
from tests.integration.sockets.security import Security, http_session
from tests.tokens import token

SEPARATOR = "\x1e"
LIMIT_S = 10 * SLOW_FACTOR


def event_of(packet: str) -> list[Any] | None:
    """Return name and arguments of an event; `None` for any other packet."""
    return json.loads(packet[2:]) if packet.startswith("42") else None


class RawWindow:
    """A client over a WebSocket."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self.websocket = websocket
        self.opening: dict[str, Any] = {}

    async def send(self, packet: str) -> None:
        """Send one Engine.IO packet."""
        await self.websocket.send_str(packet)

    async def emit(self, event: str, *args: object, packet_id: int | str = "") -> None:
        """Send an event."""
        await self.send(f"42{packet_id}{json.dumps([event, *args])}")

    async def receive(self) -> str:
        """Return the next packet; raises TypeError if the connection was closed instead."""
        async with asyncio.timeout(LIMIT_S):
            return await self.websocket.receive_str()

    async def receive_until(self, prefix: str) -> list[str]:
        """Return all packets up to the first that starts with `prefix`."""
        packets = [await self.receive()]
        while not packets[-1].startswith(prefix):
            packets.append(await self.receive())
        return packets

    async def connect(self, **auth: object) -> str:
        """Send CONNECT and return the reply."""
        await self.send("40" + (json.dumps(auth) if auth else ""))
        return (await self.receive_until("4"))[-1]

    async def join(self, user: str, **auth: object) -> dict[str, Any]:
        """Connect as a window of `user`; return the reply, before the replay."""
        answer = await self.connect(token=token(sub=user), **auth)
        assert answer.startswith("40"), answer
        reply: dict[str, Any] = json.loads(answer[2:])
        return reply

    async def synced(self) -> tuple[list[list[Any]], dict[str, Any]]:
        """Return the events before `bridge:sync`, and its data."""
        packets = await self.receive_until('42["bridge:sync"')
        events = [event for packet in packets if (event := event_of(packet))]
        return events[:-1], events[-1][1]

    async def answer(self, packet_id: int) -> dict[str, Any]:
        """Return the reply to an event."""
        packet = (await self.receive_until(f"43{packet_id}["))[-1]
        answer: dict[str, Any] = json.loads(packet[len(f"43{packet_id}") :])[0]
        return answer

    async def ended(self) -> tuple[list[str], int | None]:
        """Read to the end; return the last packets and the WebSocket's close code."""
        packets: list[str] = []
        async with asyncio.timeout(LIMIT_S):
            packets += [frame.data async for frame in self.websocket]
        return packets, self.websocket.close_code


@asynccontextmanager
async def raw_window(
    server: RunningServer, *, headers: dict[str, str] | None = None, **query: str
) -> AsyncIterator[RawWindow]:
    """Open a WebSocket and read the first packet; no CONNECT is sent."""
    async with (
        http_session() as http,
        http.ws_connect(
            server.socket_url(transport="websocket", **query),
            headers=headers,
            max_msg_size=1 << 26,
            compress=15,
        ) as websocket,
    ):
        window = RawWindow(websocket)
        if "sid" not in query:
            opening = await window.receive()
            assert opening[0] == "0"
            window.opening = json.loads(opening[1:])
        yield window


class RawPoller:
    """A client over long polling."""

    def __init__(self, server: RunningServer, http: aiohttp.ClientSession) -> None:
        self._server = server
        self.http = http
        self.sid = ""

    @property
    def url(self) -> str:
        """The URL of the session."""
        return str(self._server.socket_url(transport="polling", sid=self.sid))

    async def open(self) -> None:
        """Open a session."""
        (opening,) = await self._get(str(self._server.socket_url(transport="polling")))
        self.sid = json.loads(opening[1:])["sid"]

    async def poll(self) -> list[str]:
        """Return the packets of one poll."""
        return await self._get(self.url)

    async def _get(self, url: str) -> list[str]:
        async with asyncio.timeout(LIMIT_S), self.http.get(url) as response:
            text = await response.text()
            assert response.status == 200, text
            return text.split(SEPARATOR)

    async def post(self, *packets: str) -> int:
        """Send packets in one body; return the HTTP status."""
        body = SEPARATOR.join(packets).encode()
        async with self.http.post(self.url, data=body) as response:
            return response.status

    async def join(self, user: str, **auth: object) -> list[str]:
        """Connect as a window of `user`; return all packets up to `bridge:sync`."""
        auth = {"token": token(sub=user), **auth}
        assert await self.post("40" + json.dumps(auth)) == 200
        return await self.poll_until('42["bridge:sync"')

    async def poll_until(self, prefix: str) -> list[str]:
        """Poll until a packet starts with `prefix`."""
        packets: list[str] = []
        while not any(packet.startswith(prefix) for packet in packets):
            packets += await self.poll()
        return packets


@asynccontextmanager
async def raw_poller(
    server: RunningServer, *, headers: dict[str, str] | None = None
) -> AsyncIterator[RawPoller]:
    """Open a polling session; no CONNECT is sent."""
    async with http_session(headers) as http:
        poller = RawPoller(server, http)
        await poller.open()
        yield poller


class RawTcp:
    """A TCP connection that reads only on demand, with TLS if the test uses it."""

    def __init__(
        self, server: RunningServer, *, receive_bytes: int | None = None
    ) -> None:
        self._server = server
        self.socket = socket.socket()
        self.socket.settimeout(0)
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None

    async def connect(self, *, is_tls: bool = True) -> None:
        """Connect to the server, with TLS if the test uses it and `is_tls`."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.socket, ("127.0.0.1", self._server.port))
        if Security.current is not None and is_tls:
            self._tls = Security.current.client.wrap_bio(
                self._incoming, self._outgoing, server_hostname="127.0.0.1"
            )
            await self._with_tls(self._tls.do_handshake)
            await self._flush()

    async def _with_tls(self, step: Callable[[], bytes | None]) -> bytes:
        """Receive until `step` is complete."""
        while True:
            try:
                return step() or b""
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self._receive(65536)
                if not data:
                    raise ConnectionResetError from None
                self._incoming.write(data)

    async def _flush(self) -> None:
        await asyncio.get_running_loop().sock_sendall(
            self.socket, self._outgoing.read()
        )

    async def end_stream(self) -> None:
        """Send the alert `close_notify` of TLS, and keep the TCP connection."""
        assert self._tls is not None
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        await self._flush()

    async def send(self, data: bytes) -> None:
        """Send bytes unchanged."""
        if self._tls is None:
            await asyncio.get_running_loop().sock_sendall(self.socket, data)
            return
        while data:
            data = data[self._tls.write(data) :]
        await self._flush()

    async def receive(self, count: int = 65536) -> bytes:
        """Return some bytes; empty at the end of the stream."""
        if self._tls is None:
            return await self._receive(count)
        return await self._with_tls(partial(self._tls.read, count))

    async def _receive(self, count: int) -> bytes:
        async with asyncio.timeout(LIMIT_S):
            return await asyncio.get_running_loop().sock_recv(self.socket, count)

    async def receive_until(self, mark: bytes) -> bytes:
        """Return the bytes up to `mark`, and possibly some after it."""
        data = bytearray()
        while mark not in data:
            chunk = await self.receive()
            assert chunk, bytes(data)
            data += chunk
        return bytes(data)

    async def read_to_end(self) -> bytes:
        """Return all bytes until the connection is closed or reset."""
        data = bytearray()
        try:
            while chunk := await self.receive():
                data += chunk
        except ConnectionError:
            pass
        return bytes(data)

    async def open_websocket(self, *, headers: str = "", query: str = "") -> None:
        """Send a WebSocket handshake and read the response and the first packet."""
        await self.send(
            f"GET /socket.io/?EIO=4&transport=websocket{query} HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{self._server.port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n".encode()
        )
        await self.receive_until(b"\r\n\r\n" if query else b"maxPayload")

    async def send_frame(
        self, payload: bytes, *, opcode: int = 1, flags: int = 0x80
    ) -> None:
        """Send one masked frame (RFC 6455 section 5.2); the mask is zero."""
        length = len(payload)
        size = (
            bytes((0x80 | length,))
            if length < 126
            else b"\xfe" + length.to_bytes(2, "big")
            if length < 65536
            else b"\xff" + length.to_bytes(8, "big")
        )
        await self.send(bytes((flags | opcode,)) + size + bytes(4) + payload)


@asynccontextmanager
async def raw_tcp(
    server: RunningServer, *, receive_bytes: int | None = None
) -> AsyncIterator[RawTcp]:
    """Open a TCP connection."""
    connection = RawTcp(server, receive_bytes=receive_bytes)
    try:
        await connection.connect()
        yield connection
    finally:
        connection.socket.close()
