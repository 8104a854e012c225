"""Several private Redis servers that belong together, for tests."""

from collections.abc import Sequence

from tests.redis_server import RedisServer


def join_cluster(nodes: Sequence[RedisServer]) -> None:
    """Make a cluster of three masters and, of the first one, a replica."""
    first, *others, replica = nodes
    for number, node in enumerate((first, *others)):
        ends = [str(16384 * each // 3) for each in (number, number + 1)]
        last = str(int(ends[1]) - 1)
        node.command("CLUSTER", "ADDSLOTSRANGE", ends[0], last)
        node.command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
    for node in nodes[1:]:
        node.command("CLUSTER", "MEET", first.host, str(first.port))
    for node in nodes:
        node.wait_until("cluster_known_nodes:4", "CLUSTER", "INFO")
    replica.command("CLUSTER", "REPLICATE", first.command("CLUSTER", "MYID"))
    replica.wait_until("master_link_status:up", "INFO", "replication")
    for node in nodes:
        node.wait_until("cluster_state:ok", "CLUSTER", "INFO")
