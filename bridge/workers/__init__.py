"""
Several workers on one machine: one supervisor, one process for each core, one of everything.

The supervisor carries no message and no window. It starts the workers, restarts what dies,
tells all of them to go, and is the one operator door: metrics, health and API are theirs,
put together. Each worker is a whole bridge, with connections of its own to the broker and
the shared inbox; they meet there, and the kernel spreads windows over them.
"""
