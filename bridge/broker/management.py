"""
RabbitMQ's management API, where BRIDGE_MANAGEMENT_URL names it: what AMQP does not tell.

Asked for nothing but queues, and never waited for long: without an answer, what AMQP tells
is shown, with the problem beside it.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from bridge.core.contracts.operator.queues import Rates
from bridge.errors import BrokerUnavailableError

_WITHIN_S: Final = 3.0
_COLUMNS: Final = "messages_ready,messages_unacknowledged,consumers,message_stats"


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

    """

    def __init__(self, url: str, *, amqp_url: str) -> None:
        given, broker = URL(url), URL(amqp_url)
        login = given if given.user else broker
        self._headers = {
            "Authorization": aiohttp.encode_basic_auth(
                login.user or "guest", login.password or "guest"
            )
        }
        self._base = given.with_user(None)
        self._vhost = broker.path.removeprefix("/") or "/"

    async def queue(self, name: str) -> ManagedQueue:
        """
        Ask for one queue.

        Raises:
            BrokerUnavailableError: If there is no good answer within seconds; its text
                holds no password.

        """
        doing = f"ask the management API at {self._base.host}:{self._base.port}"
        path = f"api/queues/{quote(self._vhost, safe='')}/{quote(name, safe='')}"
        url = URL(f"{str(self._base).rstrip('/')}/{path}", encoded=True)
        try:
            async with (
                asyncio.timeout(_WITHIN_S),
                aiohttp.ClientSession(headers=self._headers) as session,
                session.get(
                    url.update_query(columns=_COLUMNS), allow_redirects=False
                ) as response,
            ):
                if response.status != 200:
                    raise BrokerUnavailableError(doing, f"it answers {response.status}")
                told = await response.json()
        except TimeoutError as exc:
            problem = f"no answer within {_WITHIN_S:g} s"
            raise BrokerUnavailableError(doing, problem) from exc
        except (aiohttp.ClientError, ValueError) as exc:
            raise BrokerUnavailableError(doing, type(exc).__name__) from exc
        return _managed(told if isinstance(told, dict) else {})


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
