"""What the doctor makes of what it sees, case by case."""

from email.utils import formatdate
from pathlib import Path

import pytest
from yarl import URL

from bridge.amqp.management import clock_ahead_s
from bridge.amqp.permissions import MissingPermission, Permission
from bridge.amqp.topology import topology
from bridge.core.broker_names import BrokerNames
from bridge.doctor.broker import permission_finding
from bridge.doctor.certificates import certificate_finding
from bridge.doctor.clock import clock_finding
from bridge.doctor.inbox import disk_findings, room_finding
from bridge.doctor.policies import Role, parse_policies, policy_problems
from bridge.doctor.results import Verdict
from bridge.doctor.secrets import secret_findings, setting_findings, weakness
from bridge.doctor.versions import version_finding
from bridge.doctor.vhost import (
    ack_timeout_s,
    policy_findings,
    prefetch_finding,
)
from bridge.settings.load import load_settings
from bridge.settings.model import Settings

NAMES = BrokerNames("app.bridge")
URL_OF_APP = URL("amqp://app%20user:secret@broker.example/my%20vhost")
STRONG = "0123456789abcdef0123456789abcdef"


def settings(**changes: object) -> Settings:
    given = {"jwt_secret": STRONG, "operator_token": STRONG, "inbox": "memory:"}
    return load_settings(given | changes)


@pytest.mark.parametrize(
    ("version", "verdict", "words"),
    [
        ("3.9.29", Verdict.WRONG, "too old"),
        ("3.10.8", Verdict.OK, "stream_queue"),
        ("3.13.7", Verdict.OK, "128 MiB"),
        ("4.0.2", Verdict.OK, "delivery limit of 20"),
        ("4.2.1", Verdict.OK, "16 MiB"),
        ("4.3.0-rc.1", Verdict.OK, "Khepri"),
        ("5.0.0", Verdict.NOTE, "newer than"),
        ("what", Verdict.NOTE, "made for RabbitMQ"),
    ],
)
def test_each_version_is_told_with_what_it_means_here(
    version: str, verdict: Verdict, words: str
) -> None:
    """An upgrade should surprise nobody."""
    finding = version_finding("broker 1", "RabbitMQ", version)

    assert finding.verdict is verdict
    assert version in finding.text
    assert words in finding.text


def test_another_product_is_told_from_rabbitmq() -> None:
    """LavinMQ and Qpid speak AMQP 0-9-1 too."""
    assert version_finding("b", "LavinMQ", "3.10.0").verdict is Verdict.NOTE


def test_missing_permissions_come_with_the_command_that_gives_them_and_no_more() -> (
    None
):
    """To be pasted: names with blanks are quoted, dots are no patterns."""
    lacks = [
        MissingPermission(Permission.WRITE, "app.bridge.dead"),
        MissingPermission(Permission.READ, "app.bridge.dead"),
        MissingPermission(Permission.WRITE, "app.bridge.messages"),
    ]
    finding = permission_finding(lacks, NAMES, url=URL_OF_APP, may_do_anything=False)

    assert finding.verdict is Verdict.WRONG
    assert finding.text == (
        "no write on app.bridge.dead, app.bridge.messages; no read on app.bridge.dead"
    )
    assert finding.mend == (
        "rabbitmqctl set_permissions --vhost 'my vhost' 'app user' "
        r"'^app\.bridge\.' '^app\.bridge\.' '^app\.bridge\.'"
    )


def test_more_permissions_than_needed_are_worth_a_note() -> None:
    """The bridge's log-in should open nothing else."""
    broad = permission_finding([], NAMES, url=URL_OF_APP, may_do_anything=True)
    least = permission_finding([], NAMES, url=URL_OF_APP, may_do_anything=False)

    assert (broad.verdict, least.verdict) == (Verdict.NOTE, Verdict.OK)
    assert broad.exit_code == 0
    assert "secret" not in broad.text + broad.mend


