"""
The tree of errors: the type says what to do, the attributes say what happened.

    BridgeError
    ├─ ConfigError       the start is refused; exit code 2
    ├─ TransientError    may succeed later: wait and try again
    │  ├─ BrokerUnavailableError
    │  ├─ StoreUnavailableError
    │  │  └─ StoreInUseError
    │  ├─ KeysUnavailableError
    │  └─ OperatorUnreachableError
    ├─ StaleBatchError   the deliveries in hand will come again: drop them
    │  └─ HandedOverError  to another bridge, which has their queue by now
    ├─ TopologyError     the broker has something else under our name; exit code 1
    ├─ PublishRefusedError  the broker will not take this message
    ├─ OperatorRefusedError the bridge's own API says no to a command
    ├─ CarryRefusedError  an inbox is not carried over into what is there already
    ├─ WorkersFailedError  a worker of several cannot be kept running
    ├─ LocalNodeError    the private node of demo and tests does not start
    └─ ClientError       told to one client, with a code

Permanent faults of a message are no exceptions: parsing returns a `Rejection`
(core/message.py), because a bad message is an ordinary outcome.

The fields of an error are given by position: an exception keeps what it is made with, and
pickle and copy make it from that once more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bridge.enums import EventError, Refusal


class BridgeError(Exception):
    """The root: everything that the bridge raises on purpose."""


class ConfigError(BridgeError):
    """The settings do not allow a start."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


class TransientError(BridgeError):
    """A peer is away for now; the same call may succeed later."""


@dataclass(eq=False)
class BrokerUnavailableError(TransientError):
    """RabbitMQ cannot be reached, or went away in the middle of a call."""

    doing: str
    problem: str

    def __str__(self) -> str:
        return f"{self.doing}: {self.problem}"


@dataclass(eq=False)
class StoreUnavailableError(TransientError):
    """The inbox store cannot be read or written now."""

    store: str
    problem: str

    def __str__(self) -> str:
        return f"inbox {self.store}: {self.problem}"


class StoreInUseError(StoreUnavailableError):
    """Another bridge has the inbox store open."""


@dataclass(eq=False)
class KeysUnavailableError(TransientError):
    """The key set that tokens are checked with cannot be fetched now."""

    problem: str

    def __str__(self) -> str:
        return f"the key set at BRIDGE_JWKS_URL cannot be had: {self.problem}"


@dataclass(eq=False)
class OperatorUnreachableError(TransientError):
    """No bridge answers at the operator's address, or it can reach its peers no more."""

    url: str
    problem: str

    def __str__(self) -> str:
        return f"the bridge at {self.url}: {self.problem}"


@dataclass(eq=False)
class OperatorRefusedError(BridgeError):
    """The bridge did not do what a command asked for."""

    status: int
    detail: str

    def __str__(self) -> str:
        return self.detail


class StaleBatchError(BridgeError):
    """The session that brought a batch has ended; the broker delivers it again."""

    def __str__(self) -> str:
        return "the connection that brought these deliveries is gone; they come again"


@dataclass(eq=False)
class HandedOverError(StaleBatchError):
    """Another bridge has the queue that a batch came from; the store took nothing of it."""

    queue: str

    def __str__(self) -> str:
        return f"another bridge has queue {self.queue} by now; what is in hand comes to that one"


@dataclass(eq=False)
class TopologyError(BridgeError):
    """The broker holds an exchange or queue of our name that is not as it must be."""

    name: str
    problem: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}; {self.way_out}"


class ShardsError(BridgeError):
    """The number of shards cannot be changed to that, or not now; the text says why."""


@dataclass(eq=False)
class PublishRefusedError(BridgeError):
    """The broker answered a publish with a return or a nack."""

    exchange: str
    problem: str

    def __str__(self) -> str:
        return f"publish to {self.exchange}: {self.problem}"


@dataclass(eq=False)
class CarryRefusedError(BridgeError):
    """An inbox cannot be carried over as things are; what is there was left alone."""

    store: str
    problem: str

    def __str__(self) -> str:
        return f"inbox {self.store}: {self.problem}"


@dataclass(eq=False)
class WorkersFailedError(BridgeError):
    """A worker of several cannot be kept running; `code` is the bridge's exit status."""

    code: int
    problem: str

    def __str__(self) -> str:
        return self.problem


@dataclass(eq=False)
class LocalNodeError(BridgeError):
    """The private RabbitMQ node of the demo and the tests is missing or failed."""

    problem: str
    log_tail: str = ""

    def __str__(self) -> str:
        if not self.log_tail:
            return self.problem
        return f"{self.problem}; the end of its log:\n{self.log_tail}"


class ClientError(BridgeError):
    """One client asked for something it cannot have; only that client is told."""


@dataclass(eq=False)
class RefusedError(ClientError):
    """A window is not let in."""

    code: Refusal
    detail: str = ""

    def __str__(self) -> str:
        return self.detail or self.code.explanation


@dataclass(eq=False)
class EventRefusedError(ClientError):
    """An event of a window is answered with a code instead of being done."""

    code: EventError
    detail: str

    def __str__(self) -> str:
        return self.detail


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """
    Return the first error inside `group`, however deep.

    Where one task's failure ends its siblings, it is the one that says what happened.
    """
    failure: BaseException = group
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
