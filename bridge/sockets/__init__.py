"""
What browsers connect to: a Socket.IO server with replay, on an Engine.IO server of our own.

The bridge implements Engine.IO 4 and Socket.IO 5 itself. It started on python-socketio,
which keeps tasks, queues and dictionaries per client and runs on aiohttp, which keeps a
request, a task, a parser and buffers for the life of a WebSocket: together 24 kB and 730
µs for a window that connects and stays idle. Now it is 2.5 kB and 180 µs. The price is
that the bridge must follow the protocols: the tests run the stock client and the client of
python-socketio against it. `docs/decisions/2026-11-30-python-socketio-server.md` says why the
library's server does not stand above these sessions either.

`engineio` holds the sessions below: bytes, limits, time and transports. The modules here
know users, tokens, inboxes and windows.
"""
