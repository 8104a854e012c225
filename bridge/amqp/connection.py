"""
Connections to RabbitMQ: open one, call through it, and say plainly what is wrong.

Every call has a deadline, and what the library raises becomes one error of ours. How a
connection is kept is told in supervision.py.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
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
# 183 s with its default of 60 (traps 1.1 row 7).
_HEARTBEAT_S: Final = 10
# A polite goodbye takes one round trip; a frozen broker would keep us waiting.
_CLOSE_WITHIN_S: Final = 2.0
# How long the library may take to notice that we cut the connection.
_CUT_WITHIN_S: Final = 0.5
CONNECTION_LOST: Final = "the connection was lost"


ReaderT_co = TypeVar("ReaderT_co", bound=FrameReader, covariant=True)
ReaderT = TypeVar("ReaderT", bound=FrameReader)


class Purpose(StrEnum):
    """What a connection is for. Two, so that a blocked publisher cannot stop consuming."""

    CONSUME = "consume"
    PUBLISH = "publish"
    CHECK = "check"
    OPERATE = "operate"  # short-lived: looks at queues, works on dead letters


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """
    Where the broker is.

    Attributes:
        urls: Tried in turn; they hold passwords.
        timeout_s: The longest that one call may take, and one attempt to connect.
        heartbeat_s: Seconds; a peer that is silent for three of them is gone.

    """

    urls: tuple[str, ...] = field(repr=False)
    timeout_s: float = 15.0
    heartbeat_s: int = _HEARTBEAT_S


@dataclass(frozen=True, slots=True)
class BrokerIdentity:
    """Which broker let us in: its host, and what it says it is. Nothing secret."""

    host: str
    product: str
    version: str


class _ReaderTransport(TransportFactory):
    """Opens TCP or TLS with a stream reader of ours, and can cut it."""

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
        """Return the broker's certificate as it was verified; empty without TLS."""
        told = self._writer.get_extra_info("peercert") if self._writer else None
        return told or {}

    def write(self, data: bytes) -> bool:
        """Write `data` at once; false if the connection is going down, or not there."""
        if self._writer is None or self._writer.transport.is_closing():
            return False
        self._writer.transport.write(data)
        return True

    def abort(self) -> None:
        if self._writer is None:
            return
        # Before 3.11.5 a TLS transport that was closed twice, as aiormq does, has dropped
        # what it would abort with (asyncio.sslproto); it is closing by then.
        with suppress(AttributeError):
            self._writer.transport.abort()


class BrokerConnection(aio_pika.Connection, Generic[ReaderT_co]):
    """One connection, not restored by itself, with a stream reader of ours."""

    def __init__(self, url: URL, *, reader: ReaderT_co, name: str) -> None:
        super().__init__(
            url,
            client_properties={
                "connection_name": name,
                "product": "bridge",
                "version": __version__,
            },
        )
        self._reader = reader
        self._cut = _ReaderTransport(reader)
        self.kwargs["transport_factory"] = self._cut

    @property
    def reader(self) -> ReaderT_co:
        """What sees the bytes first."""
        return self._reader

    @property
    def wire(self) -> aiormq.abc.AbstractConnection:
        """
        The connection underneath, whose channels are not wrapped.

        Raises:
            BrokerUnavailableError: If there is none any more.

        """
        if self.transport is None:
            raise BrokerUnavailableError("use the connection", CONNECTION_LOST)
        return self.transport.connection

    def write(self, frame: bytes) -> bool:
        """
        Write a whole frame at once, past the library's queue and the task behind it.

        What it writes must not need an order with the library's own frames, and must be
        bounded by its writer. False if the connection is gone, or about to be.
        """
        return self._cut.write(frame)

    @property
    def certificate_end_s(self) -> float | None:
        """Until when the broker's certificate holds, in Unix time; `None` without TLS."""
        end = self._cut.peer_certificate().get("notAfter")
        return None if end is None else ssl.cert_time_to_seconds(end)

    async def open_channel(self, *, confirms: bool) -> aiormq.Channel:
        """
        Open a channel. Call it within a `broker_call`.

        Raises:
            BrokerUnavailableError: If the connection is gone.

        """
        wire = self.wire
        if not wire.is_opened:
            raise BrokerUnavailableError("open a channel", CONNECTION_LOST)
        channel = await wire.channel(publisher_confirms=confirms)
        assert isinstance(channel, aiormq.Channel)  # noqa: S101 - for mypy: it always is
        return channel

    def abort(self) -> None:
        """Cut the connection without a goodbye; nothing that was written is waited for."""
        self._cut.abort()

    async def leave(self) -> None:
        """Close, politely if the broker answers at once; never raises for its sake."""
        # A cancelled close goes on waiting for the peer; a cut ends that at once.
        loop = asyncio.get_running_loop()
        cutting = loop.call_later(_CLOSE_WITHIN_S, self.abort)
        try:
            async with broker_call("close", timeout_s=_CLOSE_WITHIN_S + _CUT_WITHIN_S):
                await self.close()
        except BrokerUnavailableError as exc:
            log.debug("broker.left_without_goodbye", problem=exc.problem)
        finally:
            cutting.cancel()
            self.abort()
            # A close that was cut short leaves the object open; without a transport
            # the second one only says that it is closed.
            await self.close()


