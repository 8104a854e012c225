"""
The operator's API in models: what is asked, what is answered, and each operation of it.

One file for each group; a group ends in its `OPERATIONS`, which are listed here.
"""

from typing import Final

from bridge.core.contracts.operator import dead_letters as dead
from bridge.core.contracts.operator import jobs, overview, queues, trace, users
from bridge.core.contracts.operator import ports as doors
from bridge.core.contracts.operator.operation import AnyOperation

OPERATIONS: Final[tuple[AnyOperation, ...]] = (
    *overview.OPERATIONS,
    *queues.OPERATIONS,
    *dead.OPERATIONS,
    *jobs.OPERATIONS,
    *users.OPERATIONS,
    *trace.OPERATIONS,
    *doors.OPERATIONS,
)
