"""
The key set at BRIDGE_JWKS_URL: fetched, kept, and fetched again when keys rotate.

Nothing that a token says chooses where keys come from. Its `kid` can only make the bridge
ask the one configured address once more, and that at most every ten seconds.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Final

import aiohttp
import structlog

from bridge.auth.keys import PublicKey, VerifyingKey, parse_key_set
from bridge.errors import KeysUnavailableError

log = structlog.get_logger(__name__)

_BODY_MAX_BYTES: Final = 1 << 20
# A token without `kid` is tried with every key of its algorithm. This bounds what one
# such token can cost.
_CANDIDATES_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class KeySetTimes:
    """
    How long what holds.

    Attributes:
        fetch_s: The longest that one fetch may take.
        fresh_s: Within it, the set is used without asking again.
        usable_s: Within it, the set still serves while it cannot be fetched.
        pause_s: The shortest time between two fetches.

    """

    fetch_s: float = 5.0
    fresh_s: float = 300.0
    usable_s: float = 3600.0
    pause_s: float = 10.0


class KeySet:
    """The public keys of one issuer. Call `open` first and `close` last."""

    def __init__(
        self,
        url: str,
        *,
        times: KeySetTimes | None = None,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._url = url
        self._times = times or KeySetTimes()
        self._now = now
        self._session: aiohttp.ClientSession | None = None
        self._keys: list[VerifyingKey] = []
        self._fetched_s = -inf  # the last success
        self._tried_s = -inf  # the end of the last try, good or bad
        self._problem: str | None = "it was not fetched yet"
        # One fetch serves all who wait. A lock round a network call is bounded here: by
        # the deadline, and by `_tried_s`, which lets those who queued go on at once. If
        # the one who fetches is cancelled, the next in the queue takes over.
        self._fetching = asyncio.Lock()

    async def open(self) -> None:
        """Fetch the set. If that fails it is only logged: the first token tries again."""
        self._session = aiohttp.ClientSession(
            auto_decompress=False,  # the bound on bytes is then one on memory too
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        await self._fetch_unless_tried()

    async def close(self) -> None:
        """Close the connections; idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def find(self, algorithm: str, *, kid: str | None) -> list[PublicKey]:
        """
        Return the keys that may check a signature made with `algorithm`.

        Args:
            algorithm: One that the settings accept.
            kid: The key that the token names; ``None`` if it names none, and then all
                that fit come, at most 8.

        Returns:
            None, if the set is up to date and has no such key.

        Raises:
            KeysUnavailableError: If the key is not known and the set cannot be had.

        Cancellation: safe; others who wait for the same fetch start it anew.

        """
        await self._keep_fresh()
        found = self._matching(algorithm, kid)
        if not found:
            await self._fetch_unless_tried()  # the issuer may have rotated its keys
            found = self._matching(algorithm, kid)
        if not found and self._problem:
            raise KeysUnavailableError(self._problem)
        return found

    def _matching(self, algorithm: str, kid: str | None) -> list[PublicKey]:
        fitting = [
            entry.key
            for entry in self._keys
            if algorithm in entry.algorithms and kid in (None, entry.kid)
        ]
        return fitting[:_CANDIDATES_MAX]

    async def _keep_fresh(self) -> None:
        age_s = self._now() - self._fetched_s
        if age_s > self._times.usable_s:
            self._keys = []
        elif age_s > self._times.fresh_s and not self._fetching.locked():
            # One token waits for the new set; the others go on with the old one.
            await self._fetch_unless_tried()

    async def _fetch_unless_tried(self) -> None:
        async with self._fetching:
            if self._now() - self._tried_s < self._times.pause_s:
                return
            try:
                async with asyncio.timeout(self._times.fetch_s):
                    keys = parse_key_set(await self._download())
            except TimeoutError:
                self._note_failure(f"no answer within {self._times.fetch_s:g} s")
            except aiohttp.ClientError as exc:
                # Its text may hold the URL, and that a password.
                self._note_failure(type(exc).__name__)
            except ValueError as exc:
                self._note_failure(str(exc))
            else:
                self._note_success(keys)

    async def _download(self) -> bytes:
        if self._session is None:
            message = "the key set is not open"
            raise ValueError(message)
        async with self._session.get(
            self._url,
            allow_redirects=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        ) as response:
            if response.status != 200:
                message = f"the answer has status {response.status}, expected 200"
                raise ValueError(message)
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > _BODY_MAX_BYTES:
                    message = f"the answer is larger than {_BODY_MAX_BYTES} bytes"
                    raise ValueError(message)
            return bytes(body)

    def _note_failure(self, problem: str) -> None:
        self._tried_s = self._now()
        self._problem = problem
        log.warning("keys.unavailable", problem=problem, known=len(self._keys))

    def _note_success(self, keys: list[VerifyingKey]) -> None:
        self._tried_s = self._fetched_s = self._now()
        self._problem = None
        if [entry.kid for entry in keys] != [entry.kid for entry in self._keys]:
            log.info("keys.changed", known=len(keys))
        self._keys = keys
