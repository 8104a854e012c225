"""The workers that answer each operation of the API."""

from bridge.core.contracts.operator import OPERATIONS
from bridge.workers.admin_proxy import SEPARATE, TARGETS


def test_every_operation_has_a_target() -> None:
    """A new operation needs a decision: one worker often knows only a part of the answer."""
    names = [*TARGETS, *SEPARATE]

    assert sorted(names) == sorted(operation.name for operation in OPERATIONS)
