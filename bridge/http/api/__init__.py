"""
The operator's API: one file for each group, each adding its handlers to the frame.

A handler gets a checked request and returns a model. How either looks on the wire is said
once, in bridge/core/contracts/operator; nothing here knows a library but aiohttp.
"""
