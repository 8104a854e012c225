"""What RabbitMQ says when it refuses to declare."""

import re
from typing import Final

INEQUIVALENT: Final = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for .*?: "
    r"received (?P<ours>.*?) but current is (?P<theirs>.*)",
    re.DOTALL,
)
# What it says ends so if it was longer than 255 bytes: long names come in it several times.
CUT: Final = "..."
# Before 4.0 it ends the connection with COMMAND_INVALID, from there on the channel with
# PRECONDITION_FAILED.
UNKNOWN_TYPE: Final = "unknown exchange type"
_VALUE: Final = re.compile(r"^(?:the value )?'(.*?)'(?: of type '[^']*')?$", re.DOTALL)


def plain(value: str) -> str:
    """'2000', or "the value '2000' of type 'signedint'" -> 2000; ''fanout'' -> fanout."""
    found = _VALUE.match(value.strip())
    return (found[1] if found else value.strip()).strip("'")
