"""One script, and its hash."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha1


@dataclass(frozen=True)
class Script:
    """Lua code, and the hash that the server knows it by."""

    # Without slots, because cached_property keeps the hash in __dict__.
    code: str

    @cached_property
    def sha(self) -> bytes:
        """The hash, as Redis defines it. It protects nothing."""
        return sha1(self.code.encode(), usedforsecurity=False).hexdigest().encode()
