"""
Where one worker of several does its work: its number, and the folder that all share.

The number stands in each session id that the worker gives away, so that any other worker
knows whose session a request is about without asking anybody.
"""

import re
from dataclasses import dataclass
from typing import Final

WORKERS_MAX: Final = 128

# Before it may stand the name of the bridge.
_MARKED: Final = re.compile(
    r"(?:[A-Za-z0-9_-]{1,32}\.)?[A-Za-z0-9_-]{20}\.([0-9]{1,3})"
)


@dataclass(frozen=True, slots=True)
class Workplace:
    """
    The place of one worker.

    Attributes:
        folder: Of the sockets; nobody but the bridge's own user may enter it.
        index: Of the worker, from 0.

    """

    folder: str
    index: int

    @property
    def operator_socket(self) -> str:
        """Where the worker's own operator door is."""
        return f"{self.folder}/operator-{self.index}"

    @property
    def handover_socket(self) -> str:
        """Where the worker takes connections that came to another one."""
        return f"{self.folder}/handover-{self.index}"

    def neighbour(self, index: int) -> "Workplace":
        """Return the place of another worker."""
        return Workplace(self.folder, index)

    def mark(self, session_id: str) -> str:
        """Write the worker's number into a new session id."""
        return f"{session_id}.{self.index}"

    def owner_of(self, session_id: str) -> int | None:
        """Return whose session that is; ``None`` if it is ours, or nobody's."""
        match = _MARKED.fullmatch(session_id)
        owner = int(match[1]) if match else self.index
        return owner if owner != self.index and owner < WORKERS_MAX else None
