"""A table of all errors and their texts."""

import copy
import pickle

import pytest

from bridge import errors
from bridge.enums import EventError, Refusal
from bridge.errors import (
    BridgeError,
    BrokerUnavailableError,
    ClientError,
    ConfigError,
    EventRefusedError,
    KeysUnavailableError,
    MigrationRefusedError,
    OperatorRefusedError,
    OperatorUnreachableError,
    OwnershipLostError,
    PrivateNodeError,
    PublishRefusedError,
    RefusedError,
    RevocationsFullError,
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
        RevocationsFullError(100_000),
        "100000 revocations are in force, which is the limit; there is room again when "
        "some of them end",
    ),
    (
        KeysUnavailableError("it is not JSON"),
        "the key set at BRIDGE_JWKS_URL cannot be fetched: it is not JSON",
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
        OwnershipLostError("bridge.inbound.0"),
        "another bridge consumes queue bridge.inbound.0 now and receives these deliveries",
    ),
    (
        StaleBatchError(),
        "the channel of these deliveries is closed; the broker redelivers them",
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
        MigrationRefusedError("redis://x", "it is not empty"),
        "inbox redis://x: it is not empty",
    ),
    (WorkersFailedError(1, "worker 0 ended"), "worker 0 ended"),
    (ShardsError("a change is running"), "a change is running"),
    (PrivateNodeError("erl is missing"), "erl is missing"),
    (
        PrivateNodeError("it stopped", "line 1\nline 2"),
        "it stopped; the end of its log:\nline 1\nline 2",
    ),
    (RefusedError(Refusal.TOKEN_EXPIRED), Refusal.TOKEN_EXPIRED.explanation),
    (RefusedError(Refusal.TOKEN_INVALID, "claim sub is empty"), "claim sub is empty"),
    (
        EventRefusedError(EventError.NOT_OPEN, "join needs open mode"),
        "join needs open mode",
    ),
]
# Base classes, which are never raised themselves.
BASES = {BridgeError, TransientError, ClientError}


@pytest.mark.parametrize(("error", "text"), TEXTS, ids=lambda v: type(v).__name__)
def test_each_error_says_what_happened(error: BridgeError, text: str) -> None:
    """Operators and the authors of pages read these texts."""
    assert str(error) == text


@pytest.mark.parametrize("error", [e for e, _ in TEXTS], ids=lambda e: type(e).__name__)
def test_each_error_survives_being_copied_and_pickled(error: BridgeError) -> None:
    """Exception groups copy their errors; process pools pickle them."""
    for duplicate in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 - our own
        assert type(duplicate) is type(error)
        assert str(duplicate) == str(error)
        assert vars(duplicate) == vars(error)


def test_the_table_contains_every_error() -> None:
    """A new error needs a text."""
    declared = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, BridgeError)
    }

    assert declared - BASES == {type(error) for error, _ in TEXTS}


def test_the_base_class_says_what_to_do() -> None:
    """Callers catch the base class in order to wait, or to notify one client."""
    transient = {
        BrokerUnavailableError,
        StoreUnavailableError,
        StoreInUseError,
        RevocationsFullError,
        KeysUnavailableError,
        OperatorUnreachableError,
    }

    for error, _ in TEXTS:
        assert isinstance(error, TransientError) == (type(error) in transient)
        is_for_a_client = isinstance(error, RefusedError | EventRefusedError)
        assert isinstance(error, ClientError) == is_for_a_client
