"""
Connections to RabbitMQ: open one, make calls with deadlines, explain failures.

Everything that the library raises becomes a BrokerUnavailableError. supervision.py
reconnects.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

import aio_pika
import aiormq
import structlog
from aiormq.connection import DEFAULT_PORTS, SSLContextProvider, TransportFactory
from aiormq.exceptions import (
    AMQPConnectionError,
    AMQPError,
    AuthenticationError,
    ChannelInvalidStateError,
    ConnectionClosed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from yarl import URL

from bridge import __version__
from bridge.amqp.frame_reader import FrameReader
from bridge.errors import BrokerUnavailableError

log = structlog.get_logger(__name__)

# aiormq gives up on a silent peer after (heartbeat + 1) * 3 seconds: 33 s with 10, and
# 183 s with its default of 60.
_HEARTBEAT_S: Final = 10
# An orderly close takes one round trip; a frozen broker would never answer.
_CLOSE_WITHIN_S: Final = 2.0
# How long the library may take to notice that the connection was aborted.
_ABORT_WITHIN_S: Final = 0.5
CONNECTION_LOST: Final = "the connection was lost"
NO_CONNECTION: Final = "there is no connection to the broker"


ReaderT_co = TypeVar("ReaderT_co", bound=FrameReader, covariant=True)
ReaderT = TypeVar("ReaderT", bound=FrameReader)


class Purpose(StrEnum):
    """
    The purpose of a connection.

    Consuming and publishing use separate connections, because the broker stops reading
    from publishers during a memory or disk alarm, and acks must still arrive.
    """

    CONSUME = "consume"
    PUBLISH = "publish"
    REQUEST = "request"
    EVENTS = "events"
    CHECK = "check"
    OPERATE = "operate"  # short-lived: queries of queues, work on dead letters


@dataclass(slots=True)
class BrokerAddress:
    """
    The nodes of the broker, and limits for connections to them.

    All parts of a bridge share one object, so that a new login reaches all of them.

    Attributes:
        urls: Tried in order; they contain passwords.
        timeout_s: The limit of one call, and of one attempt to connect.
        heartbeat_s: The heartbeat interval; a peer that is silent for three intervals and
            three seconds is given up.

    """

    urls: tuple[str, ...] = field(repr=False)
    timeout_s: float = 15.0
    heartbeat_s: int = _HEARTBEAT_S

    def replace_urls(self, urls: tuple[str, ...]) -> None:
        """Use these URLs for new connections; open ones stay as they are."""
        self.urls = urls


@dataclass(frozen=True, slots=True)
class BrokerIdentity:
    """The host, product and version of the connected broker. Nothing secret."""

    host: str
    product: str
    version: str


class _ReaderTransport(TransportFactory):
    """Opens a TCP or TLS transport with a given stream reader, and can abort it."""

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader
        self._writer: asyncio.StreamWriter | None = None

    async def create(
        self,
        url: URL,
        **kwargs: Any,  # noqa: ANN401 - aiormq's signature
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        contexts: SSLContextProvider = kwargs.pop("ssl_context_provider")
        context = await contexts.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(self._reader, loop=loop)
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol,
                url.host or "",
                url.port or 0,
                ssl=context,
                **kwargs,
            )
        except OSError as exc:
            raise AMQPConnectionError(*exc.args) from exc
        writer = asyncio.StreamWriter(transport, protocol, self._reader, loop)
        self._writer = writer
        return self._reader, writer

    def peer_certificate(self) -> Mapping[str, Any]:
        """Return the verified certificate of the broker; empty without TLS."""
        found = self._writer.get_extra_info("peercert") if self._writer else None
        return found or {}

    def write(self, data: bytes) -> bool:
        """Write `data` at once; return False if the connection is closing or not open."""
        if self._writer is None or self._writer.transport.is_closing():
            return False
        self._writer.transport.write(data)
        return True

    def abort(self) -> None:
        if self._writer is None:
            return
        # aiormq closes the transport twice. Before Python 3.11.5, a TLS transport that was
        # closed twice raises AttributeError here; it is closing already.
        with suppress(AttributeError):
            self._writer.transport.abort()


class BrokerConnection(aio_pika.Connection, Generic[ReaderT_co]):
    """One connection with its own stream reader. It does not reconnect."""

    def __init__(
        self, url: URL, *, reader: ReaderT_co, name: str, timeout_s: float
    ) -> None:
        super().__init__(
            url,
            client_properties={
                "connection_name": name,
                "product": "bridge",
                "version": __version__,
            },
        )
        self._reader = reader
        self._timeout_s = timeout_s
        self._transport_factory = _ReaderTransport(reader)
        self.kwargs["transport_factory"] = self._transport_factory

    @property
    def reader(self) -> ReaderT_co:
        """The reader that receives the bytes before the library does."""
        return self._reader

    @property
    def wire(self) -> aiormq.abc.AbstractConnection:
        """
        The aiormq connection, whose channels are not wrapped by aio_pika.

        Raises:
            BrokerUnavailableError: If the connection is lost.

        """
        if self.transport is None:
            raise BrokerUnavailableError("use the connection", CONNECTION_LOST)
        return self.transport.connection

    @property
    def is_lost(self) -> bool:
        """Whether the connection is closed or being closed, by either side."""
        return self.transport is None or not self.transport.connection.is_opened

    def write(self, frame: bytes) -> bool:
        """
        Write a whole frame at once, bypassing the library's queue and its writer task.

        The frame must not depend on its order among the library's own frames, and the
        caller must bound what it writes. Return False if the connection is gone or closing.
        """
        return self._transport_factory.write(frame)

    @property
    def certificate_end_s(self) -> float | None:
        """When the broker's certificate expires, in Unix time; ``None`` without TLS."""
        end = self._transport_factory.peer_certificate().get("notAfter")
        return None if end is None else ssl.cert_time_to_seconds(end)

    def call(self, doing: str) -> AbstractAsyncContextManager[None]:
        """Wrap calls to the broker in `broker_call`, with the limit of this connection."""
        return broker_call(doing, timeout_s=self._timeout_s)

    async def open_channel(self, *, confirms: bool) -> aiormq.Channel:
        """
        Open a channel.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow.

        """
        async with self.call("open a channel"):
            wire = self.wire
            if not wire.is_opened:
                raise BrokerUnavailableError("open a channel", CONNECTION_LOST)
            channel = await wire.channel(publisher_confirms=confirms)
        assert isinstance(channel, aiormq.Channel)  # noqa: S101 - for mypy: it always is
        return channel

    def abort(self) -> None:
        """Close the socket at once, without AMQP close frames; unsent data is lost."""
        self._transport_factory.abort()

    async def disconnect(self) -> None:
        """Close in order if the broker answers within two seconds, else abort; never raise."""
        # aiormq waits for the peer even if its close is cancelled; an abort ends the wait.
        loop = asyncio.get_running_loop()
        abort_timer = loop.call_later(_CLOSE_WITHIN_S, self.abort)
        try:
            async with broker_call(
                "close", timeout_s=_CLOSE_WITHIN_S + _ABORT_WITHIN_S
            ):
                await self.close()
        except BrokerUnavailableError as exc:
            log.debug("broker.close_timed_out", problem=exc.problem)
        finally:
            abort_timer.cancel()
            self.abort()
            # An interrupted close leaves the object open. Without a transport, the second
            # close only marks it as closed.
            await self.close()


