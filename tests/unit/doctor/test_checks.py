"""Checks that need a disk and no broker."""

import asyncio
from pathlib import Path

import pytest

from bridge.doctor.inbox import check_disk, check_inbox
from bridge.doctor.results import CheckResult, CheckStatus
from bridge.doctor.run import run_checks
from bridge.enums import ExitCode
from bridge.settings.load import load_settings
from bridge.settings.model import Settings
from bridge.wiring import inbox_of


def settings(**changes: object) -> Settings:
    given = {
        "jwt_secret": "a-32-byte-secret-for-these-tests",
        "amqp_url": "amqp://127.0.0.1:1/",
        "operator_port": 0,
        "inbox": "memory:",
    }
    return load_settings(given | changes)


async def check_results(chosen: Settings) -> dict[str, CheckResult]:
    return {result.subject: result async for result in run_checks(chosen)}


async def test_an_invalid_schema_does_not_stop_the_other_checks(tmp_path: Path) -> None:
    """All problems are reported at once."""
    (tmp_path / "note.json").write_text("{")
    invalid = await check_results(settings(schemas=str(tmp_path)))
    (tmp_path / "note.json").write_text("true")
    valid = await check_results(settings(schemas=str(tmp_path)))

    assert invalid["schemas"].exit_code == ExitCode.USAGE
    assert "note.json: is not JSON" in invalid["schemas"].text
    assert invalid["broker 1 (127.0.0.1:1)"].exit_code == ExitCode.UNREACHABLE
    assert invalid["inbox"].status is CheckStatus.OK
    assert valid["schemas"].text == "1 events have a schema"
    assert "schemas" not in await check_results(settings())


async def test_a_schema_that_may_refuse_large_data_is_a_warning(tmp_path: Path) -> None:
    """Its messages would become dead letters one day."""
    (tmp_path / "name.json").write_text(r'{"pattern": "^[\\w\\s]{1,200}$"}')
    (tmp_path / "note.json").write_text('{"items": {"$ref": "#"}, "maxItems": 9}')

    results = await check_results(settings(schemas=str(tmp_path)))

    assert results["schemas"].status is CheckStatus.OK
    assert results["schema name.json"].status is CheckStatus.WARN
    assert "may be refused" in results["schema name.json"].text
    assert "schema note.json" not in results


def test_an_inbox_that_other_users_can_open_is_a_warning(tmp_path: Path) -> None:
    """A bridge that does not own the file cannot remove their access."""
    path = tmp_path / "inbox.sqlite3"
    path.touch(mode=0o600)
    private = check_disk(settings(inbox=f"sqlite:{path}"))
    assert "access to the inbox" not in [result.subject for result in private]

    path.chmod(0o640)
    warned = {
        each.subject: each for each in check_disk(settings(inbox=f"sqlite:{path}"))
    }

    assert warned["access to the inbox"].status is CheckStatus.WARN
    assert warned["access to the inbox"].fix == f"chmod 600 {path}"


async def test_checking_a_missing_inbox_does_not_create_it(tmp_path: Path) -> None:
    """A file created here would belong to the user who ran the check."""
    path = tmp_path / "inbox.sqlite3"
    chosen = settings(inbox=f"sqlite:{path}")

    new = await check_inbox(chosen, is_running=False)
    assert new.status is CheckStatus.OK
    assert "bridge run will create it" in new.text
    assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir()))

    nowhere = settings(inbox=f"sqlite:{tmp_path}/gone/inbox.sqlite3")
    assert (await check_inbox(nowhere, is_running=False)).status is CheckStatus.FAIL

    inbox = inbox_of(chosen)
    await inbox.open()
    try:
        used = await check_inbox(chosen, is_running=False)
        own = await check_inbox(chosen, is_running=True)
    finally:
        await inbox.close()
    assert used.status is CheckStatus.WARN
    assert used.fix.startswith("stop that bridge, or BRIDGE_INBOX=")
    assert own.status is CheckStatus.OK
    assert own.text.endswith("is open in the running bridge")
    assert (await check_inbox(chosen, is_running=False)).text.endswith("is writable")

    path.write_bytes(b"something else" * 100)
    assert (await check_inbox(chosen, is_running=False)).status is CheckStatus.FAIL


async def test_an_unreachable_redis_counts_as_an_unreachable_peer() -> None:
    """Scripts wait on exit status 3 for peers; 1 asks for an operator."""
    result = await check_inbox(settings(inbox="redis://127.0.0.1:1/"), is_running=False)

    assert result.exit_code == ExitCode.UNREACHABLE
    assert result.fix.startswith("sudo systemctl start redis-server")


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("amqp://127.0.0.1:1/", "docker run -d -p 1:5672 rabbitmq:4   # or: sudo "),
        ("amqp://no-such-host.invalid/", "correct BRIDGE_AMQP_URL; "),
    ],
)
async def test_an_unreachable_broker_comes_with_a_command(url: str, fix: str) -> None:
    """A newcomer has no RabbitMQ yet, and one line starts it."""
    chosen = settings(amqp_url=url, inbox="memory:")
    found = {r.subject.partition(" (")[0]: r async for r in run_checks(chosen)}

    assert found["broker 1"].exit_code == ExitCode.UNREACHABLE
    assert found["broker 1"].fix.startswith(fix)
