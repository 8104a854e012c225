"""The configuration of a private node, also of one that joins the cluster of another."""

from dataclasses import replace
from pathlib import Path

import pytest

from bridge.demo.node_setup import NodePorts, NodeSetup, new_setup
from bridge.errors import PrivateNodeError
from tests.local_node import joining_setup

FIRST = NodeSetup(Path("first"), NodePorts(amqp=1, distribution=2, epmd=3, ctl=4))


def test_nodes_of_a_cluster_share_epmd_cookie_and_login() -> None:
    """Nodes find each other by cookie and epmd; folder, name and other ports differ."""
    second = joining_setup(FIRST, Path("second"), NodePorts(5, 6, 7, 8))

    assert (second.cookie, second.user, second.password) == (
        FIRST.cookie,
        FIRST.user,
        FIRST.password,
    )
    assert second.ports == NodePorts(amqp=5, distribution=6, epmd=3, ctl=8)
    assert not second.starts_epmd
    assert second.folder == Path("second")
    assert second.name != FIRST.name


def test_a_joining_node_is_configured_with_both_names() -> None:
    """RabbitMQ's peer discovery joins the cluster at the first start."""
    second = joining_setup(FIRST, Path("second"), NodePorts(5, 6, 7, 8))

    assert second.config == (
        "cluster_formation.peer_discovery_backend = classic_config",
        f"cluster_formation.classic_config.nodes.1 = {FIRST.name}",
        f"cluster_formation.classic_config.nodes.2 = {second.name}",
    )


@pytest.mark.parametrize("name", ["127.0.0.2", "::1"])
def test_a_host_name_that_leads_elsewhere_is_reported_with_the_fix(
    name: str, tmp_path: Path
) -> None:
    """In a container without /etc/hosts, the log of RabbitMQ has a trace of Erlang only."""
    setup = replace(new_setup(tmp_path), name=f"bridge@{name}")

    with pytest.raises(PrivateNodeError) as caught:
        setup.check_host()

    assert str(caught.value) == (
        f"the name {name} does not lead to 127.0.0.1 on this machine, which a private "
        f"RabbitMQ node needs: add the line `127.0.0.1 {name}` to /etc/hosts"
    )
    replace(setup, name="bridge@localhost").check_host()