def broker_identity(connection: BrokerConnection[FrameReader]) -> BrokerIdentity:
    """Return the host, product and version of the broker that `connection` reaches."""
    properties = connection.wire.server_properties
    return BrokerIdentity(
        host=f"{connection.url.host}:{connection.url.port}",
        product=str(properties.get("product", "a broker")),
        version=str(properties.get("version", "?")),
    )


# The TLS alert of a broker that requires a client certificate may arrive late or get lost.
_CLOSED_ADVICE: Final = {
    "amqp": "is this RabbitMQ's AMQP port, and not the one for TLS (amqps)?",
    "amqps": "does it require a certificate (certfile= and keyfile=), and is it the TLS port?",
}


@asynccontextmanager
async def broker_call(doing: str, *, timeout_s: float) -> AsyncIterator[None]:
    """
    Limit the time of calls to the broker, and translate the errors of the library.

    Args:
        doing: The action, for the error text: "publish to bridge.dead".
        timeout_s: The limit of all calls inside together.

    Raises:
        BrokerUnavailableError: If the broker is too slow, gone, or refuses the call.

    Cancellation:
        Passed on. A ``CancelledError`` without a cancellation is a lost connection:
        aiormq raises it in waiting calls when it gives up a silent peer.

    """
    task = asyncio.current_task()
    cancelled_before = task.cancelling() if task else 0
    cause: BaseException
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as exc:
        problem, cause = f"no answer within {timeout_s:g} s", exc
    except asyncio.CancelledError as exc:
        if task is None or task.cancelling():
            raise
        problem, cause = CONNECTION_LOST, exc
    except (AMQPError, OSError, ChannelInvalidStateError, StopAsyncIteration) as exc:
        # aiormq raises StopAsyncIteration if the peer closes before its first frame.
        problem, cause = problem_text(exc), exc
    except Exception as exc:
        # If the peer closes right after a frame, aiormq has no error to pass on and raises
        # a bare Exception in waiting calls.
        if type(exc) is not Exception:
            raise
        problem, cause = CONNECTION_LOST, exc
    else:
        problem = ""
    # aiormq uses wait_for, which on Python 3.11 loses a cancellation that arrives in the
    # same moment as the answer or the error (python/cpython#86296). The task that cancelled
    # this one would wait forever.
    if task is not None and task.cancelling() > cancelled_before:
        raise asyncio.CancelledError
    if problem:
        raise BrokerUnavailableError(doing, problem) from cause


async def ignore_message(_message: object) -> None:
    """Stand in for the callback of a consumer whose deliveries never reach the library."""


