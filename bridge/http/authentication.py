"""API keys in `Authorization: Bearer` or `X-API-Key`, compared in constant time."""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from aiohttp import web

from bridge.core.origins import is_loopback_host
from bridge.http.responses import problem

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard(Protocol):
    """Authenticates requests: by keys, or by keys and sessions."""

    def refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer to a request that is not allowed; ``None`` for one that is."""


class Keys:
    """A set of keys, each of which is sufficient."""

    def __init__(self, keys: Sequence[str | None], *, setting: str) -> None:
        """
        Accept `keys`.

        Args:
            keys: A key that is ``None`` or empty is ignored. Without any key, every
                request is refused.
            setting: The setting that holds the keys, for error texts.

        """
        self._setting = setting
        self._keys: list[bytes] = []
        self.replace(keys)

    def replace(self, keys: Sequence[str | None]) -> bool:
        """Accept only these keys from now on; return whether they differ from before."""
        before, self._keys = self._keys, [key.encode() for key in keys if key]
        return before != self._keys

    def refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer to a request without a valid key; ``None`` if it has one."""
        if not self.is_set:
            return self.closed()
        given = _given_key(request)
        if given is None:
            detail = "a key is needed, in Authorization: Bearer or X-API-Key"
        elif self._accepts(given):
            return None
        else:
            detail = "the key is wrong"
        return problem(401, detail, headers={"WWW-Authenticate": "Bearer"})

    @property
    def is_set(self) -> bool:
        """Whether there is any key at all."""
        return bool(self._keys)

    def closed(self) -> web.Response:
        """Return the answer to any request while no key is set."""
        return problem(403, f"closed: {self._setting} is not set")

    def accepts(self, given: str) -> bool:
        """Return whether `given` is one of the keys."""
        return self._accepts(given.encode(errors="replace"))

    def _accepts(self, given: bytes) -> bool:
        # All keys are compared, so that the time does not reveal which one matched.
        matches = [secrets.compare_digest(given, key) for key in self._keys]
        return any(matches)


def has_key(request: web.Request) -> bool:
    """Return whether the request contains a key, valid or not."""
    return _given_key(request) is not None


def _given_key(request: web.Request) -> bytes | None:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip().encode(errors="replace")
    key = request.headers.get("X-API-Key")
    return key.encode(errors="replace") if key else None


def on_loopback_only(handler: Handler, *, refusal: str) -> Handler:
    """Wrap `handler` to refuse other host names than this machine's (DNS rebinding)."""

    async def guard(request: web.Request) -> web.StreamResponse:
        if not is_loopback_host(request.headers.get("Host")):
            return problem(403, refusal)
        return await handler(request)

    return guard


def guarded(guard: Guard, handler: Handler) -> Handler:
    """Wrap `handler` to answer only requests that `guard` allows."""

    async def serve(request: web.Request) -> web.StreamResponse:
        refusal = guard.refusal(request)
        return await handler(request) if refusal is None else refusal

    return serve
