"""What RabbitMQ says when it refuses to declare, as 3.10.8 and 4.0.5 have said it."""

import pytest

from bridge.amqp.refusals import is_no_such_type


@pytest.mark.parametrize(
    ("text", "is_so"),
    [
        ("COMMAND_INVALID - unknown exchange type 'x-modulus-hash'", True),
        ("COMMAND_INVALID - invalid exchange type 'x-modulus-hash'", True),
        ("PRECONDITION_FAILED - unknown exchange type 'x-modulus-hash'", True),
        ("PRECONDITION_FAILED - invalid exchange type 'x-modulus-hash'", True),
        (
            "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'a' in vhost '/':"
            " received 'fanout' but current is ''x-modulus-hash''",
            False,
        ),
    ],
)
def test_a_type_whose_plugin_is_not_enabled_any_more_is_no_exchange_to_be_deleted(
    text: str, is_so: bool
) -> None:
    """The way out is to enable it; an exchange that differs is to be deleted."""
    assert is_no_such_type(text) is is_so
