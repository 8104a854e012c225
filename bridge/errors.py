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
"""

from collections.abc import Sequence

from bridge.names import EventError, Refusal


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


class BrokerUnavailableError(TransientError):
    """RabbitMQ cannot be reached, or went away in the middle of a call."""

    def __init__(self, doing: str, problem: str) -> None:
        super().__init__(doing, problem)
        self.doing = doing
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.doing}: {self.problem}"


class StoreUnavailableError(TransientError):
    """The inbox store cannot be read or written now."""

    def __init__(self, store: str, problem: str) -> None:
        super().__init__(store, problem)
        self.store = store
        self.problem = problem

    def __str__(self) -> str:
        return f"inbox {self.store}: {self.problem}"


class StoreInUseError(StoreUnavailableError):
    """Another bridge has the inbox store open."""


class KeysUnavailableError(TransientError):
    """The key set that tokens are checked with cannot be fetched now."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"the key set at BRIDGE_JWKS_URL cannot be had: {self.problem}"


class OperatorUnreachableError(TransientError):
    """No bridge answers at the operator's address, or it can reach its peers no more."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(url, problem)
        self.url = url
        self.problem = problem

    def __str__(self) -> str:
        return f"the bridge at {self.url}: {self.problem}"


class OperatorRefusedError(BridgeError):
    """The bridge did not do what a command asked for."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class StaleBatchError(BridgeError):
    """The session that brought a batch has ended; the broker delivers it again."""

    def __str__(self) -> str:
        return "the connection that brought these deliveries is gone; they come again"


class HandedOverError(StaleBatchError):
    """Another bridge has the queue that a batch came from; the store took nothing of it."""

    def __init__(self, queue: str) -> None:
        super().__init__(queue)
        self.queue = queue

    def __str__(self) -> str:
        return f"another bridge has queue {self.queue} by now; what is in hand comes to that one"


class TopologyError(BridgeError):
    """The broker holds an exchange or queue of our name that is not as it must be."""

    def __init__(self, name: str, problem: str, way_out: str) -> None:
        super().__init__(name, problem, way_out)
        self.name = name
        self.problem = problem
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}; {self.way_out}"


class ShardsError(BridgeError):
    """The number of shards cannot be changed to that, or not now; the text says why."""


class PublishRefusedError(BridgeError):
    """The broker answered a publish with a return or a nack."""

    def __init__(self, exchange: str, problem: str) -> None:
        super().__init__(exchange, problem)
        self.exchange = exchange
        self.problem = problem

    def __str__(self) -> str:
        return f"publish to {self.exchange}: {self.problem}"


class CarryRefusedError(BridgeError):
    """An inbox cannot be carried over as things are; what is there was left alone."""

    def __init__(self, store: str, problem: str) -> None:
        super().__init__(store, problem)
        self.store = store
        self.problem = problem

    def __str__(self) -> str:
        return f"inbox {self.store}: {self.problem}"


class WorkersFailedError(BridgeError):
    """A worker of several cannot be kept running; `code` is the bridge's exit status."""

    def __init__(self, code: int, problem: str) -> None:
        super().__init__(code, problem)
        self.code = code
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class LocalNodeError(BridgeError):
    """The private RabbitMQ node of the demo and the tests is missing or failed."""

    def __init__(self, problem: str, log_tail: str = "") -> None:
        super().__init__(problem, log_tail)
        self.problem = problem
        self.log_tail = log_tail

    def __str__(self) -> str:
        if not self.log_tail:
            return self.problem
        return f"{self.problem}; the end of its log:\n{self.log_tail}"


class ClientError(BridgeError):
    """One client asked for something it cannot have; only that client is told."""


class RefusedError(ClientError):
    """A window is not let in."""

    def __init__(self, code: Refusal, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return self.detail or self.code.explanation


class EventRefusedError(ClientError):
    """An event of a window is answered with a code instead of being done."""

    def __init__(self, code: EventError, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

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
