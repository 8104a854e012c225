"""
The doctor: looks at all that `bridge run` needs, changes nothing, and says what mends it.

    findings         what one look found out
    examination      one look after the other; start here
    broker           connection, version, topology, permissions, certificate
    versions         what a version of RabbitMQ means for the bridge
    vhost            what the management API tells: policies, bindings, flags, the ack timeout
    policies         which policies contradict the topology
    inbox            the store and its disk
    secrets          secrets and settings that are too weak
    clock            whether a clock and ours agree
    peers            the key set, and the bridge that runs already

What cannot be known is said to be unknown, and is no fault.
"""
