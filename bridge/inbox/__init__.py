"""
The log of each user's messages: the truth that sockets follow.

One file for each store, one contract suite for all of them (tests/contract). A store
keeps messages in order, tells who listens what is new, and forgets by rules that
are told to the page. It never decides what to emit, and knows neither broker nor
sockets.

A store offers what pump.py and sockets/replay.py ask for in their protocols, and:
``look``, ``open`` and ``close``, ``check`` (raises while nothing can be stored) and ``sweep``
(forgets what is too old; called now and then), and ``problem`` (why nothing can be
stored now, as far as is known, or ``None``).
"""
