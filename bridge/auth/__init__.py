"""
Tokens and the keys that they are checked with.

PyJWT does the checking; this package decides with what. Three rules hold everywhere: the
operator's settings choose the algorithms, never the token; a key serves the algorithms of
its own kind alone; no address that a token holds is ever looked at. No text that leaves
here, error or log, holds a token, a claim or a key.
"""
