"""
The slot of one worker among several: its number and the folder of sockets that all share.

A worker appends its number to every session id that it creates. Any other worker can read the
owner of a session from the id, without asking anyone.
"""

import re
from dataclasses import dataclass
from typing import Final

WORKERS_MAX: Final = 128

# A session id with its worker's number; the bridge's name may precede it.
_NUMBERED_ID: Final = re.compile(
    r"(?:[A-Za-z0-9_-]{1,32}\.)?[A-Za-z0-9_-]{20}\.([0-9]{1,3})"
)


@dataclass(frozen=True, slots=True)
class WorkerSlot:
    """
    The slot of one worker.

    Attributes:
        folder: The folder of the sockets, which only the bridge's own user may enter.
        index: The number of the worker, from 0.

    """

    folder: str
    index: int

    @property
    def operator_socket(self) -> str:
        """Path of the socket on which the worker serves its operator API."""
        return f"{self.folder}/operator-{self.index}"

    @property
    def handover_socket(self) -> str:
        """Path of the socket on which the worker accepts other workers' connections."""
        return f"{self.folder}/handover-{self.index}"

    def sibling(self, index: int) -> "WorkerSlot":
        """Return the slot of another worker."""
        return WorkerSlot(self.folder, index)

    def number_session(self, session_id: str) -> str:
        """Return a new session id with this worker's number."""
        return f"{session_id}.{self.index}"

    def owner_of(self, session_id: str) -> int | None:
        """Return the other worker that owns a session; ``None`` if no other worker does."""
        match = _NUMBERED_ID.fullmatch(session_id)
        owner = int(match[1]) if match else self.index
        return owner if owner != self.index and owner < WORKERS_MAX else None
