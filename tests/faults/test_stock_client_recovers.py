"""The official JavaScript client, unchanged, across a kill -9 of the bridge."""

from pathlib import Path

import pytest

from bridge.core.properties import PERSISTENT, Properties
from tests.conftest import eventually
from tests.integration.programs import (
    program,
    settings_for_program,
    token_for,
)
from tests.integration.running import open_worker
from tests.integration.sockets.js_pages import open_pages
from tests.local_node import LocalNode


def with_id(number: int) -> Properties:
    """Return properties with an id, so that a redelivery after the kill is a duplicate."""
    return Properties(delivery_mode=PERSISTENT, message_id=b"%d" % number)


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_500_messages_missed_over_a_kill_arrive_once_and_in_order(
    broker: LocalNode, namespace: str, tmp_path: Path, transport: str
) -> None:
    """`recovered` is true: the bridge needs no state of a window besides the client's."""
    store = f"sqlite:{tmp_path / 'inbox.sqlite3'}"
    settings = settings_for_program(broker, namespace, inbox=store)
    token = token_for("ann", **settings)
    async with open_pages() as pages, open_worker(broker, namespace) as worker:
        async with program(broker, namespace, inbox=store) as first:
            port = first.port
            await pages.connected(
                "page",
                first.public_url,
                auth={"token": token},
                transports=[transport],
            )
            for number in range(3):
                await worker.publish("ann", number, properties=with_id(number))
            await eventually(lambda: len(pages.data("page")) == 3)
            first.process.kill()
            await first.ended()
        await pages.until("page", "disconnect", within_s=60)
        for number in range(3, 503):
            await worker.publish("ann", number, properties=with_id(number))

        async with program(broker, namespace, inbox=store, port=port):
            await pages.recovered("page", range(503))
