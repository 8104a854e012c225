"""Whether the bridge is ready for traffic, and the reasons if it is not."""

from bridge.amqp.consume.intake import Intake
from bridge.amqp.requests import RequestClient
from bridge.amqp.supervision import OutageLog
from bridge.event_publisher import EventPublisher
from bridge.inbox.contract import Inbox
from bridge.outbox import Outbox
from bridge.pipeline import Pipeline


class BridgeReadiness:
    """The state behind `/health/ready`, the gauge `bridge_ready` and the overview."""

    def __init__(
        self,
        *,
        intake: Intake,
        pipeline: Pipeline,
        outbox: Outbox,
        inbox: Inbox,
        outages: OutageLog,
        requests: RequestClient | None,
        events: EventPublisher,
    ) -> None:
        self._intake = intake
        self._pipeline = pipeline
        self._outbox = outbox
        self._inbox = inbox
        self._outages = outages
        self._requests = requests
        self._events = events
        self.is_draining = False

    def start_draining(self) -> None:
        """Report from now on that the bridge shuts down."""
        self.is_draining = True

    def warnings(self) -> list[str]:
        """Return what needs attention although the bridge serves its users."""
        warnings = []
        if self._outbox.problem is not None:
            warnings.append(self._outbox.problem)
        if self._requests is not None and self._requests.problem is not None:
            warnings.append(
                f"requests from pages end as not_available: {self._requests.problem}"
            )
        if self._intake.control_problem is not None:
            warnings.append(
                f"commands of the back end wait: {self._intake.control_problem}"
            )
        if self._events.waiting and self._events.problem is not None:
            warnings.append(
                f"{self._events.waiting} events for workers wait to be published: "
                f"{self._events.problem}"
            )
        if self._events.unrouted is not None:
            warnings.append(self._events.unrouted)
        return warnings

    def unready_reasons(self) -> list[str]:
        """Return the reasons why the bridge is not ready; empty if it is. For everyone."""
        return self._reasons(outage=None)

    def operator_reasons(self) -> list[str]:
        """Return the reasons with their causes, which name hosts of the operator."""
        return self._reasons(outage=self._outages.problem)

    def _reasons(self, *, outage: str | None) -> list[str]:
        reasons = []
        if self.is_draining:
            reasons.append("the bridge is shutting down")
        if not self._intake.is_consuming:
            cause = "" if outage is None else f": {outage}"
            nothing = f"nothing is consumed from the broker{cause}"
            reasons.append(self._intake.problem or nothing)
        reasons += self._intake.stalls()
        if self._pipeline.is_waiting:
            reasons.append(f"the pipeline waits: {self._pipeline.problem}")
        if self._inbox.problem is not None:
            reasons.append(f"the inbox store cannot be written: {self._inbox.problem}")
        return reasons
