"""
Everything that an operator can set: `model` declares it, `load` reads and checks it.

Sources, the strongest first: flags of the command, the environment (`BRIDGE_*`), a TOML
file (`--config` or `BRIDGE_CONFIG`), defaults. Unknown names are errors, and all problems
are reported together. docs/settings.md and `bridge config` are made from the same fields.
"""
