"""Looks of the doctor that need a disk and no broker."""

import asyncio
from pathlib import Path

from bridge.doctor.checks import examine
from bridge.doctor.inbox import inbox_finding
from bridge.doctor.results import Finding, Verdict
from bridge.enums import ExitCode
from bridge.settings.load import load_settings
from bridge.settings.model import Settings
from bridge.wiring import inbox_of


def settings(**changes: object) -> Settings:
    given = {
        "jwt_secret": "0123456789abcdef0123456789abcdef",
        "amqp_url": "amqp://127.0.0.1:1/",
        "operator_port": 0,
        "inbox": "memory:",
    }
    return load_settings(given | changes)


async def examined(chosen: Settings) -> dict[str, Finding]:
    return {finding.subject: finding async for finding in examine(chosen)}


async def test_wrong_schemas_are_told_with_all_the_rest(tmp_path: Path) -> None:
    """The doctor does not stop at the first illness, and the highest status counts."""
    (tmp_path / "note.json").write_text("{")
    wrong = await examined(settings(schemas=str(tmp_path)))
    (tmp_path / "note.json").write_text("true")
    right = await examined(settings(schemas=str(tmp_path)))

    assert wrong["schemas"].exit_code == ExitCode.USAGE
    assert "note.json: is not JSON" in wrong["schemas"].text
    assert wrong["broker 1 (127.0.0.1:1)"].exit_code == ExitCode.UNREACHABLE
    assert wrong["inbox"].verdict is Verdict.OK
    assert right["schemas"].text == "1 events have one"
    assert "schemas" not in await examined(settings())


async def test_the_inbox_is_looked_at_and_not_made(tmp_path: Path) -> None:
    """A file that the doctor made would belong to whoever called it."""
    path = tmp_path / "inbox.sqlite3"
    chosen = settings(inbox=f"sqlite:{path}")

    new = await inbox_finding(chosen)
    assert new.verdict is Verdict.OK
    assert "bridge run will make it" in new.text
    assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir()))

    nowhere = settings(inbox=f"sqlite:{tmp_path}/gone/inbox.sqlite3")
    assert (await inbox_finding(nowhere)).verdict is Verdict.WRONG

    inbox = inbox_of(chosen)
    await inbox.open()
    try:
        used = await inbox_finding(chosen)
    finally:
        await inbox.close()
    assert used.verdict is Verdict.OK
    assert used.text != new.text
    assert (await inbox_finding(chosen)).text.endswith("can be written")

    path.write_bytes(b"something else" * 100)
    assert (await inbox_finding(chosen)).verdict is Verdict.WRONG


async def test_a_redis_out_of_reach_is_a_peer_out_of_reach() -> None:
    """Scripts wait on status 3 for peers; 1 says that somebody has to mend something."""
    found = await inbox_finding(settings(inbox="redis://127.0.0.1:1/"))

    assert found.exit_code == ExitCode.UNREACHABLE
