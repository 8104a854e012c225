"""The refusals of RabbitMQ 3.10.8 and 4.0.5."""

import pytest

from bridge.amqp.refusals import is_no_such_type


@pytest.mark.parametrize(
    ("text", "is_missing"),
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
def test_a_missing_type_differs_from_an_exchange_of_another_type(
    text: str, is_missing: bool
) -> None:
    """The fix is to enable a plugin; an exchange of another type has to be deleted."""
    assert is_no_such_type(text) is is_missing
