"""One broker: whether it lets us in, what it is, what is on it, what we may do there."""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from shlex import quote
from time import time
from typing import Final

from yarl import URL

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    open_connection,
)
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.permissions import (
    MissingPermission,
    may_configure_anything,
    missing_permissions,
)
from bridge.amqp.topology import ComparisonState, Exchange, Queue, Topology, compare
from bridge.core.broker_names import BrokerNames
from bridge.doctor.certificates import certificate_finding
from bridge.doctor.results import Finding, note, ok, unknown, wrong
from bridge.doctor.versions import version_finding
from bridge.enums import ExitCode
from bridge.errors import BrokerUnavailableError
from bridge.settings.checks import is_loopback

_RENEW: Final = "renew it, and `rabbitmqctl eval 'ssl:clear_pem_cache().'`"


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at: one URL of the broker, and what the bridge needs there."""

    url: URL
    subject: str
    names: BrokerNames
    wanted: Topology
    timeout_s: float


async def broker_findings(
    patient: Patient, *, looks_closer: bool
) -> AsyncIterator[Finding]:
    """
    Look at one broker.

    Args:
        patient: Which one.
        looks_closer: Whether to look at topology and permissions too, which are the same
            on all nodes of a cluster.

    """
    address = BrokerAddress(urls=(str(patient.url),), timeout_s=patient.timeout_s)
    try:
        connection = await open_connection(
            address, purpose=Purpose.CHECK, reader=FrameReader
        )
    except BrokerUnavailableError as exc:
        yield wrong(patient.subject, str(exc), code=ExitCode.UNREACHABLE)
        return
    try:
        told = connection.wire.server_properties
        yield version_finding(
            patient.subject, str(told.get("product")), str(told.get("version"))
        )
        yield _way_finding(patient.url, connection.certificate_end_s)
        if looks_closer:
            async for finding in _closer(connection, patient):
                yield finding
    except BrokerUnavailableError as exc:
        yield wrong(patient.subject, str(exc), code=ExitCode.UNREACHABLE)
    finally:
        await connection.leave()


def permission_finding(
    lacks: Sequence[MissingPermission],
    names: BrokerNames,
    *,
    url: URL,
    may_do_anything: bool,
) -> Finding:
    """Say what the broker's user lacks, and the command that gives it, and no more."""
    vhost = url.path.removeprefix("/") or "/"
    user = url.user or "guest"
    pattern = quote(f"^{re.escape(names.namespace)}\\.")
    command = (
        f"rabbitmqctl set_permissions --vhost {quote(vhost)} {quote(user)} "
        f"{pattern} {pattern} {pattern}"
    )
    subject = f"permissions of {user}"
    if lacks:
        by_right: dict[str, list[str]] = {}
        for lack in lacks:
            by_right.setdefault(lack.permission, []).append(lack.name)
        text = "; ".join(
            f"no {right} on {', '.join(by_right[right])}" for right in by_right
        )
        return wrong(subject, text, mend=command)
    if may_do_anything:
        text = "configure, write and read, and on more than the bridge's own names"
        return note(subject, text, mend=f"{command}   # the least it needs")
    return ok(subject, f"configure, write and read on {names.namespace}.*")


def _way_finding(url: URL, certificate_end_s: float | None) -> Finding:
    if certificate_end_s is not None:
        subject = "certificate of the broker"
        return certificate_finding(
            subject, certificate_end_s, now_s=time(), mend=_RENEW
        )
    if url.scheme == "amqps":
        return unknown("certificate of the broker", "its end is not told")
    if is_loopback(url.host or ""):
        return ok("way to the broker", "without TLS, on this machine")
    text = "without TLS: who listens has the password and every message"
    return note("way to the broker", text, mend="use amqps:// in BRIDGE_AMQP_URL")


async def _closer(
    connection: BrokerConnection[FrameReader], patient: Patient
) -> AsyncIterator[Finding]:
    timeout_s, wanted = patient.timeout_s, patient.wanted
    findings = await compare(connection, wanted, timeout_s=timeout_s)
    for found in findings:
        if found.state in (ComparisonState.OK, ComparisonState.MISSING):
            yield ok(found.name, found.text or "as it must be")
        elif found.state is ComparisonState.DIFFERENT:
            yield wrong(found.name, found.text, mend=_mend(found.name, patient.url))
        else:
            text = "cannot be looked at: see the permissions below"
            yield unknown(found.name, text)
    # In the order in which `compare` looks at them.
    things: list[Exchange | Queue] = [*wanted.exchanges, *wanted.queues]
    undeclared = [
        thing
        for thing, found in zip(things, findings, strict=True)
        if found.state in (ComparisonState.MISSING, ComparisonState.REFUSED)
    ]
    lacks = await missing_permissions(
        connection, wanted, undeclared=undeclared, timeout_s=timeout_s
    )
    may_do_anything = await may_configure_anything(connection, timeout_s=timeout_s)
    yield permission_finding(
        lacks, patient.names, url=patient.url, may_do_anything=may_do_anything
    )


def _mend(title: str, url: URL) -> str:
    """Return what takes a wrong thing away; `bridge run` makes it anew."""
    kind, _, name = title.partition(" ")
    vhost = quote(url.path.removeprefix("/") or "/")
    if kind == "queue":
        # Refuses while there is anything in it.
        return f"rabbitmqctl delete_queue --vhost {vhost} --if-empty {quote(name)}"
    return f"rabbitmqadmin --vhost {vhost} delete exchange name={quote(name)}"
