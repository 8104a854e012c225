"""
API keys in `Authorization: Bearer`, `X-API-Key` or a form, compared in constant time.

Also the rules for requests that a page of another site can cause: host names and origins.
"""

import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from bridge.core.origins import is_loopback_host, is_same_name
from bridge.core.throttle import Throttle
from bridge.enums import KeyRefusal
from bridge.http.responses import problem
from bridge.trusted_proxies import TrustedProxies

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard(Protocol):
    """Authenticates requests: by keys, or by keys and sessions."""

    def refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer to a request that is not allowed; ``None`` for one that is."""


class KeyAttempts:
    """
    Slows down the guessing of keys: one count per address for all ways to present a key.

    The right key has to wait as well, because the answer would otherwise reveal it. A key
    that an address presents repeatedly is one guess, and only that key has to wait longer:
    a program with an old key does not lock out its neighbors.

    Attributes:
        guesses: The distinct wrong keys of each address.

    """

    def __init__(
        self,
        proxies: TrustedProxies | None = None,
        *,
        count: Callable[[KeyRefusal], object] = lambda _refusal: None,
        clock: Callable[[], float] = time.monotonic,
        supervisor_socket: str | None = None,
    ) -> None:
        """
        Start without any failure.

        Args:
            proxies: Find the address of a client.
            count: Counts the refused requests.
            clock: Returns seconds that never decrease.
            supervisor_socket: The path of a worker's Unix socket for its supervisor, which
                has checked the keys. Keys that arrive there lead to no pauses.

        """
        self._proxies = proxies or TrustedProxies()
        self._count = count
        self._clock = clock
        self._supervisor_socket = supervisor_socket
        self.guesses = Throttle()
        self._repeats = Throttle()  # by address and key

    def pause(self, request: web.Request, given: bytes = b"") -> web.Response | None:
        """Return the answer if `given` must not be compared now; ``None`` if it may be."""
        if self._is_checked(request):
            return None
        address, now_s = self.address(request), self._clock()
        wait_s = max(
            self.guesses.wait_s(address, now_s),
            self._repeats.wait_s(_repetition(address, given), now_s),
        )
        if not wait_s:
            return None
        self._count(KeyRefusal.PAUSED)
        wait_s = math.ceil(wait_s)
        text = f"too many wrong keys: try again in {wait_s} s"
        return problem(429, text, headers={"Retry-After": str(wait_s)})

    def note_wrong(self, request: web.Request, given: bytes, *, setting: str) -> None:
        """Count a wrong key. `setting` holds the right one."""
        self._count(KeyRefusal.WRONG)
        address, now_s = self.address(request), self._clock()
        log.warning("http.key_refused", address=address, setting=setting)
        if self._is_checked(request):
            return
        repetition = _repetition(address, given)
        if not self._repeats.is_known(repetition, now_s):
            self.guesses.note_failure(address, now_s)
        self._repeats.note_failure(repetition, now_s)

    def note_right(self, request: web.Request) -> None:
        """Forget the wrong keys of an address that has presented the right one."""
        self.guesses.forget(self.address(request))

    def forget(self) -> None:
        """Forget all wrong keys, because one of them may be right now."""
        self.guesses.forget_all()
        self._repeats.forget_all()

    def address(self, request: web.Request) -> str:
        """Return the address of the client."""
        return self._proxies.client_address(request.remote, request.headers)

    def _is_checked(self, request: web.Request) -> bool:
        path = self._supervisor_socket
        return path is not None and request.get_extra_info("sockname") == path


def _repetition(address: str, given: bytes) -> str:
    # Not the key itself, which may be a mistyped secret. The hash differs in each process.
    return f"{address} {hash(given)}"


class Keys:
    """A set of keys, each of which is sufficient."""

    def __init__(
        self,
        keys: Sequence[str | None],
        *,
        setting: str,
        attempts: KeyAttempts | None = None,
        resets_attempts: bool = True,
    ) -> None:
        """
        Accept `keys`.

        Args:
            keys: A key that is ``None`` or empty is ignored. Without any key, every
                request is refused.
            setting: The setting that holds the keys, for error texts.
            attempts: Counts wrong keys, of these and of other keys.
            resets_attempts: Whether a right key ends the pauses of its address. Not for
                keys that open less than others: their owner could go on guessing those.

        """
        self._setting = setting
        self._resets_attempts = resets_attempts
        self._attempts = attempts or KeyAttempts()
        self._keys: list[bytes] = []
        self.replace(keys)

    def replace(self, keys: Sequence[str | None]) -> bool:
        """Accept only these keys from now on; return whether they differ from before."""
        before, self._keys = self._keys, [key.encode() for key in keys if key]
        if before == self._keys:
            return False
        self._attempts.forget()
        return True

    def refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer to a request without a valid key; ``None`` if it has one."""
        if not self.is_set:
            return self.closed()
        given = _given_key(request)
        if given is None:
            detail = "a key is needed, in Authorization: Bearer or X-API-Key"
            return problem(401, detail, headers={"WWW-Authenticate": "Bearer"})
        return self.pause(request, given) or self.refusal_of(given, request)

    def pause(self, request: web.Request, given: bytes = b"") -> web.Response | None:
        """Return the answer if no key of this client may be compared now, else ``None``."""
        return self._attempts.pause(request, given)

    def refusal_of(
        self,
        given: bytes,
        request: web.Request,
        *,
        name: str = "key",
        pointer: str | None = None,
    ) -> web.Response | None:
        """
        Compare a key of the request; return the answer if it is wrong, else ``None``.

        Args:
            given: The key. The caller has checked that there is no pause for it.
            request: The request.
            name: What the client calls the key.
            pointer: Where in the body the key is; ``None`` if it is in a header.

        """
        if self._accepts(given):
            if self._resets_attempts:
                self._attempts.note_right(request)
            return None
        self._attempts.note_wrong(request, given, setting=self._setting)
        text = f"the {name} is wrong"
        if pointer is None:  # a program sent it, perhaps the key of another path
            text += f": expected {self._setting} of the running bridge"
        headers = {"WWW-Authenticate": "Bearer"}
        return problem(401, text, headers=headers, pointer=pointer)

    @property
    def is_set(self) -> bool:
        """Whether there is any key at all."""
        return bool(self._keys)

    def closed(self) -> web.Response:
        """Return the answer to any request while no key is set."""
        return problem(
            403, f"disabled: {self._setting} is not set in the running bridge"
        )

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


