"""
Find out which permissions the broker's user lacks, without changing anything.

AMQP has no call that returns permissions. So each one is probed with a call for which the
broker checks the permission first and that cannot succeed after that: removing a binding that
does not exist, consuming or declaring with an argument of a wrong type, publishing with an
expiration that is not a number. RabbitMQ 3.10 checks the permission first in each of them
(rabbit_channel.erl, and measured). Some calls close their channel, which RabbitMQ logs as an
error: one line per queue.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import aiormq
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionCommandInvalid,
)

from bridge.amqp.connection import (
    BrokerConnection,
    broker_call,
    ignore_message,
    problem_text,
)
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.refusals import is_no_such_type
from bridge.amqp.topology import (
    ALTERNATE,
    Binding,
    Exchange,
    Queue,
    Topology,
    send_declare,
    send_unbind,
)
from bridge.core.broker_names import BrokerNames

_NOT_A_NUMBER: Final = "bridge check probes permissions"

_Call = Callable[[aiormq.Channel], Awaitable[object]]


class Permission(StrEnum):
    """The three permissions of RabbitMQ; each is granted for a pattern of names."""

    CONFIGURE = "configure"
    WRITE = "write"
    READ = "read"


@dataclass(frozen=True, slots=True)
class MissingPermission:
    """A permission on an exchange or queue that the user needs and lacks."""

    permission: Permission
    name: str


async def missing_permissions(
    connection: BrokerConnection[FrameReader],
    wanted: Topology,
    *,
    undeclared: Sequence[Exchange | Queue],
    timeout_s: float,
) -> list[MissingPermission]:
    """
    Return the permissions that declaring `wanted`, consuming and publishing need.

    Args:
        connection: A connection of the user. Each probe opens a channel of its own.
        wanted: The topology that the bridge needs; it need not exist yet.
        undeclared: Its exchanges and queues that were not declared before. Declaring the
            others has shown that the user may configure them.
        timeout_s: The time limit of each probe.

    Raises:
        BrokerUnavailableError: If the broker is unreachable or too slow.

    """
    probe = _PermissionProbe(connection, timeout_s=timeout_s)
    missing = [
        MissingPermission(Permission.CONFIGURE, thing.name)
        for thing in undeclared
        if not await probe.may_configure(thing)
    ]
    missing += [
        MissingPermission(Permission.WRITE, exchange.name)
        for exchange in wanted.exchanges
        if not await probe.may_write(exchange)
    ]
    for binding in wanted.bindings:
        missing += await probe.missing_to_bind(binding)
    missing += [
        MissingPermission(Permission.READ, queue.name)
        for queue in wanted.queues
        if not await probe.may_read(queue)
    ]
    return list(dict.fromkeys(missing))


async def may_configure_anything(
    connection: BrokerConnection[FrameReader], *, timeout_s: float
) -> bool:
    """Return whether the user may declare any name, by the example of a random one."""
    random_queue = Queue(f"check-{secrets.token_hex(8)}", {})
    return await _PermissionProbe(connection, timeout_s=timeout_s).may_configure(
        random_queue
    )


async def may_reply(
    connection: BrokerConnection[FrameReader], *, timeout_s: float
) -> bool:
    """
    Return whether the user may publish to queues of others, through the default exchange.

    The probe is a message for a queue that does not exist, which the broker drops.

    Raises:
        BrokerUnavailableError: If the broker is unreachable or too slow.

    """
    nowhere = f"check-{secrets.token_hex(8)}"
    async with broker_call("probe replies", timeout_s=timeout_s):
        channel = await connection.open_channel(confirms=False)
        try:
            await channel.basic_publish(b"", exchange="", routing_key=nowhere)
            await channel.basic_qos(prefetch_count=0)  # its reply follows the refusal
        except ChannelAccessRefused:
            return False
        await channel.close()
    return True


async def knows_type(
    connection: BrokerConnection[FrameReader],
    names: BrokerNames,
    exchange_type: str,
    *,
    timeout_s: float,
) -> bool:
    """
    Return whether the broker supports this type of exchange.

    The probe is a declare that RabbitMQ refuses for its argument if it knows the type. If it
    does not, RabbitMQ before 4.0 closes the connection.

    Raises:
        BrokerUnavailableError: If the broker is unreachable or too slow.

    """
    async with broker_call(f"probe {exchange_type}", timeout_s=timeout_s):
        channel = await connection.open_channel(confirms=False)
        try:
            name = f"{names.namespace}.check-{secrets.token_hex(8)}"
            await send_declare(
                channel, _with_invalid_argument(Exchange(name, exchange_type))
            )
        except ConnectionCommandInvalid:
            return False
        except (ChannelPreconditionFailed, ChannelAccessRefused) as exc:
            return not is_no_such_type(problem_text(exc))
        await channel.close()
    return True


def _with_invalid_argument(thing: Exchange | Queue) -> Exchange | Queue:
    """Return `thing` with an argument of a wrong type, which RabbitMQ always refuses."""
    # For a new name RabbitMQ refuses the argument, for an existing one the difference.
    if isinstance(thing, Exchange):
        return replace(thing, arguments={ALTERNATE: 1}, alternate=None)
    return replace(thing, arguments={"x-dead-letter-exchange": 1})


class _PermissionProbe:
    """Probes permissions over one connection."""

    def __init__(
        self, connection: BrokerConnection[FrameReader], *, timeout_s: float
    ) -> None:
        self._connection = connection
        self._timeout_s = timeout_s

    async def may_configure(self, thing: Exchange | Queue) -> bool:
        invalid = _with_invalid_argument(thing)
        refusal = await self._refusal(
            lambda channel: send_declare(channel, invalid), f"probe {thing.name}"
        )
        return refusal is None

    async def may_write(self, exchange: Exchange) -> bool:
        # This probe needs write and read, and RabbitMQ logs nothing. The other one, which
        # closes the channel, is needed only if it fails.
        if not await self.missing_to_bind(Binding(exchange.name, exchange)):
            return True

        async def publish(channel: aiormq.Channel) -> None:
            properties = aiormq.spec.Basic.Properties(
                expiration=_NOT_A_NUMBER, user_id=_NOT_A_NUMBER
            )
            await channel.basic_publish(
                b"", exchange=exchange.name, properties=properties
            )
            await channel.basic_qos(prefetch_count=0)  # its reply follows the refusal

        return await self._refusal(publish, f"probe {exchange.name}") is None

    async def may_read(self, queue: Queue) -> bool:
        refusal = await self._refusal(
            lambda channel: channel.basic_consume(
                queue.name, ignore_message, arguments={"x-priority": _NOT_A_NUMBER}
            ),
            f"probe {queue.name}",
        )
        return refusal is None

    async def missing_to_bind(self, binding: Binding) -> Sequence[MissingPermission]:
        """Return the first permission that binding lacks: write on its destination or read on its source."""
        target = binding.destination
        absent = replace(binding, routing_key=secrets.token_hex(8))
        refusal = await self._refusal(
            lambda channel: send_unbind(channel, absent),
            f"probe the binding of {target.name}",
        )
        if refusal is None:
            return ()
        if f"{type(target).__name__.lower()} '{target.name}'" in refusal:
            return (MissingPermission(Permission.WRITE, target.name),)
        return (MissingPermission(Permission.READ, binding.source),)

    async def _refusal(self, call: _Call, doing: str) -> str | None:
        """Return the broker's refusal if the permission is missing, else ``None``."""
        async with broker_call(doing, timeout_s=self._timeout_s):
            channel = await self._connection.open_channel(confirms=False)
            try:
                await call(channel)
            except ChannelAccessRefused as exc:
                return problem_text(exc)
            except (ChannelPreconditionFailed, ChannelNotFoundEntity):
                return None  # the permission check comes first
            await channel.close()
        return None
