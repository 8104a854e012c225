"""The operator's API conforms to its OpenAPI document for any request."""

from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any, Final

import orjson
import pytest_asyncio
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from bridge.core.broker_names import BrokerNames
from tests.integration.operator.dead_letter_fixtures import publish_dead_letters
from tests.integration.programs import program
from tests.integration.running import OPERATOR_TOKEN
from tests.local_node import LocalNode

_SCHEMA: Final = Path(__file__).parents[2] / "schemas" / "operator.openapi.json"
# Without the cache, which would be written into the repository.
_CONFIG: Final = SchemathesisConfig.from_dict({"cache": {"enabled": False}})
API: Final = schemathesis.openapi.from_dict(
    orjson.loads(_SCHEMA.read_bytes()), config=_CONFIG
)
_LETTERS: Final = 20
_CLIENTS: Final = count()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def operator_url(broker: LocalNode) -> AsyncIterator[str]:
    """
    A bridge with dead letters, in a process of its own.

    Its random delays must not use the random numbers of this process, which Hypothesis
    controls.
    """
    namespace = "openapi"
    async with program(broker, namespace, trusted_proxies="127.0.0.1") as running:
        await publish_dead_letters(broker, BrokerNames(namespace), _LETTERS)
        yield running.operator_url
        running.process.terminate()
        assert await running.ended() == 0


@API.parametrize()
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_an_answer_conforms_to_the_document(
    case: schemathesis.Case[Any], operator_url: str
) -> None:
    """Status, type and body of answers to valid and invalid requests, with and without a key."""
    case.call_and_validate(
        base_url=operator_url,
        headers={
            "Authorization": f"Bearer {OPERATOR_TOKEN}",
            # Each case sends wrong keys too, which lead to pauses for their address.
            "X-Forwarded-For": f"2001:db8:{next(_CLIENTS):x}::1",
        },
        # A schema cannot express that a cursor has to come from an earlier page. That exactly
        # one of ids, filter and all is given is only in the descriptions.
        excluded_checks=[positive_data_acceptance],
    )
