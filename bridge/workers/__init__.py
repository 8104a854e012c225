"""
Several workers on one machine: a supervisor and one process for each core.

The supervisor handles no message and no window. It starts the workers, restarts those that
end, drains all of them, and serves the operator port: their metrics, health and API, merged.
Each worker is a whole bridge with its own connections to the broker and to the shared inbox
store. The kernel distributes windows over the workers, which share the public port.
"""
