"""Which error replies of Redis mean "wait and retry", and which mean a bug or a limit."""

from typing import Final

from bridge.errors import StoreUnavailableError

# The server cannot run the command now, and has run no part of it.
_UNAVAILABLE_CODES: Final = frozenset(
    {
        *("LOADING", "BUSY", "READONLY", "NOREPLICAS", "OOM", "MISCONF", "MASTERDOWN"),
        *("CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "NOAUTH", "WRONGPASS", "NOPERM"),
        *("DENIED", "UNKILLABLE", "NOSCRIPT", "WRONGTYPE", "NOPROTO"),
    }
)
# Errors without a code of their own. A script gets the last one while a slot moves: some
# of its keys are already on the other node.
_UNAVAILABLE_TEXTS: Final = (
    "max number of clients",
    "AUTH",
    "a non local key in a cluster",
)
# How scripts report a missing permission: before Redis 7, and since.
_NO_PERMISSION_TEXTS: Final = ("executing the script can't", "ACL failure in script")
# After one of these the connection is useless: the server has another role now, or needs
# the commands that a new connection sends (the login, or the scripts after SCRIPT FLUSH).
_RECONNECT_CODES: Final = frozenset(
    {"READONLY", "MOVED", "MASTERDOWN", "NOAUTH", "LOADING", "NOSCRIPT"}
)


class RefusedByRedisError(Exception):
    """The server answered with an error that no retry resolves: a bug, or its limits."""


def is_missing_permission(text: str) -> bool:
    """Say whether a script failed because our user lacks a permission."""
    return any(part in text for part in _NO_PERMISSION_TEXTS)


def classify_error(store: str, text: str) -> tuple[Exception, bool]:
    """Return the exception for an error reply, and whether to reconnect because of it."""
    # A script wraps the error: "-ERR Error running script: ... -OOM command not allowed".
    words = text.replace("-", " ").split()
    code = words[0] if words else ""
    if code not in _UNAVAILABLE_CODES:
        code = next((word for word in words if word in _UNAVAILABLE_CODES), code)
    lacks_permission = is_missing_permission(text)
    needs_reconnect = code in _RECONNECT_CODES or lacks_permission
    if (
        code in _UNAVAILABLE_CODES
        or lacks_permission
        or any(part in text for part in _UNAVAILABLE_TEXTS)
    ):
        return StoreUnavailableError(store, text), needs_reconnect
    return RefusedByRedisError(text), needs_reconnect
