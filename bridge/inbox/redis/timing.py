"""How long the Redis store waits, and how often it checks."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RedisTiming:
    """
    Timeouts and intervals of one store.

    Attributes:
        connect_s: For a connection to be established, its TLS handshake included.
        tls_handshake_s: For the handshake alone. A port without TLS never answers it, so
            it must end before `connect_s` to be reported as the cause.
        reply_s: For the reply to a command.
        subscribe_s: For the confirmation of a subscription.
        replicas_ms: For replicas to acknowledge a write. Reads wait behind it, because
            they share the connection.
        ping_interval_s: Between two checks of a connection.
        discovery_interval_s: Between two questions where the masters are.
        probe_interval_s: Between two test writes while the server refuses writes.
        backoff_first_s: The first pause before a reconnect.
        backoff_max_s: The longest pause before a reconnect.
        gone_s: After so long without a report another bridge counts as gone: an outage of 7 s
            that this one did not notice, `connect_s`, `backoff_max_s`, and a second until the
            next poll (bridge_reports.py).
        presence_poll_s: Between two polls that renew the leases of `gone_s` for the users with
            windows on this bridge (presence.py).

    """

    connect_s: float = 5.0
    tls_handshake_s: float = 4.0
    reply_s: float = 10.0
    subscribe_s: float = 5.0
    replicas_ms: int = 1000
    ping_interval_s: float = 2.0
    discovery_interval_s: float = 5.0
    probe_interval_s: float = 1.0
    backoff_first_s: float = 0.05
    backoff_max_s: float = 2.0
    gone_s: float = 15.0
    presence_poll_s: float = 2.0


DEFAULT_TIMING = RedisTiming()
