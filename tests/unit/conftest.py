"""The profile of property tests: the same examples at each run, without a deadline."""

import pytest
from hypothesis import HealthCheck, settings

from tests.unit.pipeline_fakes import Harness

settings.register_profile(
    "unit",
    deadline=None,  # a busy machine is not a fault of the code
    derandomize=True,  # a failure is reproducible
    database=None,
    # Building the Unicode tables of a fresh checkout takes seconds.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unit")


@pytest.fixture
def harness() -> Harness:
    """Return a pipeline with fakes around it."""
    return Harness()
