"""
RabbitMQ's management API, where BRIDGE_MANAGEMENT_URL names it: what AMQP does not tell.

It is optional, and never waited for long. The queues' rates come from it, and the doctor asks
it for policies, bindings, flags and its clock. A login of its own may stand in the setting;
without one, that of BRIDGE_AMQP_URL is used. The user needs the tag `management`.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from bridge.core.contracts.operator.queues import Rates

MANAGEMENT_WITHIN_S: Final = 3.0
_BODY_MAX_BYTES: Final = 16 << 20
# The age of the oldest message is not among them: RabbitMQ knows `head_message_timestamp` of
# classic queues alone, and the bridge's are quorum queues.
_COLUMNS: Final = "messages_unacknowledged,message_stats"


class ManagementError(Exception):
    """The management API did not answer as it should; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: the JSON, and by how much the broker's clock is ahead of ours."""

    value: object
    clock_ahead_s: float | None


@dataclass(frozen=True, slots=True)
class ManagedQueue:
    """What the management API says of one queue; ``None`` where it says nothing."""

    unacked: int | None
    rates: Rates | None


class Management:
    """
    Asks the management API of one broker.

    Args:
        url: Where it is, with a user and a password or without.
        amqp_url: Of the same broker: its vhost, and its login if `url` has none.
        timeout_s: For each question.

    """

    def __init__(
        self, url: str, *, amqp_url: str, timeout_s: float = MANAGEMENT_WITHIN_S
    ) -> None:
        given, broker = URL(url), URL(amqp_url)
        login = given if given.user else broker
        self._login = aiohttp.encode_basic_auth(
            login.user or "guest", login.password or "guest"
        )
        self._root = given.with_user(None)
        self.place = f"{given.host}:{given.port}"
        self.vhost = broker.path.removeprefix("/") or "/"
        self.vhost_path = quote(self.vhost, safe="")
        self._timeout_s = timeout_s

    async def queue(self, name: str) -> ManagedQueue:
        """
        Ask for one queue.

        Raises:
            ManagementError: If there is no good answer.

        """
        path = f"queues/{self.vhost_path}/{quote(name, safe='')}?columns={_COLUMNS}"
        told = (await self.ask(path)).value
        return _managed(told if isinstance(told, dict) else {})

    async def ask(self, path: str) -> Answer:
        """
        Ask for `path` below `/api/`.

        Raises:
            ManagementError: If there is no good answer; its text holds no password.

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


def _managed(told: Mapping[str, Any]) -> ManagedQueue:
    unacked = told.get("messages_unacknowledged")
    stats = told.get("message_stats")
    rates = None
    if isinstance(stats, dict):
        rates = Rates(
            in_per_s=_rate(stats, "publish_details"),
            out_per_s=_rate(stats, "deliver_get_details"),
        )
    return ManagedQueue(unacked if isinstance(unacked, int) else None, rates)


def _rate(stats: Mapping[str, Any], name: str) -> float:
    details = stats.get(name)
    rate = details.get("rate") if isinstance(details, dict) else None
    return float(rate) if isinstance(rate, int | float) else 0.0
