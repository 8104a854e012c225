"""
Everything that an operator can set: `model` declares it, `load` gathers it.

Sources, the stronger first: flags of the command, environment `BRIDGE_*`, a TOML file
(`--config` or `BRIDGE_CONFIG`), defaults. Unknown names are errors, and all problems
are told at once. README's table and `bridge config` are made from these fields.
"""
