"""Node ids of generated tests."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Give each test of schemathesis a node id of its own.

    All of them have that of their function, and xdist runs one test per node id.
    """
    for item in items:
        operation = getattr(item, "operation_label", None)
        if operation is not None:
            item._id = item.id.with_params(operation)  # pytest has no setter