def on_own_pages_only(
    handler: Handler, *, allows_origin: Callable[[Mapping[str, str]], bool]
) -> Handler:
    """Wrap `handler` to refuse what pages of other origins cause; pages name theirs."""

    async def guard(request: web.Request) -> web.StreamResponse:
        if not allows_origin(request.headers):
            text = (
                "refused for its Origin (see BRIDGE_ALLOWED_ORIGINS), or for its Host: "
                "open mode on loopback answers to localhost and 127.0.0.1 only"
            )
            return problem(403, text)
        return await handler(request)

    return guard


def known_hosts_only(allowed: Sequence[str] | None) -> Middleware:
    """
    Return a middleware that refuses unknown host names, except for probes of health.

    A domain of an attacker can resolve to this machine (DNS rebinding). Its pages would
    have the same origin as the bridge.

    Args:
        allowed: Host names, besides those of the loopback address; ``None`` allows any.

    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host")
        is_known = (
            allowed is None
            or is_loopback_host(host)
            or any(is_same_name(host, name) for name in allowed)
            or request.path.startswith("/health/")
        )
        if is_known:
            return await handler(request)
        text = "the header Host is unknown: list it in BRIDGE_OPERATOR_ALLOWED_HOSTS"
        return problem(421, text)

    return guard


def guarded(guard: Guard, handler: Handler) -> Handler:
    """Wrap `handler` to answer only requests that `guard` allows."""

    async def serve(request: web.Request) -> web.StreamResponse:
        refusal = guard.refusal(request)
        return await handler(request) if refusal is None else refusal

    return serve
