"""The names of bridge's exchanges and queues."""

from dataclasses import dataclass
from typing import Final

DEFAULT_NAMESPACE: Final = "bridge"
SHARDS_MAX: Final = 64
UNROUTED: Final = "unrouted"


@dataclass(frozen=True, slots=True)
class BrokerNames:
    """The names of one namespace."""

    namespace: str = DEFAULT_NAMESPACE

    @property
    def messages(self) -> str:
        """The topic exchange that workers publish to."""
        return f"{self.namespace}.messages"

    @property
    def messages_fallback(self) -> str:
        """The alternate exchange of `messages`, for messages that come before its binding."""
        return f"{self.messages}.fallback"

    @property
    def requests(self) -> str:
        """The topic exchange of requests from pages to workers; only bridge publishes to it."""
        return f"{self.namespace}.requests"

    @property
    def events(self) -> str:
        """The topic exchange of events for workers; only bridge publishes to it."""
        return f"{self.namespace}.events"

    @property
    def inbound(self) -> str:
        """The exchange in front of the inbound queues; retries return through it."""
        return f"{self.namespace}.inbound"

    def inbound_queue(self, shard: int = 0, *, shards: int = 1) -> str:
        """The queue of one shard out of `shards`; one active bridge consumes it.

        A single shard has an exchange of the same name in front of its queue.
        The number of shards is part of the name. When it changes, the old queues are
        emptied before the new ones are consumed, so the two sets must not mix.
        """
        of = f"of{shards}" if shards > 1 else ""
        return f"{self.namespace}.inbound.{shard}{of}"

    def inbound_queues(self, shards: int = 1) -> tuple[str, ...]:
        """The queues of all shards."""
        return tuple(self.inbound_queue(n, shards=shards) for n in range(shards))

    def shards_entry(self, shards: int) -> str:
        """The exchange that distributes users over `shards` queues."""
        return f"{self.namespace}.inbound.of{shards}"

    @property
    def bridges(self) -> str:
        """A queue that stays empty; its consumers are the bridges that share the shards."""
        return f"{self.namespace}.bridges"

    def lock_queue(self, kind: str) -> str:
        """The queue whose one message is the lock of this kind (see amqp/ownership.py)."""
        return f"{self.namespace}.{kind}"

    def retry_queue(self, delay_ms: int) -> str:
        """The queue in which a message waits `delay_ms` before its next attempt.

        The delay is part of the name: RabbitMQ refuses to declare an existing queue
        with another TTL. A changed BRIDGE_RETRY_DELAYS therefore makes new queues, and
        the old ones empty themselves.
        """
        return f"{self.namespace}.retry.{delay_ms}"

    @property
    def control(self) -> str:
        """The topic exchange of commands of the back end, and the queue behind it."""
        return f"{self.namespace}.control"

    @property
    def unrouted(self) -> str:
        """The exchange and the queue of messages that no inbound queue received."""
        return f"{self.namespace}.{UNROUTED}"

    @property
    def dead(self) -> str:
        """The exchange and the queue of dead letters."""
        return f"{self.namespace}.dead"
