"""
What RabbitMQ's management API tells beyond AMQP: policies, bindings, flags, its clock.

It is optional. A login of its own may stand in BRIDGE_MANAGEMENT_URL; without one, that of
BRIDGE_AMQP_URL is used. The user needs the tag `management`.
"""

import asyncio
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Final
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from bridge.doctor.findings import Finding, note, ok, unknown, wrong

_BODY_MAX_BYTES: Final = 16 << 20
# A Date header tells whole seconds, and the way takes its time.
_CLOCK_NOTE_S: Final = 3.0


async def read_all(response: aiohttp.ClientResponse) -> bytes:
    """
    Read an answer to its end; one read of aiohttp's gives what happens to be there.

    Raises:
        aiohttp.ClientPayloadError: If it breaks off, or is too large to be meant.

    """
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _BODY_MAX_BYTES:
            message = "the answer is too large"
            raise aiohttp.ClientPayloadError(message)
    return bytes(body)


class ManagementError(Exception):
    """The management API did not answer as it should; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: the JSON, and by how much the broker's clock is ahead of ours."""

    value: object
    clock_ahead_s: float | None


class Management:
    """
    Asks the management API.

    Args:
        url: Of the API, with a login.
        vhost: Where the bridge lives.
        timeout_s: For each question.

    """

    def __init__(self, url: URL, *, vhost: str, timeout_s: float) -> None:
        self._root = url.with_user(None)
        self._login = aiohttp.encode_basic_auth(url.user or "", url.password or "")
        self.vhost = vhost
        self.vhost_path = quote(vhost, safe="")
        self._timeout_s = timeout_s

    async def ask(self, path: str) -> Answer:
        """
        Ask for `path` below `/api/`.

        Raises:
            ManagementError: If there is no good answer.

        """
        url = URL(f"{str(self._root).rstrip('/')}/api/{path}", encoded=True)
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                aiohttp.ClientSession(
                    headers={"Authorization": self._login}
                ) as session,
                session.get(url, allow_redirects=False) as response,
            ):
                body = await read_all(response)
                if response.status in {401, 403}:
                    raise ManagementError(_REFUSED)
                if response.status != 200:
                    text = f"{path} is answered with status {response.status}"
                    raise ManagementError(text)
                date = response.headers.get("Date")
        except TimeoutError as exc:
            text = f"no answer within {self._timeout_s:g} s"
            raise ManagementError(text) from exc
        except aiohttp.ClientError as exc:
            raise ManagementError(f"it is not reached ({type(exc).__name__})") from exc
        try:
            return Answer(orjson.loads(body), clock_ahead_s(date))
        except orjson.JSONDecodeError as exc:
            text = "what answers there does not speak JSON"
            raise ManagementError(text) from exc


_REFUSED: Final = (
    "it refuses the login: the user needs the tag management "
    "(rabbitmqctl set_user_tags USER management)"
)


def clock_ahead_s(date: str | None) -> float | None:
    """Return how far a `Date` header is ahead of our clock; `None` if it tells nothing."""
    try:
        told_s = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    return told_s + 0.5 - time()  # it is cut to whole seconds


def clock_finding(subject: str, ahead_s: float | None, *, limit_s: float) -> Finding:
    """Compare a clock with ours; more than `limit_s` apart is wrong."""
    if ahead_s is None:
        return unknown(subject, "its clock is not known")
    text = f"its clock and ours are {abs(ahead_s):.1f} s apart"
    if abs(ahead_s) < _CLOCK_NOTE_S:
        return ok(subject, "its clock and ours agree")
    mend = "timedatectl set-ntp true   # on the machine whose clock is wrong"
    if abs(ahead_s) <= limit_s:
        return note(subject, text, mend=mend)
    return wrong(subject, text, mend=mend)
