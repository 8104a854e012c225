"""How properties are tried out: the same way at each run, within any time; a pump."""

import pytest
from hypothesis import HealthCheck, settings

from tests.unit.pipeline_fakes import House

settings.register_profile(
    "unit",
    deadline=None,  # a busy machine is no fault of the code
    derandomize=True,  # a run that fails, fails again
    database=None,
    # The first text of a fresh checkout takes seconds: tables of Unicode are made.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unit")


@pytest.fixture
def house() -> House:
    """Return a pump with fakes around it."""
    return House()