def broker_identity(connection: BrokerConnection[FrameReader]) -> BrokerIdentity:
    """Say which broker `connection` leads to."""
    told = connection.wire.server_properties
    return BrokerIdentity(
        host=f"{connection.url.host}:{connection.url.port}",
        product=str(told.get("product", "a broker")),
        version=str(told.get("version", "?")),
    )


# A broker that misses our certificate tells so when it likes: its alert may get lost.
_CLOSED_ADVICE: Final = {
    "amqp": "is this RabbitMQ's AMQP port, and not the one for TLS (amqps)?",
    "amqps": "does it want a certificate (certfile= and keyfile=), and is it the TLS port?",
}


@asynccontextmanager
async def broker_call(doing: str, *, timeout_s: float) -> AsyncIterator[None]:
    """
    Put a deadline around calls to the broker, and turn what they raise into our words.

    Args:
        doing: What is being done, for the text: "publish to bridge.dead".
        timeout_s: The longest that all calls inside may take together.

    Raises:
        BrokerUnavailableError: If the broker is too slow, gone, or says no.

    Cancellation:
        Passed on. A ``CancelledError`` that nobody asked for is a lost connection:
        aiormq raises it to those who wait when it gives a silent peer up.

    """
    task = asyncio.current_task()
    asked_before = task.cancelling() if task else 0
    try:
        async with asyncio.timeout(timeout_s):
            yield
            # aiormq waits with wait_for, which on Python 3.11 loses a cancellation that
            # comes in the same moment as the answer (python/cpython#86296). Nobody would
            # ask again, and who asked would wait for ever.
            if task is not None and task.cancelling() > asked_before:
                raise asyncio.CancelledError  # noqa: TRY301 - handled as if it had come
    except TimeoutError as exc:
        raise BrokerUnavailableError(
            doing, f"no answer within {timeout_s:g} s"
        ) from exc
    except asyncio.CancelledError as exc:
        if task is None or task.cancelling():
            raise
        raise BrokerUnavailableError(doing, CONNECTION_LOST) from exc
    except (AMQPError, OSError, ChannelInvalidStateError, StopAsyncIteration) as exc:
        # The last one: aiormq's word for a peer that hung up before its first frame.
        raise BrokerUnavailableError(doing, problem_text(exc)) from exc
    except Exception as exc:
        # When the peer hangs up right behind a frame, aiormq has no error to pass on and
        # gives those who wait a bare Exception.
        if type(exc) is not Exception:
            raise
        raise BrokerUnavailableError(doing, CONNECTION_LOST) from exc


def problem_text(exc: BaseException) -> str:
    """Return what the broker or the library said, without addresses or secrets."""
    words = [arg for arg in exc.args if isinstance(arg, str) and arg]
    return " ".join(words) or CONNECTION_LOST


async def open_connection(
    address: BrokerAddress, *, purpose: Purpose, reader: Callable[[], ReaderT]
) -> BrokerConnection[ReaderT]:
    """
    Connect to the first of the URLs that lets us in.

    Raises:
        BrokerUnavailableError: If none does; its text says what to do for each, and
            names host and port, never a password.

    Cancellation:
        Safe; a connection that is half made is cut.

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


async def _open_one(
    given: URL, address: BrokerAddress, purpose: Purpose, reader: ReaderT
) -> BrokerConnection[ReaderT]:
    if not given.port:
        given = given.with_port(DEFAULT_PORTS[given.scheme])
    # Certificates are always verified, whatever the URL asks for.
    kept = {
        name: value for name, value in given.query.items() if name != "no_verify_ssl"
    }
    url = given.with_query({**kept, "heartbeat": address.heartbeat_s})
    connection = BrokerConnection(url, reader=reader, name=_client_name(purpose))
    doing = f"connect to RabbitMQ at {url.host}:{url.port}"
    # When the deadline cancels the attempt, aiormq still says goodbye; with TLS and a
    # silent peer that would take half a minute more.
    cutting = asyncio.get_running_loop().call_later(
        address.timeout_s + _CUT_WITHIN_S, connection.abort
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
        cutting.cancel()
    return connection


def _client_name(purpose: Purpose) -> str:
    """Name the connection for whoever looks at the broker's list of them."""
    return f"bridge {purpose} ({socket.gethostname()}:{os.getpid()})"


def _advice(exc: BaseException, url: URL) -> str:
    """Say what is wrong and what to do about it."""
    # A plain AMQPConnectionError only wraps what happened; the cause tells.
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
            # aiormq takes a refused vhost for a wrong frame and drops the broker's words.
            (ConnectionClosed, InvalidFrameError),
            f"the broker closed it before the vhost {vhost!r} was open; does the vhost "
            "exist, may the user use it, is a limit of connections reached?",
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
