"""One wrapper around every call to the broker: what its library raises, in our words."""

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
    """The library waits for ever unless told otherwise."""
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
        # What aiormq gives those who wait when the peer hangs up between two frames.
        Exception(),
        # What it raises from a handshake that ends before the first frame.
        StopAsyncIteration(),
    ],
    ids=lambda raised: type(raised).__name__,
)
async def test_what_the_library_raises_is_an_unavailable_broker(
    raised: Exception,
) -> None:
    """The pump knows one word for it, and waits."""
    with pytest.raises(BrokerUnavailableError) as caught:
        async with broker_call("ack", timeout_s=1):
            raise raised

    assert caught.value.__cause__ is raised


async def test_a_cancellation_that_nobody_asked_for_is_a_lost_connection() -> None:
    """The library cancels those who wait when it gives up a silent peer (traps 1.1 row 4)."""
    given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    given_up.cancel()

    with pytest.raises(BrokerUnavailableError, match="connection was lost"):
        async with broker_call("ack", timeout_s=1):
            await given_up


async def test_a_cancellation_that_was_asked_for_stays_one() -> None:
    """A task that is told to stop must stop, not try again."""

    async def call() -> None:
        async with broker_call("ack", timeout_s=60):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(call())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("raised", [ValueError("a bug"), TopologyError("q", "p", "w")])
async def test_other_errors_are_left_alone(raised: Exception) -> None:
    """A bug is no outage, and a sentence for the operator is not to be wrapped."""
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
def test_a_failed_connect_says_what_to_do(raised: Exception, advice: str) -> None:
    """The operator reads one line, and the password is not in it."""
    text = _advice(raised, URL_WITH_SECRETS)

    assert advice in text
    assert "s3cret" not in text


def test_the_urls_are_not_in_what_is_printed_of_an_address() -> None:
    """They hold passwords, and dataclasses print themselves in tracebacks and logs."""
    assert "s3cret" not in repr(BrokerAddress((str(URL_WITH_SECRETS),)))


async def test_a_cancellation_that_the_library_loses_is_raised_when_its_call_is_over() -> (
    None
):
    """wait_for on Python 3.11 returns an answer that comes in the same moment instead."""
    reached: list[str] = []

    async def work() -> None:
        async with broker_call("test", timeout_s=5):
            # As wait_for does it: the answer counts, the cancellation is forgotten.
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        reached.append("behind the call")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert reached == []