@pytest.mark.parametrize(
    ("days", "verdict"),
    [(-1, Verdict.WRONG), (6, Verdict.WRONG), (20, Verdict.NOTE), (90, Verdict.OK)],
)
def test_a_certificate_is_told_before_it_ends(days: int, verdict: Verdict) -> None:
    """Nobody can mend it in the minute in which it ends."""
    now_s = 1_700_000_000.0

    found = certificate_finding("it", now_s + days * 86400, now_s=now_s, mend="")
    assert found.verdict is verdict


@pytest.mark.parametrize(
    ("role", "definition", "verdicts"),
    [
        (Role.INBOUND, {"message-ttl": 1000}, [Verdict.WRONG]),
        (Role.RETRY, {"message-ttl": 1000}, [Verdict.NOTE]),
        (Role.DEAD, {"message-ttl": 1000}, [Verdict.NOTE]),
        (Role.RETRY, {"expires": 1000}, [Verdict.WRONG]),
        (Role.INBOUND, {"max-length": 9}, [Verdict.NOTE]),
        (Role.RETRY, {"max-length-bytes": 9}, [Verdict.NOTE]),
        (Role.DEAD, {"max-length": 9}, [Verdict.WRONG]),
        (Role.DEAD, {"max-length": 9, "overflow": "reject-publish"}, [Verdict.NOTE]),
        (Role.INBOUND, {"delivery-limit": 20}, [Verdict.WRONG]),
        (Role.INBOUND, {"delivery-limit": -1}, []),
        (Role.INBOUND, {"dead-letter-exchange": "x", "ha-mode": "all"}, []),
        (Role.DEAD, {"dead-letter-exchange": "x"}, [Verdict.NOTE]),
    ],
)
def test_a_policy_is_judged_by_what_the_queue_is_for(
    role: Role, definition: dict[str, object], verdicts: list[Verdict]
) -> None:
    """The same limit saves one queue and empties another."""
    assert [verdict for verdict, _ in policy_problems(role, definition)] == verdicts


def test_the_policy_that_the_broker_applies_is_the_one_that_is_told() -> None:
    """Of each kind the highest priority, for our kind of queue."""
    entries = [
        {"name": "low", "pattern": ".*", "priority": 0, "definition": {"expires": 1}},
        {"name": "high", "pattern": "dead$", "priority": 5, "definition": {}},
        {"name": "other", "pattern": "^x", "priority": 9, "definition": {"expires": 1}},
        {"name": "odd", "pattern": "(?<n", "priority": -1, "definition": {}},
    ]
    policies = parse_policies("policy", [e | {"apply-to": "all"} for e in entries])
    streams = {"name": "s", "pattern": "", "apply-to": "streams", "definition": {}}
    policies += parse_policies("policy", [streams, "no policy"])
    limit = {"name": "a b", "pattern": "", "definition": {"delivery-limit": 5}}
    policies += parse_policies("operator_policy", [limit | {"apply-to": "queues"}])
    wanted = topology(NAMES, (1.0,))

    found = list(policy_findings(policies, wanted, NAMES, vhost="v 1"))

    assert [
        (finding.subject, finding.mend)
        for finding in found
        if "dead" in finding.subject
    ] == [
        (
            "operator_policy a b on queue app.bridge.dead",
            "rabbitmqctl clear_operator_policy --vhost 'v 1' 'a b'",
        )
    ]
    assert "policy low on queue app.bridge.inbound.0" in {f.subject for f in found}


def test_prefetch_must_fit_into_the_ack_timeout() -> None:
    """Over the timeout the broker closes the channel, again and again."""
    usual = prefetch_finding(4000, ack_timeout_s=1800)
    slow = prefetch_finding(2000, ack_timeout_s=10)

    assert usual.verdict is Verdict.OK
    assert (slow.verdict, slow.mend) == (Verdict.WRONG, "BRIDGE_PREFETCH=500")


