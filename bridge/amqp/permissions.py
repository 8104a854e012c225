"""
What the broker's user may do with what the bridge declares, found out without doing it.

AMQP has no question for it, so each right is asked for with a call that the broker checks
for permission first and that can have no effect after that: taking away a binding that
nobody has made, consuming or declaring with an argument of a type that is refused,
publishing with an expiration that is no number. RabbitMQ 3.10 looks at permission first in
each of them (rabbit_channel.erl; tried out there). Some calls end their channel, which the
broker's log tells as an error: one such line for each queue.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import aiormq
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionCommandInvalid,
)

from bridge.amqp.connection import BrokerConnection, broker_call, problem_text
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.refusals import is_no_such_type
from bridge.amqp.topology import (
    Binding,
    Exchange,
    Queue,
    Topology,
)
from bridge.core.broker_names import BrokerNames

_NOT_A_NUMBER: Final = "bridge check looks whether it may"

_Question = Callable[[aiormq.Channel], Awaitable[None]]


class Right(StrEnum):
    """What RabbitMQ grants by a pattern of names each."""

    CONFIGURE = "configure"
    WRITE = "write"
    READ = "read"


@dataclass(frozen=True, slots=True)
class Lack:
    """One right on one exchange or queue that the user needs and has not."""

    right: Right
    name: str


async def missing_rights(
    connection: BrokerConnection[FrameReader],
    wanted: Topology,
    *,
    undeclared: Sequence[Exchange | Queue],
    timeout_s: float,
) -> list[Lack]:
    """
    Say which rights are missing to declare `wanted`, consume, publish and redrive.

    Args:
        connection: Of the user; a channel of its own is used for each question.
        wanted: What has to be there; it need not be there yet.
        undeclared: What of it could not be declared in earnest: only then is the right to
            do so in question.
        timeout_s: For each single question.

    Raises:
        BrokerUnavailableError: If the broker is away or too slow.

    """
    asker = _Asker(connection, timeout_s=timeout_s)
    lacks = [
        Lack(Right.CONFIGURE, thing.name)
        for thing in undeclared
        if not await asker.may_configure(thing)
    ]
    lacks += [
        Lack(Right.WRITE, exchange.name)
        for exchange in wanted.exchanges
        if not await asker.may_write(exchange)
    ]
    for binding in wanted.bindings:
        lacks += await asker.lacks_to_bind(binding)
    lacks += [
        Lack(Right.READ, queue.name)
        for queue in wanted.queues
        if not await asker.may_read(queue)
    ]
    return list(dict.fromkeys(lacks))


async def may_configure_anything(
    connection: BrokerConnection[FrameReader], *, timeout_s: float
) -> bool:
    """Say whether the user may make things of names that nobody has thought of."""
    stranger = Queue(f"check-{secrets.token_hex(8)}", {})
    return await _Asker(connection, timeout_s=timeout_s).may_configure(stranger)


async def knows_type(
    connection: BrokerConnection[FrameReader],
    names: BrokerNames,
    exchange_type: str,
    *,
    timeout_s: float,
) -> bool:
    """
    Say whether the broker has exchanges of this type. If not, the connection may be gone.

    Asked with a declare that is refused for its argument, behind its type.
    """
    async with broker_call(f"ask for {exchange_type}", timeout_s=timeout_s):
        channel = await connection.open_channel(confirms=False)
        try:
            await channel.exchange_declare(
                f"{names.namespace}.check-{secrets.token_hex(8)}",
                exchange_type=exchange_type,
                durable=True,
                arguments={"alternate-exchange": 1},
            )
        except ConnectionCommandInvalid:
            return False
        except (ChannelPreconditionFailed, ChannelAccessRefused) as exc:
            return not is_no_such_type(problem_text(exc))
        await channel.close()
    return True


class _Asker:
    """Asks for one right after the other."""

    def __init__(
        self, connection: BrokerConnection[FrameReader], *, timeout_s: float
    ) -> None:
        self._connection = connection
        self._timeout_s = timeout_s

    async def may_configure(self, thing: Exchange | Queue) -> bool:
        async def declare(channel: aiormq.Channel) -> None:
            # The argument would have to be a name: what is not there is refused for it,
            # what is there for being different.
            if isinstance(thing, Exchange):
                await channel.exchange_declare(
                    thing.name,
                    exchange_type=thing.type,
                    durable=True,
                    arguments={"alternate-exchange": 1},
                )
            else:
                await channel.queue_declare(
                    thing.name, durable=True, arguments={"x-dead-letter-exchange": 1}
                )

        return await self._refusal(declare, f"look at {thing.name}") is None

    async def may_write(self, exchange: Exchange) -> bool:
        # Wants write and read, and leaves no trace; only if it is refused, the other way.
        if not await self.lacks_to_bind(Binding(exchange.name, exchange)):
            return True

        async def publish(channel: aiormq.Channel) -> None:
            properties = aiormq.spec.Basic.Properties(
                expiration=_NOT_A_NUMBER, user_id=_NOT_A_NUMBER
            )
            await channel.basic_publish(
                b"", exchange=exchange.name, properties=properties
            )
            await channel.basic_qos(prefetch_count=0)  # waits for the verdict

        return await self._refusal(publish, f"look at {exchange.name}") is None

    async def may_read(self, queue: Queue) -> bool:
        async def consume(channel: aiormq.Channel) -> None:
            async def never_called(_message: object) -> None: ...

            await channel.basic_consume(
                queue.name, never_called, arguments={"x-priority": _NOT_A_NUMBER}
            )

        return await self._refusal(consume, f"look at {queue.name}") is None

    async def lacks_to_bind(self, binding: Binding) -> Sequence[Lack]:
        """Write on where it leads, read on where it comes from; the first that lacks."""
        target, key = binding.destination, secrets.token_hex(8)

        async def unbind(channel: aiormq.Channel) -> None:
            if isinstance(target, Exchange):
                await channel.exchange_unbind(target.name, binding.source, key)
            else:
                await channel.queue_unbind(target.name, binding.source, key)

        refusal = await self._refusal(unbind, f"look at the binding of {target.name}")
        if refusal is None:
            return ()
        is_target = f"{type(target).__name__.lower()} '{target.name}'" in refusal
        if is_target:
            return (Lack(Right.WRITE, target.name),)
        return (Lack(Right.READ, binding.source),)

    async def _refusal(self, ask: _Question, doing: str) -> str | None:
        """Return what the broker says if the right is missing; `None` if it is there."""
        async with broker_call(doing, timeout_s=self._timeout_s):
            channel = await self._connection.open_channel(confirms=False)
            try:
                await ask(channel)
            except ChannelAccessRefused as exc:
                return problem_text(exc)
            except (ChannelPreconditionFailed, ChannelNotFoundEntity):
                return None  # permission was looked at first
            await channel.close()
        return None
