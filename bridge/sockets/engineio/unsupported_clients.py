"""Clients that speak another protocol: they are refused, counted and logged."""

from time import monotonic
from typing import Final

import structlog

from bridge.enums import UnsupportedClient
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

_LOG_INTERVAL_S: Final = 60.0
_REMEMBERED_ADDRESSES: Final = 1000


class UnsupportedClients:
    """
    Notes requests of clients that speak another version of Engine.IO.

    Such a client repeats its request forever. The first request of an address in each
    minute is logged; addresses are remembered in bounded memory.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._logged_s: dict[str, float] = {}  # by address, the oldest first

    def note(self, version: str | None, address: str) -> None:
        """Count a request that names `version`, by its parameter `EIO`."""
        kind = UnsupportedClient.OTHER
        if version == UnsupportedClient.ENGINE_3:
            kind = UnsupportedClient.ENGINE_3
        self._metrics.unsupported.labels(version=kind).inc()
        now_s = monotonic()
        logged_s = self._logged_s.get(address)
        if logged_s is not None and now_s - logged_s < _LOG_INTERVAL_S:
            return
        log.warning(
            "client.unsupported",
            version=kind,
            problem=kind.explanation,
            address=address,
        )
        self._logged_s.pop(address, None)
        self._logged_s[address] = now_s
        if len(self._logged_s) > _REMEMBERED_ADDRESSES:
            del self._logged_s[next(iter(self._logged_s))]
