"""The results of single checks, case by case."""

from email.utils import formatdate
from pathlib import Path

import pytest
from yarl import URL

from bridge.amqp.management import clock_ahead_s
from bridge.amqp.permissions import MissingPermission, Permission
from bridge.amqp.topology import topology
from bridge.core.broker_names import BrokerNames
from bridge.core.contracts.operator.queues import QueueRole
from bridge.doctor.broker import check_permissions, check_version
from bridge.doctor.certificates import check_certificate
from bridge.doctor.inbox import check_disk, check_disk_space
from bridge.doctor.policies import (
    ack_timeout_s,
    check_policies,
    parse_policies,
    policy_effects,
)
from bridge.doctor.results import CheckStatus
from bridge.doctor.secrets import check_exposure, check_secrets
from bridge.doctor.vhost import check_clock, check_prefetch
from bridge.settings.checks import secret_weakness
from bridge.settings.load import load_settings
from bridge.settings.model import Settings

NAMES = BrokerNames("app.bridge")
URL_OF_APP = URL("amqp://app%20user:secret@broker.example/my%20vhost")
STRONG = "a-32-byte-secret-for-these-tests"


def settings(**changes: object) -> Settings:
    given = {"jwt_secret": STRONG, "operator_token": STRONG, "inbox": "memory:"}
    return load_settings(given | changes)


@pytest.mark.parametrize(
    ("version", "status", "words"),
    [
        ("3.9.29", CheckStatus.FAIL, "too old"),
        ("3.10.8", CheckStatus.OK, "stream_queue"),
        ("3.13.7", CheckStatus.OK, "128 MiB"),
        ("4.0.2", CheckStatus.OK, "delivery limit of 20"),
        ("4.2.1", CheckStatus.OK, "16 MiB"),
        ("4.3.0-rc.1", CheckStatus.OK, "Khepri"),
        ("5.0.0", CheckStatus.WARN, "newer than the newest known"),
        ("unknown", CheckStatus.WARN, "supports RabbitMQ only"),
    ],
)
def test_each_version_is_reported_with_its_defaults(
    version: str, status: CheckStatus, words: str
) -> None:
    """The defaults of RabbitMQ change between versions."""
    result = check_version("broker 1", "RabbitMQ", version)

    assert result.status is status
    assert version in result.text
    assert words in result.text


def test_another_broker_product_is_a_warning() -> None:
    """LavinMQ and Qpid speak AMQP 0-9-1 too."""
    assert check_version("b", "LavinMQ", "3.10.0").status is CheckStatus.WARN


def test_missing_permissions_come_with_the_command_that_grants_exactly_them() -> None:
    """The command can be pasted: spaces are quoted, dots are escaped."""
    lacks = [
        MissingPermission(Permission.WRITE, "app.bridge.dead"),
        MissingPermission(Permission.READ, "app.bridge.dead"),
        MissingPermission(Permission.WRITE, "app.bridge.messages"),
    ]
    result = check_permissions(lacks, NAMES, url=URL_OF_APP, may_do_anything=False)

    assert result.status is CheckStatus.FAIL
    assert result.text == (
        "no write on app.bridge.dead, app.bridge.messages; no read on app.bridge.dead"
    )
    assert result.fix == (
        "rabbitmqctl set_permissions --vhost 'my vhost' 'app user' "
        r"'^app\.bridge\.' '^app\.bridge\.' '^app\.bridge\.'"
        "   # replaces its other permissions there"
    )


@pytest.mark.parametrize(
    "login", ["amqp://localhost/", "amqp://guest:x@h/", str(URL_OF_APP)]
)
@pytest.mark.parametrize("may_do_anything", [True, False])
def test_permissions_of_a_shared_account_are_never_narrowed(
    login: str, *, may_do_anything: bool
) -> None:
    """`set_permissions` would lock every other program out that logs in as `guest`."""
    lacks = [] if may_do_anything else [MissingPermission(Permission.WRITE, "x")]
    result = check_permissions(
        lacks, NAMES, url=URL(login), may_do_anything=may_do_anything
    )

    if may_do_anything or "guest" in result.subject:
        assert result.fix.startswith("rabbitmqctl add_user bridge && ")
        assert " bridge '^app" in result.fix
    assert "guest" not in result.fix


def test_an_account_of_the_bridge_may_be_narrowed() -> None:
    """Its name says that nothing else uses it."""
    url = URL("amqp://bridge:secret@h/")
    result = check_permissions([], NAMES, url=url, may_do_anything=True)

    assert result.fix.startswith("rabbitmqctl set_permissions --vhost / bridge ")


