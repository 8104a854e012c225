"""The fault tests log as in production."""

from tests.integration.conftest import production_logs

__all__ = ["production_logs"]