def close_reason(channel: aiormq.Channel) -> str | None:
    """Return why the broker closed `channel`, in its words; ``None`` if it did not."""
    closing = channel.closing
    exc = closing.exception() if closing.done() and not closing.cancelled() else None
    return None if exc is None else problem_text(exc)


def problem_text(exc: BaseException) -> str:
    """Return the text of the broker or the library, without addresses or secrets."""
    words = [arg for arg in exc.args if isinstance(arg, str) and arg]
    return " ".join(words) or CONNECTION_LOST


async def open_connection(
    address: BrokerAddress, *, purpose: Purpose, reader: Callable[[], ReaderT]
) -> BrokerConnection[ReaderT]:
    """
    Connect to the first of the URLs that accepts the connection.

    Raises:
        BrokerUnavailableError: If none does. For each URL its text has host and port, the
            cause and advice, and never a password.

    Cancellation:
        Safe; an incomplete connection is aborted.

    """
    failures: list[BrokerUnavailableError] = []
    for text in address.urls:
        try:
            return await _open_one(URL(text), address, purpose, reader())
        except BrokerUnavailableError as exc:
            failures.append(exc)
    if len(failures) == 1:
        raise failures[0]
    raise BrokerUnavailableError(
        "connect to RabbitMQ", "; ".join(str(failure) for failure in failures)
    ) from failures[-1]


@asynccontextmanager
async def connected(
    address: BrokerAddress, *, purpose: Purpose, reader: Callable[[], ReaderT]
) -> AsyncIterator[BrokerConnection[ReaderT]]:
    """Open a connection for the block. Errors and cancellation as `open_connection`."""
    connection = await open_connection(address, purpose=purpose, reader=reader)
    try:
        yield connection
    finally:
        await connection.disconnect()


async def _open_one(
    given: URL, address: BrokerAddress, purpose: Purpose, reader: ReaderT
) -> BrokerConnection[ReaderT]:
    if not given.port:
        given = given.with_port(DEFAULT_PORTS[given.scheme])
    # Certificates are always verified, even if the URL says otherwise.
    kept = {
        name: value for name, value in given.query.items() if name != "no_verify_ssl"
    }
    url = given.with_query({**kept, "heartbeat": address.heartbeat_s})
    connection = BrokerConnection(
        url, reader=reader, name=_client_name(purpose), timeout_s=address.timeout_s
    )
    doing = f"connect to RabbitMQ at {url.host}:{url.port}"
    # When the deadline cancels the attempt, aiormq still closes in order. With TLS and a
    # silent peer that would take half a minute more.
    abort_timer = asyncio.get_running_loop().call_later(
        address.timeout_s + _ABORT_WITHIN_S, connection.abort
    )
    try:
        async with broker_call(doing, timeout_s=address.timeout_s):
            try:
                await connection.connect()
            except (AMQPError, OSError, StopAsyncIteration) as exc:
                raise BrokerUnavailableError(doing, _advice(exc, url)) from exc
    except BaseException:
        connection.abort()
        await connection.close()
        raise
    finally:
        abort_timer.cancel()
    return connection


def _client_name(purpose: Purpose) -> str:
    """Return the name under which the broker lists the connection."""
    return f"bridge {purpose} ({socket.gethostname()}:{os.getpid()})"


def _advice(exc: BaseException, url: URL) -> str:
    """Return the cause of a failed attempt, and what to do about it."""
    # A plain AMQPConnectionError only wraps its cause.
    cause = (exc.__cause__ if type(exc) is AMQPConnectionError else None) or exc
    text = problem_text(cause)
    vhost = url.path.removeprefix("/") or "/"
    refused = f"connection refused; is RabbitMQ running at {url.host}:{url.port}?"
    for kinds, advice in (
        (
            (ProbableAuthenticationError, AuthenticationError),
            "login refused; check the user and the password in BRIDGE_AMQP_URL",
        ),
        (
            # aiormq reports a refused vhost as an invalid frame, without the broker's text.
            (ConnectionClosed, InvalidFrameError),
            f"the broker closed it before the vhost {vhost!r} was open; does the vhost "
            "exist, may the user access it, is a limit of connections reached?",
        ),
        (socket.gaierror, f"no such host; check the name {url.host!r}"),
        (ConnectionRefusedError, refused),
        (
            ssl.SSLCertVerificationError,
            f"its certificate is not trusted ({text}); set cafile= in BRIDGE_AMQP_URL",
        ),
        (
            ssl.SSLError,
            f"TLS failed ({text}); does the port speak TLS, are certfile= and keyfile= right?",
        ),
        (
            (
                asyncio.IncompleteReadError,
                ConnectionResetError,
                AMQPConnectionError,
                StopAsyncIteration,
            ),
            "closed by the other side; " + _CLOSED_ADVICE[url.scheme],
        ),
    ):
        if isinstance(cause, kinds):
            return advice
    # A name with several addresses: asyncio joins all errors to one of no kind.
    return refused if "Connect call failed" in text else text
