"""
The key set at BRIDGE_JWKS_URL: fetched, cached, and fetched again when keys rotate.

A token cannot choose the address of its key. An unknown key makes the bridge fetch the
configured URL again, at most every ten seconds. Until then the key is unavailable, not
invalid: the issuer may have rotated its keys after the last fetch.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Final

import aiohttp
import structlog

from bridge.auth.keys import PublicKey, VerifyingKey, parse_key_set
from bridge.errors import KeysUnavailableError, connection_problem

log = structlog.get_logger(__name__)

_BODY_MAX_BYTES: Final = 1 << 20
# A token without `kid` is tried with every key of its algorithm. This limits the cost of
# such a token.
_CANDIDATES_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class KeySetTimes:
    """
    The times of the cache, in seconds.

    Attributes:
        fetch_s: Timeout of one fetch.
        fresh_s: Age up to which the set is used without a fetch.
        usable_s: Age up to which the set is used while it cannot be fetched.
        pause_s: The shortest time between two fetches.

    """

    fetch_s: float = 5.0
    fresh_s: float = 300.0
    usable_s: float = 3600.0
    pause_s: float = 10.0


class KeySet:
    """The public keys of one issuer. Call `open` before use and `close` at the end."""

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
        self._fetched_s = -inf  # end of the last successful fetch
        self._tried_s = -inf  # end of the last fetch, successful or not
        self._problem: str | None = "it has not been fetched yet"
        self._fetch_count = 0  # fetches that began
        self._current_fetch = 0  # the number of the last successful fetch
        # One fetch serves all tokens that wait for it. The wait for this lock is bounded,
        # although it is held during a network call: the fetch has a timeout, and after it
        # `_tried_s` lets every other waiter return without a fetch. If the task that
        # fetches is cancelled, the next waiter fetches.
        self._fetching = asyncio.Lock()

    async def open(self) -> None:
        """Fetch the set. A failure is only logged: the next token tries again."""
        self._session = aiohttp.ClientSession(
            # A small compressed body could expand beyond the limit of `_download`.
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        await self._fetch_unless_tried()

    def check(self) -> None:
        """
        Report the last fetch.

        Raises:
            KeysUnavailableError: If it failed.

        """
        if self._problem is not None:
            raise KeysUnavailableError(self._problem)

    async def close(self) -> None:
        """Close the connections; idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def find(
        self, algorithm: str, *, kid: str | None, tried: Sequence[PublicKey] = ()
    ) -> list[PublicKey]:
        """
        Return the keys that may check a signature made with `algorithm`.

        Args:
            algorithm: One that the settings accept.
            kid: The key that the token names; ``None`` selects all keys of the algorithm,
                at most 8.
            tried: Keys that did not sign the token; the issuer may have newer ones.

        Returns:
            An empty list if a fetch that began during this call found no such key.

        Raises:
            KeysUnavailableError: If the key is unknown and could not be looked up now,
                because the fetch failed or the last one is too recent.

        Cancellation: safe; another task that waits for the same fetch restarts it.

        """
        earlier_fetches = self._fetch_count
        await self._keep_fresh()
        found = self._matching(algorithm, kid, tried)
        if not found:
            await self._fetch_unless_tried()  # the issuer may have rotated its keys
            found = self._matching(algorithm, kid, tried)
        if not found and self._current_fetch <= earlier_fetches:
            recent = f"the last fetch is less than {self._times.pause_s:g} s ago"
            raise KeysUnavailableError(self._problem or recent)
        return found

    def _matching(
        self, algorithm: str, kid: str | None, tried: Sequence[PublicKey]
    ) -> list[PublicKey]:
        fitting = [
            entry.key
            for entry in self._keys
            if algorithm in entry.algorithms and kid in (None, entry.kid)
        ]
        return [key for key in fitting[:_CANDIDATES_MAX] if key not in tried]

    async def _keep_fresh(self) -> None:
        age_s = self._now() - self._fetched_s
        if age_s > self._times.usable_s:
            self._keys = []
        elif age_s > self._times.fresh_s and not self._fetching.locked():
            # One token waits for the new set; the others use the old one meanwhile.
            await self._fetch_unless_tried()

    async def _fetch_unless_tried(self) -> None:
        async with self._fetching:
            if self._now() - self._tried_s < self._times.pause_s:
                return
            self._fetch_count += 1
            number = self._fetch_count
            try:
                async with asyncio.timeout(self._times.fetch_s):
                    keys = parse_key_set(await self._download())
            except TimeoutError:
                self._note_failure(f"no answer within {self._times.fetch_s:g} s")
            except aiohttp.ClientError as exc:
                self._note_failure(connection_problem(exc))
            except ValueError as exc:
                self._note_failure(str(exc))
            else:
                self._note_success(keys, number)

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

    def _note_success(self, keys: list[VerifyingKey], number: int) -> None:
        self._current_fetch = number
        self._tried_s = self._fetched_s = self._now()
        self._problem = None
        if [entry.kid for entry in keys] != [entry.kid for entry in self._keys]:
            log.info("keys.changed", known=len(keys))
        self._keys = keys
