"""
A client of RabbitMQ's management API, for facts that AMQP does not provide.

The API is optional (BRIDGE_MANAGEMENT_URL) and gets a short timeout. It provides the rates of
queues; `bridge check` reads policies, bindings, feature flags and the clock. The URL may hold
a login; without one, the login of BRIDGE_AMQP_URL is used. The user needs the tag `management`.
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
from bridge.errors import connection_problem

MANAGEMENT_WITHIN_S: Final = 3.0
_BODY_MAX_BYTES: Final = 16 << 20
# The age of the oldest message is missing: RabbitMQ provides `head_message_timestamp` for
# classic queues only, and the bridge declares quorum queues.
_COLUMNS: Final = "messages_unacknowledged,message_stats"


class ManagementError(Exception):
    """The management API did not return a usable response; the text says what to do."""


@dataclass(frozen=True, slots=True)
class ManagementResponse:
    """The JSON of a response, and how far the broker's clock is ahead of this machine's."""

    value: object
    clock_ahead_s: float | None


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """The statistics of one queue; ``None`` where the management API has none."""

    unacked: int | None
    rates: Rates | None


class ManagementApi:
    """
    The management API of one broker.

    Args:
        url: Where it is, with or without a login.
        amqp_url: Of the same broker: its vhost, and its login if `url` has none.
        timeout_s: For each request.

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

    async def queue(self, name: str) -> QueueStatistics:
        """
        Return the statistics of one queue.

        Raises:
            ManagementError: If there is no usable response.

        """
        path = f"queues/{self.vhost_path}/{quote(name, safe='')}?columns={_COLUMNS}"
        value = (await self.get(path)).value
        return _statistics(value if isinstance(value, dict) else {})

    async def get(self, path: str) -> ManagementResponse:
        """
        Request `path` below `/api/`.

        Raises:
            ManagementError: If there is no usable response; its text holds no password.

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
                    text = f"{path} returned status {response.status}"
                    raise ManagementError(text)
                date = response.headers.get("Date")
        except TimeoutError as exc:
            text = f"no answer within {self._timeout_s:g} s"
            raise ManagementError(text) from exc
        except aiohttp.ClientError as exc:
            text = f"it cannot be reached: {connection_problem(exc)}"
            raise ManagementError(text) from exc
        try:
            return ManagementResponse(orjson.loads(body), clock_ahead_s(date))
        except orjson.JSONDecodeError as exc:
            text = "the response is not JSON"
            raise ManagementError(text) from exc


_REFUSED: Final = (
    "it rejects the login: the user needs the tag management "
    "(rabbitmqctl set_user_tags USER management)"
)


def clock_ahead_s(date: str | None) -> float | None:
    """Return how far a `Date` header is ahead of our clock; ``None`` if it is invalid."""
    try:
        date_s = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    return date_s + 0.5 - time()  # the header has whole seconds


async def read_all(response: aiohttp.ClientResponse) -> bytes:
    """
    Read a response body to its end, up to 16 MiB.

    Raises:
        aiohttp.ClientPayloadError: If the body is incomplete or too large.

    """
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _BODY_MAX_BYTES:
            message = "the response is too large"
            raise aiohttp.ClientPayloadError(message)
    return bytes(body)


def _statistics(value: Mapping[str, Any]) -> QueueStatistics:
    unacked = value.get("messages_unacknowledged")
    stats = value.get("message_stats")
    rates = None
    if isinstance(stats, dict):
        rates = Rates(
            in_per_s=_rate(stats, "publish_details"),
            out_per_s=_rate(stats, "deliver_get_details"),
        )
    return QueueStatistics(unacked if isinstance(unacked, int) else None, rates)


def _rate(stats: Mapping[str, Any], name: str) -> float:
    details = stats.get(name)
    rate = details.get("rate") if isinstance(details, dict) else None
    return float(rate) if isinstance(rate, int | float) else 0.0
