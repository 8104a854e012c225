"""Keys that open doors: in `Authorization: Bearer` or `X-API-Key`, compared in constant time."""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from aiohttp import web

from bridge.core.origins import is_loopback_host
from bridge.http.problems import problem

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard(Protocol):
    """What stands before a door: keys, or keys and sessions."""

    def refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer for a request that may not pass, ``None`` for one that may."""


class Keys:
    """The keys of one door; any of them opens it."""

    def __init__(self, keys: Sequence[str | None], *, setting: str) -> None:
        """
        Take the keys and the name of the setting to tell about when there are none.

        Keys that are not set (``None``) open nothing.
        """
        self._setting = setting
        self._keys: list[bytes] = []
        self.replace(keys)

    def replace(self, keys: Sequence[str | None]) -> bool:
        """Open to these keys from now on; false if they are the same as before."""
        before, self._keys = self._keys, [key.encode() for key in keys if key]
        return before != self._keys

    def refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer for a request without a good key, ``None`` for one with it."""
        if not self.is_set:
            return self.closed()
        given = _given_key(request)
        if given is None:
            return problem(
                401,
                "a key is needed, in Authorization: Bearer or X-API-Key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if self._fit(given):
            return None
        return problem(401, "the key is wrong", headers={"WWW-Authenticate": "Bearer"})

    @property
    def is_set(self) -> bool:
        """Whether there is any key at all."""
        return bool(self._keys)

    def closed(self) -> web.Response:
        """Return the answer of a door that no key opens."""
        return problem(403, f"closed: {self._setting} is not set")

    def fit(self, given: str) -> bool:
        """Whether `given` is one of the keys."""
        return self._fit(given.encode(errors="replace"))

    def _fit(self, given: bytes) -> bool:
        # All are compared, whichever fits: no key's place tells itself by time.
        fits = [secrets.compare_digest(given, key) for key in self._keys]
        return any(fits)


def has_key(request: web.Request) -> bool:
    """Whether a key, good or not, came with the request."""
    return _given_key(request) is not None


def _given_key(request: web.Request) -> bytes | None:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip().encode(errors="replace")
    key = request.headers.get("X-API-Key")
    return key.encode(errors="replace") if key else None


def on_loopback_only(handler: Handler) -> Handler:
    """Return `handler` for requests to this machine by its own name (DNS rebinding)."""

    async def guard(request: web.Request) -> web.StreamResponse:
        if not is_loopback_host(request.headers.get("Host")):
            return problem(403, "open mode answers to localhost and 127.0.0.1 alone")
        return await handler(request)

    return guard


def guarded(keys: Guard, handler: Handler) -> Handler:
    """Return `handler` behind `keys`."""

    async def guard(request: web.Request) -> web.StreamResponse:
        refusal = keys.refusal(request)
        return await handler(request) if refusal is None else refusal

    return guard
