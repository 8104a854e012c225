"""
Fencing: a bridge stores nothing from a queue that another bridge consumes by now.

A bridge may freeze with deliveries in flight (SIGSTOP, a migrated machine, a network that
hangs) for so long that RabbitMQ gives its queue to another bridge. When it resumes, it
sends those deliveries to the store. Behind the messages that the other bridge has stored
meanwhile, they would break the order of their users, and messages without an id would be
stored twice.

Therefore every consumer has a fencing token, and a shared store refuses an append under a
smaller token than it has seen for the same queue. Tokens must grow in the order in which
consumers became active. A consumer that has a delivery is known to be active, so two steps
precede its first append:

1. The store issues a token, larger than all before it (`claim`).
2. The broker answers a question on the channel of the deliveries (`confirm`). If it does,
   it had not cut this consumer off when the token was issued, and any later consumer
   claims later. If it does not, this consumer is over, and its token is never used.

The claim alone excludes no bridge, because a bridge that resumes may claim late: only an
append under a confirmed token does. The two round trips happen once per consumer; in a
steady state a batch costs a few bytes more.

Two cases remain. If the frozen bridge appends before the first append of its successor,
the batch is stored; the successor repeats all of it and what follows, in order, as if the
first bridge had died between append and ack. And a RabbitMQ node that is cut off from the
others may answer with outdated facts: it may confirm a consumer that the others gave up
between its first delivery and its claim, which are milliseconds apart.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import structlog

from bridge.amqp.consume.consumer import Consumer
from bridge.amqp.consume.session import Batch
from bridge.core.fencing_token import FencingToken
from bridge.core.message import Message
from bridge.errors import OwnershipLostError
from bridge.inbox.redis.store import RedisInbox
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)


class Fencing:
    """Appends to a shared store under the fencing tokens of the consumers."""

    def __init__(self, inbox: RedisInbox, *, metrics: Metrics) -> None:
        self._inbox = inbox
        self._metrics = metrics
        self._confirmed: WeakKeyDictionary[Consumer, FencingToken] = WeakKeyDictionary()

    async def append(
        self, batch: Batch, messages: Sequence[Message]
    ) -> Sequence[int | None]:
        """
        Store messages of `batch`; see `append` of the store.

        Raises:
            OwnershipLostError: If another bridge has stored messages from one of its
                queues. Its consumer gives up; the session consumes that queue again.
            TransientError: If the store or the broker is away. The call may be repeated.

        Cancellation: as for the store's `append`.

        """
        tokens = [
            self._confirmed.get(consumer) or await self._claim(consumer)
            for consumer in batch.consumers
        ]
        try:
            return await self._inbox.append(messages, tokens=tokens)
        except OwnershipLostError as exc:
            log.warning(
                "intake.handed_over",
                queue=exc.queue,
                messages=len(messages),
                problem=str(exc),
            )
            self._metrics.handed_over.inc()
            # What else this consumer has in flight is too late as well, and has to return
            # to the queue. Nothing is known about the consumers of other queues.
            for consumer in batch.consumers:
                if consumer.queue == exc.queue:
                    consumer.give_up(str(exc))
            raise

    async def _claim(self, consumer: Consumer) -> FencingToken:
        token = await self._inbox.claim(consumer.queue)
        # In this order: a token issued after the broker's answer could be the larger one
        # although the queue was lost in between.
        await consumer.confirm()
        self._confirmed[consumer] = token
        return token
