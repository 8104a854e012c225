"""
The operator's API: the models of requests and answers, and all operations.

Each module defines one group of operations; this package lists all of them.
"""

from typing import Final

from bridge.core.contracts.operator import (
    dead_letters,
    jobs,
    overview,
    ports,
    queues,
    revocations,
    trace,
    users,
)
from bridge.core.contracts.operator.operation import AnyOperation

OPERATIONS: Final[tuple[AnyOperation, ...]] = (
    *overview.OPERATIONS,
    *queues.OPERATIONS,
    *dead_letters.OPERATIONS,
    *jobs.OPERATIONS,
    *users.OPERATIONS,
    *revocations.OPERATIONS,
    *trace.OPERATIONS,
    *ports.OPERATIONS,
)
