"""The operator's API conforms to its OpenAPI document for any request."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from bridge.core.broker_names import BrokerNames
from tests.conftest import SLOW_FACTOR
from tests.integration.operator.dead_letter_fixtures import publish_dead_letters
from tests.integration.running import OPERATOR_TOKEN, running_bridge, settings_for
from tests.local_node import LocalNode

_SCHEMA: Final = Path(__file__).parents[2] / "schemas" / "operator.openapi.json"
# Without the cache, which would be written into the repository.
_CONFIG: Final = SchemathesisConfig.from_dict({"cache": {"enabled": False}})
API: Final = schemathesis.openapi.from_dict(
    orjson.loads(_SCHEMA.read_bytes()), config=_CONFIG
)
_LETTERS: Final = 20


@pytest.fixture(scope="module")
def operator_url(broker: LocalNode) -> Iterator[str]:
    """A real bridge with dead letters, in a thread, because schemathesis blocks."""
    namespace = "openapi"
    url: list[str] = []
    listens = threading.Event()
    stop = asyncio.Event()
    loop: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loop.append(asyncio.get_running_loop())
        async with running_bridge(settings_for(broker, namespace)) as running:
            await publish_dead_letters(broker, BrokerNames(namespace), _LETTERS)
            url.append(running.listening.operator_url)
            listens.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="bridge")
    thread.start()
    assert listens.wait(60 * SLOW_FACTOR)
    yield url[0]
    loop[0].call_soon_threadsafe(stop.set)
    thread.join(30 * SLOW_FACTOR)


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
        headers={"Authorization": f"Bearer {OPERATOR_TOKEN}"},
        # A schema cannot express that a cursor has to come from an earlier page. That exactly
        # one of ids, filter and all is given is only in the descriptions.
        excluded_checks=[positive_data_acceptance],
    )
