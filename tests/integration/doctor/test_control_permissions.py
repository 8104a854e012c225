"""The permission to publish commands of the back end."""

import shlex

import pytest

from bridge.doctor.results import CheckStatus
from bridge.errors import PublishRefusedError
from tests.conftest import eventually
from tests.integration.control import back_end, commands
from tests.integration.doctor.conftest import ManagedBroker
from tests.integration.doctor.test_checks import check_results, declare_all, settings
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


async def test_the_check_names_producers_that_can_send_commands(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """An account for commands alone is intended; one that also publishes is not."""
    producer, security = f"{namespace}-producer", f"{namespace}-security"
    await managed_broker.add_user(producer, "^$", rf"^{namespace}\.", "^$")
    await managed_broker.add_user(security, "^$", rf"^{namespace}\.control$", "^$")
    chosen = settings(managed_broker, namespace)
    subject = f"who may write to {namespace}.control"
    await declare_all(managed_broker, namespace)

    found = (await check_results(chosen))[subject]
    assert found.status is CheckStatus.WARN
    assert producer in found.text
    assert security not in found.text

    *command, _, configure, write, read = shlex.split(found.fix, comments=True)
    assert command == ["rabbitmqctl", "set_permissions", "--vhost", "/"]
    await managed_broker.set_permissions(producer, configure, write, read)
    found = (await check_results(chosen))[subject]
    assert found.status is CheckStatus.OK, found.text
    assert security in found.text
    assert producer not in found.text
