"""What the doors that publish over HTTP share: whom they ask, what they check."""

from typing import Protocol

from aiohttp import web

from bridge.core.event_schemas import EventSchemas
from bridge.enums import EVENT_DEFAULT
from bridge.http.problems import problem


class MessagePublisher(Protocol):
    """Publishes to the exchange of messages, as any worker does."""

    async def publish_message(
        self,
        *,
        user: str,
        event: str | None,
        data: bytes,
        message_id: str | None,
        ttl_s: float | None,
    ) -> None:
        """Publish one message; safe when this returns (broker/messages.py says more)."""


class EventCheck:
    """
    The contracts of events (BRIDGE_SCHEMAS) at the doors.

    What they do not allow would be confirmed now and become a dead letter later.
    """

    def __init__(self, schemas: EventSchemas | None = None) -> None:
        self.schemas = schemas  # may be replaced while the doors are open

    def refusal(
        self, event: str | None, data: object, *, pointer: str | None = None
    ) -> web.Response | None:
        """
        Return the answer for data that its event does not allow, ``None`` for good data.

        Args:
            event: Its name; ``None`` for the default one.
            data: What the page would receive.
            pointer: Names what is at fault; absent, the place in a body's `data`.

        """
        if self.schemas is None:
            return None
        schema = self.schemas.find(event or EVENT_DEFAULT)
        violation = schema.violation(data) if schema else None
        if violation is None:
            return None
        place = f"/data{violation.pointer}" if pointer is None else pointer
        return problem(422, violation.text, pointer=place)
