"""
Which type of exchange gives each user an inbound queue, and always the same one.

`x-modulus-hash` takes the n-th of its queues by the hash of the routing key. With Mnesia
they stand in the order of their keys and names. `x-consistent-hash` keeps a table of who was
bound in which order; with Mnesia that is gone when all nodes were down, and made anew in any
order, because RabbitMQ recovers bindings in parallel. Then most users belong to another
queue, and what waits for them in the old one is overtaken (docs/measurements.md; also when
two of three nodes are killed and the third pauses).

With Khepri it is the other way round: that table is kept, and what a modulus is taken of has
no certain order before 4.3, which sorts it, and has the type without a plugin
(rabbitmq-server pull request 15849, rabbitmq.com/docs/modulus-hash-exchange). A broker says
which version it is, and not which of the two it has: Mnesia before 4.0 and, unless somebody
enabled the other, before 4.2; Khepri in new ones of 4.2, and in all from 4.3 on.

A broker that has an exchange of either type keeps it: the other one would mean other queues.
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


def best_hash(version: str) -> str:
    """Return the type of exchange for a broker of this version, for example `3.10.8`."""
    match = _VERSION.match(version)
    number = (int(match[1]), int(match[2])) if match else (0, 0)
    return CONSISTENT if number == (4, 2) else MODULUS


def binding_key(hash_type: str, place: int) -> str:
    """
    Return the key by which the queue at `place` is bound.

    To a consistent hash it is a weight. A modulus ignores it; keys that differ give the
    tables of Khepri an order that hangs on what is in them, and not on when that came.
    """
    return str(place) if hash_type == MODULUS else "1"


def plugin_of(hash_type: str) -> str:
    """Return the plugin that an exchange of this type needs, where it is not built in."""
    return _PLUGINS.get(hash_type, _PLUGINS[MODULUS])


async def hash_of(
    connection: BrokerConnection[FrameReader], name: str, *, timeout_s: float
) -> str:
    """
    Return the type that the exchange `name` has, or the best one if it is not there.

    Raises:
        BrokerUnavailableError: If the broker is away or too slow.

    """
    best = best_hash(broker_identity(connection).version)
    async with broker_call(f"look at {name}", timeout_s=timeout_s):
        channel = await connection.open_channel(confirms=False)
        try:
            await channel.exchange_declare(name, passive=True)
        except ChannelNotFoundEntity:
            return best
        try:
            # AMQP has no way to ask for a type; the refusal of another one tells it.
            await channel.exchange_declare(name, exchange_type="fanout", durable=True)
        except ChannelPreconditionFailed as exc:
            found = INEQUIVALENT.search(problem_text(exc))
            return _known(plain(found["theirs"]) if found else "") or best
        await channel.close()
    return best


def _known(told: str) -> str | None:
    """Return the type that a broker told, in whole or cut."""
    begin = told.removesuffix(CUT)
    known = [
        kind
        for kind in _PLUGINS
        if kind == told or (begin != told and kind.startswith(begin))
    ]
    return known[0] if len(known) == 1 else None
