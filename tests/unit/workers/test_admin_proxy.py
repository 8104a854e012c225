"""Who answers which operation, where there are several workers."""

from bridge.core.contracts.operator import OPERATIONS
from bridge.workers.admin_proxy import ANY_WORKERS, APART, FIRST_WORKERS, MERGED, OWN


def test_every_operation_of_the_api_has_one_way_to_its_answer() -> None:
    """A new one says first how it is answered: one worker's word is often half of it."""
    names = [*MERGED, *FIRST_WORKERS, *ANY_WORKERS, *OWN, *APART]

    assert sorted(names) == sorted(operation.name for operation in OPERATIONS)
