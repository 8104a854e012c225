"""
Verification of tokens (JWT), and the keys that verify them.

PyJWT verifies the signature; this package chooses the algorithm and the keys. Three rules
hold everywhere: the settings choose the accepted algorithms, never the token; a key
verifies only algorithms of its own kind; the bridge never follows an address in a token.
Errors and logs of this package contain no token, no claim and no key.
"""