def test_the_ack_timeout_is_the_lowest_that_a_policy_sets() -> None:
    """From 3.12 on policies may; an operator's comes on top."""
    entry = {"pattern": "^q$", "apply-to": "queues", "name": "p"}
    policies = [
        *parse_policies("policy", [entry | {"definition": {"consumer-timeout": 9000}}]),
        *parse_policies(
            "operator_policy", [entry | {"definition": {"consumer-timeout": 4000}}]
        ),
    ]

    assert ack_timeout_s(policies, "q") == 4
    assert ack_timeout_s(policies[:1], "q") == 9
    assert ack_timeout_s(policies, "other") == 1800


def test_clocks_are_compared_where_a_date_is_told() -> None:
    """Tokens and deadlines are counted by one and written by the other."""
    ahead = clock_ahead_s(formatdate(2**31 - 1, usegmt=True))

    assert ahead is not None
    assert clock_ahead_s(None) is None
    assert clock_ahead_s("yesterday") is None
    assert clock_finding("c", ahead, limit_s=10).verdict is Verdict.WRONG
    assert clock_finding("c", -5.0, limit_s=10).verdict is Verdict.NOTE
    assert clock_finding("c", 1.0, limit_s=10).verdict is Verdict.OK
    assert clock_finding("c", None, limit_s=10).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("free", "used", "verdict"),
    [
        (1 << 20, 0, Verdict.WRONG),
        (1 << 30, 20 << 30, Verdict.WRONG),
        (3 << 30, 20 << 30, Verdict.OK),
    ],
)
def test_the_disk_needs_room_for_what_the_file_may_grow_by(
    free: int, used: int, verdict: Verdict
) -> None:
    """A full disk makes the bridge wait."""
    assert room_finding(free_bytes=free, used_bytes=used).verdict is verdict


def test_a_file_on_a_network_is_worth_a_warning(tmp_path: Path) -> None:
    """The nearest mount above the file counts, the last one if there are two."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"2 1 0:5 / {tmp_path.parent} rw shared:1 - nfs4 server:/x rw\n"
        "3 1 0:6 / /elsewhere\\040x rw - tmpfs none rw\n"
        "not a line of it\n"
    )
    chosen = settings(inbox=f"sqlite:{tmp_path}/inbox.sqlite3")

    room, network = disk_findings(chosen, mounts=mounts)
    (local,) = disk_findings(chosen, mounts=tmp_path / "gone")

    assert room.subject == local.subject == "room for the inbox"
    assert network.verdict is Verdict.NOTE
    assert "nfs4" in network.text
    assert list(disk_findings(settings())) == []


@pytest.mark.parametrize("secret", ["short", "a" * 40, "secretsecretsecretsecret"])
def test_a_secret_that_can_be_guessed_is_told_without_its_value(secret: str) -> None:
    """Nothing that the doctor says may not go into a ticket."""
    found = list(secret_findings(settings(api_key=secret, operator_token=STRONG)))

    assert [finding.subject for finding in found] == ["BRIDGE_API_KEY"]
    assert found[0].verdict is Verdict.WRONG
    assert secret not in found[0].text
    assert weakness(STRONG) is None


def test_the_password_that_everybody_knows_is_no_secret_on_another_machine() -> None:
    """RabbitMQ itself refuses guest from elsewhere, until somebody allows it."""
    away = settings(amqp_url="amqp://guest:guest@broker.example/")

    assert [f.subject for f in secret_findings(away)] == ["BRIDGE_AMQP_URL"]
    assert [f.verdict for f in secret_findings(settings())] == [Verdict.OK]


def test_settings_that_open_doors_are_noted() -> None:
    """They were set in a hurry once, and nobody looks again."""
    open_ones = settings(
        dangerously_open_to_the_network="true",
        dangerously_allow_any_origin="true",
        auth="open",
        host="0.0.0.0",
        operator_host="0.0.0.0",
        legacy_push="true",
    ).model_copy(update={"operator_token": None})

    found = list(setting_findings(open_ones))

    assert len(found) == 5
    assert {finding.verdict for finding in found} == {Verdict.NOTE}
    assert [f.verdict for f in setting_findings(settings())] == [Verdict.OK]
