"""
Decisions, and the values they are about: no await, no I/O, no clock, no library state.

Time and chance arrive as arguments. What is decided here is tested without a loop.
"""
