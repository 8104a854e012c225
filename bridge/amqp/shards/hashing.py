"""
The type of exchange that distributes users over shards, and always in the same way.

`x-modulus-hash` picks a queue by the hash of the routing key, modulo the number of queues.
With Mnesia the queues are in the order of their keys and names. `x-consistent-hash` keeps a
table in the order of bindings; with Mnesia RabbitMQ loses it when all nodes were down and
rebuilds it in any order, because it recovers bindings in parallel. Then most users move to
another queue, and new messages overtake those that wait in the old one (docs/decisions;
also if two of three nodes are killed and the third pauses).

With Khepri it is the other way round: the table is kept, and the queues of a modulus have no
certain order before 4.3, which sorts them and has the type without a plugin (rabbitmq-server
pull request 15849, rabbitmq.com/docs/modulus-hash-exchange). A broker reports its version, but
not which of the two it runs: Mnesia before 4.0 and, unless Khepri was enabled, before 4.2;
Khepri on new nodes of 4.2, and always from 4.3 on.

An existing exchange of either type is kept: the other type would move users to other queues.
"""

import re
from typing import Final

from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from bridge.amqp.connection import (
    BrokerConnection,
    broker_call,
    broker_identity,
    problem_text,
)
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.refusals import CUT, INEQUIVALENT, plain

MODULUS: Final = "x-modulus-hash"
CONSISTENT: Final = "x-consistent-hash"
_PLUGINS: Final = {
    MODULUS: "rabbitmq_sharding",
    CONSISTENT: "rabbitmq_consistent_hash_exchange",
}
_VERSION: Final = re.compile(r"(\d+)\.(\d+)")


def preferred_hash_type(version: str) -> str:
    """Return the type of exchange for a broker of this version, for example `3.10.8`."""
    match = _VERSION.match(version)
    number = (int(match[1]), int(match[2])) if match else (0, 0)
    return CONSISTENT if number == (4, 2) else MODULUS


def binding_key(hash_type: str, place: int) -> str:
    """
    Return the key by which the queue at `place` is bound.

    A consistent hash uses it as a weight. A modulus ignores it; distinct keys make the order in
    Khepri's tables depend on their content and not on the time of binding.
    """
    return str(place) if hash_type == MODULUS else "1"


def plugin_of(hash_type: str) -> str:
    """Return the plugin for exchanges of this type, on brokers that do not include it."""
    return _PLUGINS.get(hash_type, _PLUGINS[MODULUS])


async def exchange_hash_type(
    connection: BrokerConnection[FrameReader], name: str, *, timeout_s: float
) -> str:
    """
    Return the type of the exchange `name`, or the preferred type if it does not exist.

    Raises:
        BrokerUnavailableError: If the broker is unreachable or too slow.

    """
    preferred = preferred_hash_type(broker_identity(connection).version)
    async with broker_call(f"look up {name}", timeout_s=timeout_s):
        channel = await connection.open_channel(confirms=False)
        try:
            await channel.exchange_declare(name, passive=True)
        except ChannelNotFoundEntity:
            return preferred
        try:
            # AMQP cannot read the type, but the refusal of another type names it.
            await channel.exchange_declare(name, exchange_type="fanout", durable=True)
        except ChannelPreconditionFailed as exc:
            found = INEQUIVALENT.search(problem_text(exc))
            return _parse_type(plain(found["theirs"]) if found else "") or preferred
        await channel.close()
    return preferred


def _parse_type(text: str) -> str | None:
    """Return the type in a refusal, which RabbitMQ may have cut."""
    prefix = text.removesuffix(CUT)
    fitting = [
        hash_type
        for hash_type in _PLUGINS
        if hash_type == text or (prefix != text and hash_type.startswith(prefix))
    ]
    return fitting[0] if len(fitting) == 1 else None
