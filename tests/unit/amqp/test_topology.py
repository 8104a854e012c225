"""The declared topology: accepted by RabbitMQ 3.10 to 4.x, and no message is lost."""

import pytest
from aiormq.exceptions import ChannelPreconditionFailed

from bridge.amqp.topology import Exchange, Queue, _different, topology
from bridge.core.broker_names import BrokerNames

NAMES = BrokerNames("shop.test")
WANTED = topology(NAMES, (0.05, 1.0, 1.0, 60.0))
QUEUES = {queue.name: queue.arguments for queue in WANTED.queues}


def test_each_distinct_delay_has_one_retry_queue() -> None:
    """The delay is part of the name, so equal delays are one queue."""
    retry_queues = [name for name in QUEUES if ".retry." in name]

    assert retry_queues == [
        "shop.test.retry.50",
        "shop.test.retry.1000",
        "shop.test.retry.60000",
    ]
    assert QUEUES["shop.test.retry.50"]["x-message-ttl"] == 50


@pytest.mark.parametrize("name", QUEUES)
def test_every_queue_is_a_quorum_queue_with_a_delivery_limit(name: str) -> None:
    """RabbitMQ 4 drops a message after 20 redeliveries by default; a lost connection is one."""
    assert QUEUES[name]["x-queue-type"] == "quorum"
    assert QUEUES[name]["x-delivery-limit"] == 1_000_000


@pytest.mark.parametrize("name", [name for name in QUEUES if name != NAMES.dead])
def test_expired_messages_are_dead_lettered_with_confirms(name: str) -> None:
    """Without reject-publish RabbitMQ falls back to at-most-once and logs that."""
    arguments = QUEUES[name]

    assert arguments["x-dead-letter-strategy"] == "at-least-once"
    assert arguments["x-overflow"] == "reject-publish"
    assert "x-dead-letter-routing-key" not in arguments  # the user stays the key


def test_dead_letters_stay_until_an_operator_moves_them() -> None:
    """Every message that is not delivered can be found there."""
    assert "x-message-ttl" not in QUEUES[NAMES.dead]
    assert "x-dead-letter-exchange" not in QUEUES[NAMES.dead]


def test_every_binding_connects_declared_objects() -> None:
    """A name that is not declared would fail with NOT_FOUND at start."""
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
    """The operator needs the queue, the argument, both values and the fix."""
    assert str(_different(Queue("q", {}), ChannelPreconditionFailed(reply))) == sentence


def test_a_different_exchange_has_its_own_fix() -> None:
    """An exchange stores no messages that have to be drained first."""
    reply = (
        "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'e' in vhost '/': "
        "received 'topic' but current is 'fanout'"
    )

    text = str(_different(Exchange("e", "topic"), ChannelPreconditionFailed(reply)))

    assert text.startswith(
        "exchange e: has type = fanout, the bridge needs topic; delete it"
    )
