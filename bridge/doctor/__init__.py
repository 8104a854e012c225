"""
The checks of `bridge check`: everything `bridge run` needs, examined read-only.

    run              runs all checks in order; start here
    results          the result of one check: ok, warn, fail or skip
    broker           connection, version, topology, permissions, certificate
    shards           the recorded number of shards, other bridges in the namespace
    vhost            the management API: bindings, feature flags, clock, ack timeout
    policies         policies that contradict the topology
    inbox            the store and its disk
    redis            persistence, memory and TLS of each Redis server
    secrets          weak secrets and settings that expose more than they seem to
    key_set          the issuer's key set
    listeners        the two listening addresses, and a bridge that already runs there

A check that cannot run is skipped. A skipped check does not change the exit status.
"""
