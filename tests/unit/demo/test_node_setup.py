"""What a private node is told that is to be a member of another one's cluster."""

from pathlib import Path

from bridge.demo.node_setup import NodePorts, NodeSetup

FIRST = NodeSetup(Path("first"), NodePorts(amqp=1, distribution=2, epmd=3, ctl=4))


def test_a_node_beside_another_one_shares_what_a_cluster_shares() -> None:
    """One cookie and one epmd, by which nodes find each other; the rest is its own."""
    second = FIRST.beside(Path("second"), NodePorts(5, 6, 7, 8))

    assert (second.cookie, second.user, second.password) == (
        FIRST.cookie,
        FIRST.user,
        FIRST.password,
    )
    assert second.ports == NodePorts(amqp=5, distribution=6, epmd=3, ctl=8)
    assert second.folder == Path("second")
    assert second.name != FIRST.name


def test_a_node_that_joins_knows_the_other_one_by_name() -> None:
    """RabbitMQ's own peer discovery does the rest, at the first start."""
    second = FIRST.beside(Path("second"), NodePorts(5, 6, 7, 8))

    assert second.joining(FIRST) == [
        "cluster_formation.peer_discovery_backend = classic_config",
        f"cluster_formation.classic_config.nodes.1 = {FIRST.name}",
        f"cluster_formation.classic_config.nodes.2 = {second.name}",
    ]
