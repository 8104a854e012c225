"""
What the record of a number of shards tells; shards.py says why it is an exchange.

AMQP has no way to ask for an argument: the refusal of another one tells it. RabbitMQ cuts
what it says at 255 bytes, and such a refusal holds the namespace three times and the vhost
once. Where it was cut before the number, the numbers are tried one after the other: the
right one is not refused. Each that is writes a line into the broker's log.
"""

from collections.abc import Sequence

from aiormq.exceptions import ChannelPreconditionFailed

from bridge.amqp.connection import BrokerConnection, broker_call
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.refusals import CUT, INEQUIVALENT, plain
from bridge.amqp.topology import Arguments
from bridge.errors import BrokerUnavailableError


async def number_led_to(
    connection: BrokerConnection[FrameReader],
    exchange: str,
    choices: Sequence[Arguments],
    *,
    refusal: str,
    timeout_s: float,
) -> int:
    """
    Return the place, from 1, of the arguments among `choices` that `exchange` has.

    Args:
        connection: Lives on.
        exchange: A fanout exchange, which is there.
        choices: One string argument each.
        refusal: What the broker said to another one.
        timeout_s: For each single call to the broker.

    Raises:
        BrokerUnavailableError: If it has none of them, or the broker is away.

    """
    found = INEQUIVALENT.search(refusal)
    theirs = plain(found["theirs"]) if found else ""
    for place, arguments in enumerate(choices, 1):
        if theirs in arguments.values():
            return place
    if refusal.endswith(CUT):
        for place, arguments in enumerate(choices, 1):
            if await _has(connection, exchange, arguments, timeout_s=timeout_s):
                return place
    raise BrokerUnavailableError("read the number of shards", f"it says {refusal!r}")


async def _has(
    connection: BrokerConnection[FrameReader],
    exchange: str,
    arguments: Arguments,
    *,
    timeout_s: float,
) -> bool:
    async with broker_call(f"look at {exchange}", timeout_s=timeout_s):
        channel = await connection.open_channel(confirms=False)
        try:
            await channel.exchange_declare(
                exchange,
                exchange_type="fanout",
                durable=True,
                arguments=dict(arguments),
            )
        except ChannelPreconditionFailed:
            return False
        await channel.close()
    return True