def test_more_permissions_than_needed_are_a_warning() -> None:
    """The bridge's user should have access to nothing else."""
    broad = check_permissions([], NAMES, url=URL_OF_APP, may_do_anything=True)
    least = check_permissions([], NAMES, url=URL_OF_APP, may_do_anything=False)

    assert (broad.status, least.status) == (CheckStatus.WARN, CheckStatus.OK)
    assert broad.exit_code == 0
    assert "secret" not in broad.text + broad.fix


@pytest.mark.parametrize(
    ("days", "status"),
    [
        (-1, CheckStatus.FAIL),
        (6, CheckStatus.FAIL),
        (20, CheckStatus.WARN),
        (90, CheckStatus.OK),
    ],
)
def test_a_certificate_is_reported_before_it_ends(
    days: int, status: CheckStatus
) -> None:
    """An operator needs days, not minutes, to renew it."""
    now_s = 1_700_000_000.0

    result = check_certificate("it", now_s + days * 86400, now_s=now_s, fix="")
    assert result.status is status


@pytest.mark.parametrize(
    ("role", "definition", "statuses"),
    [
        (QueueRole.INBOUND, {"message-ttl": 1000}, [CheckStatus.FAIL]),
        (QueueRole.RETRY, {"message-ttl": 1000}, [CheckStatus.WARN]),
        (QueueRole.DEAD, {"message-ttl": 1000}, [CheckStatus.WARN]),
        (QueueRole.RETRY, {"expires": 1000}, [CheckStatus.FAIL]),
        (QueueRole.INBOUND, {"max-length": 9}, [CheckStatus.WARN]),
        (QueueRole.RETRY, {"max-length-bytes": 9}, [CheckStatus.WARN]),
        (QueueRole.DEAD, {"max-length": 9}, [CheckStatus.FAIL]),
        (
            QueueRole.DEAD,
            {"max-length": 9, "overflow": "reject-publish"},
            [CheckStatus.WARN],
        ),
        (QueueRole.INBOUND, {"delivery-limit": 20}, [CheckStatus.FAIL]),
        (QueueRole.INBOUND, {"delivery-limit": -1}, []),
        (QueueRole.INBOUND, {"dead-letter-exchange": "x", "ha-mode": "all"}, []),
        (QueueRole.DEAD, {"dead-letter-exchange": "x"}, [CheckStatus.WARN]),
    ],
)
def test_the_effect_of_a_policy_depends_on_the_role_of_the_queue(
    role: QueueRole, definition: dict[str, object], statuses: list[CheckStatus]
) -> None:
    """The same limit protects one queue and empties another."""
    assert [status for status, _ in policy_effects(role, definition)] == statuses


@pytest.mark.parametrize(
    ("role", "key", "lost"),
    [
        (QueueRole.INBOUND, "max-length", "publishes without a confirm are lost"),
        (QueueRole.INBOUND, "message-ttl", "they never reach a page"),
        (QueueRole.DEAD, "max-length", "drops the oldest dead letters"),
        (QueueRole.DEAD, "message-ttl", "drops older dead letters"),
    ],
)
def test_a_limit_by_policy_names_what_it_loses(
    role: QueueRole, key: str, lost: str
) -> None:
    """An operator decides by it whether the policy may stay."""
    ((_, text),) = policy_effects(role, {key: 1000})

    assert f"{key} = 1000 " in text
    assert lost in text


def test_only_policies_that_the_broker_applies_are_reported() -> None:
    """Of each kind, the broker applies the match with the highest priority."""
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

    found = list(check_policies(policies, wanted, NAMES, vhost="v 1"))

    assert [
        (result.subject, result.fix) for result in found if "dead" in result.subject
    ] == [
        (
            "operator_policy a b on queue app.bridge.dead",
            "rabbitmqctl clear_operator_policy --vhost 'v 1' 'a b'",
        )
    ]
    assert "policy low on queue app.bridge.inbound.0" in {f.subject for f in found}


def test_a_full_prefetch_must_be_settled_within_the_ack_timeout() -> None:
    """After the timeout the broker closes the channel, and the next one too."""
    usual = check_prefetch(4000, ack_timeout_s=1800)
    slow = check_prefetch(2000, ack_timeout_s=10)

    assert usual.status is CheckStatus.OK
    assert (slow.status, slow.fix) == (CheckStatus.FAIL, "BRIDGE_PREFETCH=500")
    assert "by a policy, the broker waits 10 s" in slow.text


