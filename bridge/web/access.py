"""Keys that open doors: in `Authorization: Bearer` or `X-API-Key`, compared in constant time."""

import secrets
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from bridge.core.origins import is_loopback_host
from bridge.web.problems import problem

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Keys:
    """The keys of one door; any of them opens it."""

    def __init__(self, keys: Sequence[str | None], *, setting: str) -> None:
        """
        Take the keys and the name of the setting to tell about when there are none.

        Keys that are not set (``None``) open nothing.
        """
        self._setting = setting
        self.replace(keys)

    def replace(self, keys: Sequence[str | None]) -> None:
        """Open to these keys from now on."""
        self._keys = [key.encode() for key in keys if key]

    def refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer for a request without a good key, ``None`` for one with it."""
        if not self._keys:
            return problem(403, f"closed: {self._setting} is not set")
        given = _given_key(request)
        if given is None:
            return problem(
                401,
                "a key is needed, in Authorization: Bearer or X-API-Key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        # All are compared, whichever fits: no key's place tells itself by time.
        fits = [secrets.compare_digest(given, key) for key in self._keys]
        if any(fits):
            return None
        return problem(401, "the key is wrong", headers={"WWW-Authenticate": "Bearer"})


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


def guarded(keys: Keys, handler: Handler) -> Handler:
    """Return `handler` behind `keys`."""

    async def guard(request: web.Request) -> web.StreamResponse:
        refusal = keys.refusal(request)
        return await handler(request) if refusal is None else refusal

    return guard
