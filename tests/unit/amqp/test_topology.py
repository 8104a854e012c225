"""The topology as data: what versions from 3.10 to 4.x accept, and what must not be lost."""

import pytest
from aiormq.exceptions import ChannelPreconditionFailed

from bridge.amqp.topology import Exchange, Queue, _different, topology
from bridge.core.broker_names import BrokerNames

NAMES = BrokerNames("shop.test")
WANTED = topology(NAMES, (0.05, 1.0, 1.0, 60.0))
QUEUES = {queue.name: queue.arguments for queue in WANTED.queues}


def test_each_delay_has_one_waiting_queue_whatever_is_written_twice() -> None:
    """The delay is part of the name, so equal delays are one queue."""
    waiting = [name for name in QUEUES if ".retry." in name]

    assert waiting == [
        "shop.test.retry.50",
        "shop.test.retry.1000",
        "shop.test.retry.60000",
    ]
    assert QUEUES["shop.test.retry.50"]["x-message-ttl"] == 50


@pytest.mark.parametrize("name", QUEUES)
def test_every_queue_is_a_quorum_queue_with_a_limit_of_its_own(name: str) -> None:
    """RabbitMQ 4 drops after 20 returns by default, and each lost connection is one."""
    assert QUEUES[name]["x-queue-type"] == "quorum"
    assert QUEUES[name]["x-delivery-limit"] == 1_000_000


@pytest.mark.parametrize("name", [name for name in QUEUES if name != NAMES.dead])
def test_what_leaves_a_queue_by_itself_is_handed_over_with_confirms(name: str) -> None:
    """Without reject-publish the broker falls back to at-most-once with a log line."""
    arguments = QUEUES[name]

    assert arguments["x-dead-letter-strategy"] == "at-least-once"
    assert arguments["x-overflow"] == "reject-publish"
    assert "x-dead-letter-routing-key" not in arguments  # the user stays the key


def test_dead_letters_stay_until_an_operator_moves_them() -> None:
    """Whatever is not delivered is accounted for."""
    assert "x-message-ttl" not in QUEUES[NAMES.dead]
    assert "x-dead-letter-exchange" not in QUEUES[NAMES.dead]


def test_every_binding_joins_what_is_declared() -> None:
    """A name that nobody declares would be a 404 at start."""
    exchanges = {exchange.name for exchange in WANTED.exchanges}
    declared = [*WANTED.exchanges, *WANTED.queues]

    assert all(binding.source in exchanges for binding in WANTED.bindings)
    assert all(binding.destination in declared for binding in WANTED.bindings)


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (
            "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost "
            "'/': received '1000' but current is '2000'",
            "queue q: has x-message-ttl = 2000, the bridge needs 1000; "
            "drain and delete the queue, or set another BRIDGE_NAMESPACE",
        ),
        (
            "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost "
            "'/': received the value 'quorum' of type 'longstr' but current is none",
            "queue q: has x-queue-type = none, the bridge needs quorum; "
            "drain and delete the queue, or set another BRIDGE_NAMESPACE",
        ),
        (
            "PRECONDITION_FAILED - something new",
            "queue q: PRECONDITION_FAILED - something new; "
            "drain and delete the queue, or set another BRIDGE_NAMESPACE",
        ),
    ],
)
def test_a_difference_is_one_sentence(reply: str, sentence: str) -> None:
    """The operator needs the queue, the argument, both values and the way out."""
    assert str(_different(Queue("q", {}), ChannelPreconditionFailed(reply))) == sentence


def test_an_exchange_that_differs_has_its_own_way_out() -> None:
    """An exchange holds nothing that would have to be drained."""
    reply = (
        "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'e' in vhost '/': "
        "received 'topic' but current is 'fanout'"
    )

    text = str(_different(Exchange("e", "topic"), ChannelPreconditionFailed(reply)))

    assert text.startswith(
        "exchange e: has type = fanout, the bridge needs topic; delete it"
    )
