"""
The exceptions that bridge raises. The type says what to do, the attributes say what happened.

    BridgeError
    ├─ ConfigError              the start is refused; exit code 2
    ├─ TransientError           may succeed later: wait and retry
    │  ├─ BrokerUnavailableError
    │  ├─ StoreUnavailableError
    │  │  └─ StoreInUseError
    │  ├─ RevocationsFullError
    │  ├─ KeysUnavailableError
    │  └─ OperatorUnreachableError
    ├─ StaleBatchError          the broker redelivers the batch: drop it
    │  └─ OwnershipLostError    another bridge consumes the queue now
    ├─ TopologyError            an exchange or queue of bridge has other properties; exit code 1
    ├─ ShardsError              the number of shards cannot be changed
    ├─ PublishRefusedError      the broker does not accept the message
    ├─ OperatorRefusedError     the operator API refused a command
    ├─ MigrationRefusedError    an inbox cannot be migrated
    ├─ WorkersFailedError       a worker process cannot be kept running
    ├─ PrivateNodeError         the RabbitMQ node of the demo and the tests failed
    └─ ClientError              reported to one client, with a code

A permanent fault of a message is not an exception: parsing returns a `Rejection`
(core/message.py), because a bad message is an ordinary outcome.

The fields of an error are positional arguments, because `pickle` and `copy` recreate an
exception from the arguments that it was made with.
"""

import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bridge.enums import EventError, Refusal


class BridgeError(Exception):
    """The base of all errors that bridge raises on purpose."""


class ConfigError(BridgeError):
    """The settings do not allow a start; `problems` has one line for each problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


class TransientError(BridgeError):
    """A peer is unavailable; the same call may succeed later."""


@dataclass(eq=False)
class BrokerUnavailableError(TransientError):
    """RabbitMQ cannot be reached, or the connection was lost during a call."""

    doing: str
    problem: str

    def __str__(self) -> str:
        return f"{self.doing}: {self.problem}"


@dataclass(eq=False)
class StoreUnavailableError(TransientError):
    """The inbox store cannot be read or written."""

    store: str
    problem: str

    def __str__(self) -> str:
        return f"inbox {self.store}: {self.problem}"


class StoreInUseError(StoreUnavailableError):
    """Another bridge has opened the inbox store."""


@dataclass(eq=False)
class RevocationsFullError(TransientError):
    """So many revocations are in force that no further one is accepted."""

    count: int

    def __str__(self) -> str:
        return (
            f"{self.count} revocations are in force, which is the limit; "
            "there is room again when some of them end"
        )


@dataclass(eq=False)
class KeysUnavailableError(TransientError):
    """The key that checks a token is unknown and cannot be fetched now."""

    problem: str

    def __str__(self) -> str:
        return f"the key set at BRIDGE_JWKS_URL cannot be fetched: {self.problem}"


@dataclass(eq=False)
class OperatorUnreachableError(TransientError):
    """No bridge answers at the operator URL, or it cannot reach its own peers."""

    url: str
    problem: str

    def __str__(self) -> str:
        return f"the bridge at {self.url}: {self.problem}"


@dataclass(eq=False)
class OperatorRefusedError(BridgeError):
    """The operator API answered with an error status."""

    status: int
    detail: str

    def __str__(self) -> str:
        return self.detail


class StaleBatchError(BridgeError):
    """The channel that delivered a batch is closed; the broker redelivers it."""

    def __str__(self) -> str:
        return "the channel of these deliveries is closed; the broker redelivers them"


@dataclass(eq=False)
class OwnershipLostError(StaleBatchError):
    """Another bridge consumes the queue of a batch; the store refused the whole batch."""

    queue: str

    def __str__(self) -> str:
        return f"another bridge consumes queue {self.queue} now and receives these deliveries"


@dataclass(eq=False)
class TopologyError(BridgeError):
    """An exchange or queue exists with other properties than the bridge needs."""

    name: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}; {self.fix}"


class ShardsError(BridgeError):
    """The number of shards cannot be changed, or not now; the text says why."""


@dataclass(eq=False)
class PublishRefusedError(BridgeError):
    """The broker answered a publish with a return or a nack."""

    exchange: str
    problem: str

    def __str__(self) -> str:
        return f"publish to {self.exchange}: {self.problem}"


@dataclass(eq=False)
class MigrationRefusedError(BridgeError):
    """An inbox cannot be migrated; source and target are unchanged."""

    store: str
    problem: str

    def __str__(self) -> str:
        return f"inbox {self.store}: {self.problem}"


@dataclass(eq=False)
class WorkersFailedError(BridgeError):
    """A worker process cannot be kept running; `code` is the exit status of the bridge."""

    code: int
    problem: str

    def __str__(self) -> str:
        return self.problem


@dataclass(eq=False)
class PrivateNodeError(BridgeError):
    """The private RabbitMQ node of the demo and the tests is not installed or failed."""

    problem: str
    log_tail: str = ""

    def __str__(self) -> str:
        if not self.log_tail:
            return self.problem
        return f"{self.problem}; the end of its log:\n{self.log_tail}"


class ClientError(BridgeError):
    """A request of one client was refused; only that client is notified."""


@dataclass(eq=False)
class RefusedError(ClientError):
    """The connect of a window was refused."""

    code: Refusal
    detail: str = ""

    def __str__(self) -> str:
        return self.detail or self.code.explanation


@dataclass(eq=False)
class EventRefusedError(ClientError):
    """An event of a window was refused; the reply has the code."""

    code: EventError
    detail: str

    def __str__(self) -> str:
        return self.detail


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """
    Return the first error inside `group`, at any depth.

    When the failure of one task cancels its siblings, that error is the cause.
    """
    failure: BaseException = group
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


def connection_problem(exc: BaseException) -> str:
    """
    Return why a connection failed, in words for an operator.

    The text contains no URL, because a URL may contain a password.

    Args:
        exc: An error of a socket, or of an HTTP library that wraps one.

    """
    # aiohttp keeps the error of the socket in an attribute, and its own text is for developers.
    cause = getattr(exc, "certificate_error", None) or getattr(exc, "os_error", exc)
    if "Connect call failed" in str(
        cause
    ):  # asyncio joins the errors of several addresses
        return _REFUSED
    for kind, problem in _CONNECTION_PROBLEMS:
        if isinstance(cause, kind):
            return problem
    match cause:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {cause.verify_message}"
        case ssl.SSLError():
            return f"TLS failed: {cause.reason or cause.strerror}"
        case OSError():
            return (cause.strerror or str(cause)).lower()
        case _:
            # Of aiohttp's other errors, these two mean that an answer ended early.
            is_cut = type(exc).__name__ in {
                "ServerDisconnectedError",
                "ClientPayloadError",
            }
            return _CLOSED if is_cut else "the answer is not valid HTTP"


_REFUSED: Final = "connection refused; no program listens there"
_CLOSED: Final = "the other side closed the connection"
_CONNECTION_PROBLEMS: Final = (
    (TimeoutError, "no answer in time"),
    (socket.gaierror, "no such host; check the name"),
    (ConnectionRefusedError, _REFUSED),
    (ConnectionResetError, _CLOSED),
)