def test_an_ack_timeout_that_no_policy_sets_is_not_claimed_to_be_known() -> None:
    """It was reported as 1800 s, although a node may have another `consumer_timeout`."""
    result = check_prefetch(4000, ack_timeout_s=None)

    assert result.status is CheckStatus.OK
    assert "cannot read its consumer_timeout" in result.text


def test_the_ack_timeout_is_the_lowest_that_a_policy_sets() -> None:
    """RabbitMQ 3.12 and later take it from policies and operator policies."""
    entry = {"pattern": "^q$", "apply-to": "queues", "name": "p"}
    policies = [
        *parse_policies("policy", [entry | {"definition": {"consumer-timeout": 9000}}]),
        *parse_policies(
            "operator_policy", [entry | {"definition": {"consumer-timeout": 4000}}]
        ),
    ]

    assert ack_timeout_s(policies, "q") == 4
    assert ack_timeout_s(policies[:1], "q") == 9
    assert ack_timeout_s(policies, "other") is None


def test_clocks_are_compared_if_the_answer_has_a_date() -> None:
    """One machine writes deadlines and tokens, another compares them with its clock."""
    ahead = clock_ahead_s(formatdate(2**31 - 1, usegmt=True))

    assert ahead is not None
    assert clock_ahead_s(None) is None
    assert clock_ahead_s("yesterday") is None
    assert check_clock("c", ahead, limit_s=10).status is CheckStatus.FAIL
    assert check_clock("c", -5.0, limit_s=10).status is CheckStatus.WARN
    assert check_clock("c", 1.0, limit_s=10).status is CheckStatus.OK
    assert check_clock("c", None, limit_s=10).status is CheckStatus.SKIP


@pytest.mark.parametrize(
    ("free", "used", "status"),
    [
        (1 << 20, 0, CheckStatus.FAIL),
        (1 << 30, 20 << 30, CheckStatus.FAIL),
        (3 << 30, 20 << 30, CheckStatus.OK),
    ],
)
def test_the_disk_needs_free_space_in_proportion_to_the_file(
    free: int, used: int, status: CheckStatus
) -> None:
    """On a full disk the bridge stores nothing and waits."""
    assert check_disk_space(free_bytes=free, used_bytes=used).status is status


def test_a_file_on_a_network_file_system_is_a_warning(tmp_path: Path) -> None:
    """The nearest mount above the file counts, of two on one point the later one."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"2 1 0:5 / {tmp_path.parent} rw shared:1 - nfs4 server:/x rw\n"
        "3 1 0:6 / /elsewhere\\040x rw - tmpfs none rw\n"
        "not a line of it\n"
    )
    chosen = settings(inbox=f"sqlite:{tmp_path}/inbox.sqlite3")

    space, network = check_disk(chosen, mounts=mounts)
    (local,) = check_disk(chosen, mounts=tmp_path / "gone")

    assert space.subject == local.subject == "disk space of the inbox"
    assert network.status is CheckStatus.WARN
    assert "nfs4" in network.text
    assert list(check_disk(settings())) == []


@pytest.mark.parametrize("secret", ["short", "a" * 40, "secretsecretsecretsecret"])
def test_a_weak_secret_is_reported_without_its_value(secret: str) -> None:
    """The output of `bridge check` may be pasted into a ticket."""
    found = list(
        check_secrets(settings(api_key=secret, dangerously_allow_weak_secrets="true"))
    )

    assert [result.subject for result in found] == ["BRIDGE_API_KEY"]
    assert found[0].status is CheckStatus.FAIL
    assert secret not in found[0].text
    assert secret_weakness(STRONG) is None


def test_the_default_password_on_another_machine_is_a_failure() -> None:
    """RabbitMQ refuses guest from other machines unless configured to allow it."""
    away = settings(amqp_url="amqp://guest:guest@broker.example/")

    assert [f.subject for f in check_secrets(away)] == ["BRIDGE_AMQP_URL"]
    assert [f.status for f in check_secrets(settings())] == [CheckStatus.OK]


def test_settings_that_expose_the_bridge_are_warnings() -> None:
    """Such settings are easily forgotten after an experiment."""
    open_ones = settings(
        allowed_origins="dangerously-null",
        dangerously_open_to_the_network="true",
        dangerously_allow_any_origin="true",
        auth="open",
        host="0.0.0.0",
        operator_host="0.0.0.0",
        legacy_push="true",
    ).model_copy(update={"operator_token": None})

    found = list(check_exposure(open_ones))

    assert len(found) == 6
    assert {result.status for result in found} == {CheckStatus.WARN}
    assert [f.status for f in check_exposure(settings())] == [CheckStatus.OK]
