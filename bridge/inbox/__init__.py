"""
Inboxes: the log of each user's messages, which is the source of truth for the sockets.

`contract` says what every store offers; `memory`, `sqlite` and `redis` implement it.
`maintenance` opens and sweeps a store; `migration` copies one store into another. A store
knows neither the broker nor the sockets, and never decides which message to emit.
"""
