"""`GET /api/overview`."""

from typing import Protocol

from bridge.core.contracts.operator.operation import NoBody, NoQuery
from bridge.core.contracts.operator.overview import GET_OVERVIEW, Overview
from bridge.http.api.endpoint import Api, ApiRequest


class Overlooked(Protocol):
    """The bridge, as far as this page asks it."""

    def overview(self) -> Overview:
        """Say how it is now; at once, without asking anybody."""


def add_overview_routes(api: Api, bridge: Overlooked) -> None:
    """Serve the overview."""

    async def overview(_request: ApiRequest[NoQuery, NoBody]) -> Overview:
        return bridge.overview()

    api.add(GET_OVERVIEW, overview)
