"""Calls to the broker: deadlines, and the translation of library errors."""

import asyncio
import socket
import ssl
from contextlib import suppress

import pytest
from aiormq.exceptions import (
    AMQPConnectionError,
    ChannelInvalidStateError,
    ChannelPreconditionFailed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from yarl import URL

from bridge.amqp.connection import BrokerAddress, _advice, broker_call
from bridge.errors import BrokerUnavailableError, TopologyError

URL_WITH_SECRETS = URL("amqp://ann:s3cret@rabbit:5672/shop?certfile=/c.pem")


async def test_a_call_that_is_never_answered_ends_at_its_deadline() -> None:
    """The library itself would wait forever."""
    with pytest.raises(
        BrokerUnavailableError, match=r"publish: no answer within 0\.01 s"
    ):
        async with broker_call("publish", timeout_s=0.01):
            await asyncio.Event().wait()


@pytest.mark.parametrize(
    "raised",
    [
        AMQPConnectionError("gone"),
        ChannelPreconditionFailed("double ack"),
        ChannelInvalidStateError("closed"),
        ConnectionResetError(104, "reset"),
        # aiormq raises this in waiting calls if the peer closes between two frames.
        Exception(),
        # It raises this if a handshake ends before the first frame.
        StopAsyncIteration(),
    ],
    ids=lambda raised: type(raised).__name__,
)
async def test_errors_of_the_library_become_an_unavailable_broker(
    raised: Exception,
) -> None:
    """The pipeline waits on this error, whatever the cause."""
    with pytest.raises(BrokerUnavailableError) as caught:
        async with broker_call("ack", timeout_s=1):
            raise raised

    assert caught.value.__cause__ is raised


async def test_a_cancelled_error_without_a_cancellation_is_a_lost_connection() -> None:
    """The library raises it in waiting calls when it gives up a silent peer."""
    given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    given_up.cancel()

    with pytest.raises(BrokerUnavailableError, match="connection was lost"):
        async with broker_call("ack", timeout_s=1):
            await given_up


async def test_a_real_cancellation_is_passed_on() -> None:
    """A cancelled task must end, not try again."""

    async def call() -> None:
        async with broker_call("ack", timeout_s=60):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(call())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("raised", [ValueError("a bug"), TopologyError("q", "p", "w")])
async def test_other_errors_are_passed_on_unchanged(raised: Exception) -> None:
    """A bug is no outage, and an explanation for the operator stays as it is."""
    with pytest.raises(type(raised)):
        async with broker_call("ack", timeout_s=1):
            raise raised


def wrapped(cause: Exception) -> AMQPConnectionError:
    error = AMQPConnectionError(*cause.args)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("raised", "advice"),
    [
        (
            wrapped(ConnectionRefusedError(111, "no")),
            "is RabbitMQ running at rabbit:5672?",
        ),
        (
            wrapped(OSError("Multiple exceptions: [Errno 111] Connect call failed")),
            "is RabbitMQ running at rabbit:5672?",
        ),
        (wrapped(socket.gaierror(-2, "unknown")), "check the name 'rabbit'"),
        (wrapped(OSError(113, "No route to host")), "No route to host"),
        (
            ProbableAuthenticationError("ACCESS_REFUSED"),
            "check the user and the password",
        ),
        (InvalidFrameError("got Connection.Close"), "before the vhost 'shop' was open"),
        (wrapped(ssl.SSLCertVerificationError(1, "self-signed")), "set cafile="),
        (wrapped(ssl.SSLError(1, "WRONG_VERSION")), "does the port speak TLS"),
        (
            wrapped(asyncio.IncompleteReadError(b"", 1)),
            "is this RabbitMQ's AMQP port",
        ),
    ],
)
def test_a_failed_connect_comes_with_advice(raised: Exception, advice: str) -> None:
    """The operator reads one line, and the password is not in it."""
    text = _advice(raised, URL_WITH_SECRETS)

    assert advice in text
    assert "s3cret" not in text


def test_the_repr_of_an_address_contains_no_url() -> None:
    """URLs contain passwords, and tracebacks and logs print dataclasses."""
    assert "s3cret" not in repr(BrokerAddress((str(URL_WITH_SECRETS),)))


@pytest.mark.parametrize(
    "raised", [None, AMQPConnectionError("gone"), Exception(), TimeoutError()]
)
async def test_a_cancellation_that_the_library_loses_is_raised_after_the_call(
    raised: Exception | None,
) -> None:
    """On Python 3.11, wait_for drops a cancellation that is as late as its answer or error."""
    reached: list[str] = []

    async def work() -> None:
        try:
            async with broker_call("test", timeout_s=5):
                # Like wait_for: the result counts, the cancellation is dropped.
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                if raised is not None:
                    raise raised
        except BrokerUnavailableError:
            reached.append("as if the broker alone had failed")
        reached.append("after the call")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert reached == []
