"""Parse the texts with which RabbitMQ refuses a declare."""

import re
from typing import Final

INEQUIVALENT: Final = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for .*?: "
    r"received (?P<ours>.*?) but current is (?P<theirs>.*)",
    re.DOTALL,
)
# RabbitMQ cuts a text at 255 bytes and ends it with this. Such a text holds long names several
# times.
CUT: Final = "..."
# RabbitMQ before 4.0 closes the connection with COMMAND_INVALID, later versions close the
# channel with PRECONDITION_FAILED. The type is "invalid" instead of "unknown" if RabbitMQ has
# seen its name before: its plugin was enabled once, or an exchange from before an upgrade has it.
_NO_SUCH_TYPE: Final = re.compile(r"(unknown|invalid) exchange type")
_VALUE: Final = re.compile(r"^(?:the value )?'(.*?)'(?: of type '[^']*')?$", re.DOTALL)


def plain(value: str) -> str:
    """'2000', or "the value '2000' of type 'signedint'" -> 2000; ''fanout'' -> fanout."""
    found = _VALUE.match(value.strip())
    return (found[1] if found else value.strip()).strip("'")


def is_no_such_type(text: str) -> bool:
    """Whether a refusal means that the broker does not support the type of exchange now."""
    return _NO_SUCH_TYPE.search(text) is not None
