"""The permission to publish commands of the back end."""

import pytest

from bridge.errors import PublishRefusedError
from tests.conftest import eventually
from tests.integration.control import back_end, commands
from tests.integration.doctor.conftest import ManagedBroker
from tests.integration.running import running_bridge, settings_for


async def test_only_an_account_with_its_permission_publishes_commands(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """Producers have none, as docs/getting-started.md and docs/control.md give them."""
    for name in ("messages", "control"):
        await managed_broker.add_user(
            f"{name}-only", "^$", rf"^{namespace}\.{name}$", "^$"
        )
    node = managed_broker.node
    async with (
        running_bridge(settings_for(node, namespace)) as running,
        back_end(node, namespace, user="messages-only") as producer,
        back_end(node, namespace, user="control-only") as security,
    ):
        with pytest.raises(PublishRefusedError, match="access to"):
            await producer.send("kick", {"user": "ann"})
        await security.send("kick", {"user": "ann"})
        await eventually(lambda: commands(running, "done") == 1)
