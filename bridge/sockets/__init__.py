"""
Windows: verify, join, replay, emit.

Engine.io 4 and socket.io 5 are spoken by the bridge itself. It began on python-socketio,
and of that nothing was left in the way of a packet: the library keeps tasks, queues and
dictionaries for each client, and sits on aiohttp, which keeps a request, a task, a parser
and buffers for as long as a websocket lives. Together 24 kB and 730 µs for a window that
connects and then does nothing; now 2.5 kB and 180 µs. The price is that the protocols
are ours to keep: the stock client and the library's client run against them in the tests.
"""
