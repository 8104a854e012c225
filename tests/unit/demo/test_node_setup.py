"""The configuration of a private node that joins the cluster of another."""

from pathlib import Path

from bridge.demo.node_setup import NodePorts, NodeSetup
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
