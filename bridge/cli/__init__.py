"""
The commands of `bridge`; each module is one command or one group of commands.

A command parses its arguments, calls the code that does the work, and prints. Results go
to stdout, everything else to stderr.
"""
