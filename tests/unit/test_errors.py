"""One table of all errors and what they say."""

import copy
import pickle

import pytest

from bridge import errors
from bridge.enums import EventError, Refusal
from bridge.errors import (
    BridgeError,
    BrokerUnavailableError,
    CarryRefusedError,
    ClientError,
    ConfigError,
    EventRefusedError,
    HandedOverError,
    KeysUnavailableError,
    LocalNodeError,
    OperatorRefusedError,
    OperatorUnreachableError,
    PublishRefusedError,
    RefusedError,
    ShardsError,
    StaleBatchError,
    StoreInUseError,
    StoreUnavailableError,
    TopologyError,
    TransientError,
    WorkersFailedError,
)

TEXTS: list[tuple[BridgeError, str]] = [
    (
        ConfigError(["BRIDGE_PORT: is wrong", "BRIDGE_HOST: too"]),
        "BRIDGE_PORT: is wrong\nBRIDGE_HOST: too",
    ),
    (
        BrokerUnavailableError("publish", "no confirm within 15 s"),
        "publish: no confirm within 15 s",
    ),
    (StoreUnavailableError("memory:", "full"), "inbox memory:: full"),
    (
        StoreInUseError("sqlite:x", "another bridge has it open"),
        "inbox sqlite:x: another bridge has it open",
    ),
    (
        KeysUnavailableError("it is not JSON"),
        "the key set at BRIDGE_JWKS_URL cannot be had: it is not JSON",
    ),
    (
        OperatorUnreachableError("http://127.0.0.1:8081", "connection refused"),
        "the bridge at http://127.0.0.1:8081: connection refused",
    ),
    (
        OperatorRefusedError(404, "there is no such dead letter"),
        "there is no such dead letter",
    ),
    (
        HandedOverError("bridge.inbound.0"),
        "another bridge has queue bridge.inbound.0 by now; what is in hand comes to that one",
    ),
    (
        StaleBatchError(),
        "the connection that brought these deliveries is gone; they come again",
    ),
    (
        TopologyError(
            "bridge.dead", "x-expires is 1, expected none", "delete the queue"
        ),
        "bridge.dead: x-expires is 1, expected none; delete the queue",
    ),
    (
        PublishRefusedError("bridge.messages", "no queue is bound"),
        "publish to bridge.messages: no queue is bound",
    ),
    (
        CarryRefusedError("redis://x", "it is not empty"),
        "inbox redis://x: it is not empty",
    ),
    (WorkersFailedError(1, "worker 0 ended"), "worker 0 ended"),
    (ShardsError("a change goes on"), "a change goes on"),
    (LocalNodeError("erl is missing"), "erl is missing"),
    (
        LocalNodeError("it stopped", "line 1\nline 2"),
        "it stopped; the end of its log:\nline 1\nline 2",
    ),
    (RefusedError(Refusal.TOKEN_EXPIRED), Refusal.TOKEN_EXPIRED.explanation),
    (RefusedError(Refusal.TOKEN_INVALID, "claim sub is empty"), "claim sub is empty"),
    (
        EventRefusedError(EventError.NOT_OPEN, "join needs open mode"),
        "join needs open mode",
    ),
]
# What other errors share; nobody raises these themselves.
KINDS = {BridgeError, TransientError, ClientError}


@pytest.mark.parametrize(("error", "text"), TEXTS, ids=lambda v: type(v).__name__)
def test_each_error_says_what_happened(error: BridgeError, text: str) -> None:
    """It is what an operator or the author of a page gets to see."""
    assert str(error) == text


@pytest.mark.parametrize("error", [e for e, _ in TEXTS], ids=lambda e: type(e).__name__)
def test_each_error_survives_being_copied_and_pickled(error: BridgeError) -> None:
    """Groups are split and tracebacks moved between processes that way."""
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 - our own
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_the_table_holds_every_error_of_the_house() -> None:
    """A new one needs its sentence."""
    declared = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, BridgeError)
    }

    assert declared - KINDS == {type(error) for error, _ in TEXTS}


def test_the_type_says_what_to_do() -> None:
    """Wait, or tell one client: callers catch the kind, not each one."""
    transient = {
        BrokerUnavailableError,
        StoreUnavailableError,
        StoreInUseError,
        KeysUnavailableError,
        OperatorUnreachableError,
    }

    for error, _ in TEXTS:
        assert isinstance(error, TransientError) == (type(error) in transient)
        is_for_a_client = isinstance(error, RefusedError | EventRefusedError)
        assert isinstance(error, ClientError) == is_for_a_client
