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
# PRECONDITION_FAILED. "Invalid" is one whose name it has heard of: its plugin was enabled
# once, or an exchange of before an upgrade has it.
_NO_SUCH_TYPE: Final = re.compile(r"(unknown|invalid) exchange type")
_VALUE: Final = re.compile(r"^(?:the value )?'(.*?)'(?: of type '[^']*')?$", re.DOTALL)


def plain(value: str) -> str:
    """'2000', or "the value '2000' of type 'signedint'" -> 2000; ''fanout'' -> fanout."""
    found = _VALUE.match(value.strip())
    return (found[1] if found else value.strip()).strip("'")


def is_no_such_type(text: str) -> bool:
    """Whether a refusal says that there are no exchanges of the type, now at least."""
    return _NO_SUCH_TYPE.search(text) is not None
