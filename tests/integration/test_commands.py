"""Output and exit codes of the commands besides `run`."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import orjson

from tests.integration.programs import (
    LIMIT_S,
    command,
    environment,
    settings_for_program,
    start,
)
from tests.integration.running import (
    SECRET,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode


async def test_check_reports_ok_or_a_fix(broker: LocalNode, namespace: str) -> None:
    """It changes nothing: a second run reports the same."""
    settings = settings_for_program(broker, namespace)

    for _ in range(2):
        result = await command("check", **settings)
        assert result.code == 0
        assert ": RabbitMQ " in result.out
        assert "does not exist yet; bridge run will declare it" in result.out

    away = await command(
        "check", "--json", **settings | {"amqp_url": "amqp://127.0.0.1:1/"}
    )
    assert away.code == 3
    lines = [orjson.loads(line) for line in away.out.splitlines()]
    (failed,) = (line for line in lines if line["status"] == "fail")
    assert failed["subject"] == "broker 1 (127.0.0.1:1)"
    assert "is RabbitMQ running at 127.0.0.1:1?" in failed["text"]
    assert max(line["exit_code"] for line in lines) == 3

    login = broker.url.replace(broker.password, "wrong-password")
    refused = await command("check", **settings | {"amqp_url": login})
    assert refused.code == 3
    assert "check the user and the password in BRIDGE_AMQP_URL" in refused.out
    assert "wrong-password" not in refused.out + refused.err


async def test_check_finishes_when_nothing_reads_its_output(
    broker: LocalNode, namespace: str
) -> None:
    """As in `bridge check | head -3`: no traceback, and the exit code of the checks."""
    settings = settings_for_program(broker, namespace)
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "bridge", "check"),
            env=environment(**settings),
            stdout=write_end,
            stderr=asyncio.subprocess.PIPE,
        )
    finally:
        os.close(write_end)
    async with asyncio.timeout(LIMIT_S):
        _, err = await process.communicate()

    assert err.decode() == ""
    assert process.returncode == 0


async def test_config_shows_every_setting_and_no_secret() -> None:
    """Operators copy the output into tickets."""
    result = await command(
        "config",
        "--json",
        jwt_secret=SECRET,
        jwt_algorithms="HS256,RS256",
        jwks_url="https://u:topsecret@keys.example.org/",
        amqp_url="amqp://u:topsecret@h/",
    )

    shown = orjson.loads(result.out)
    assert shown["prefetch"] == 4000
    assert shown["jwks_url"] == "https://u:***@keys.example.org/"
    assert SECRET not in result.out
    assert "topsecret" not in result.out


async def test_tail_prints_published_messages(
    broker: LocalNode, namespace: str
) -> None:
    """Messages come from arguments, from stdin, and from lines with their own user."""
    settings = settings_for_program(broker, namespace)
    async with running_bridge(settings_for(broker, namespace)) as running:
        url = running.listening.public_url
        tail = await start("tail", "ann", "--json", "--url", url, **settings)
        assert tail.stdout is not None
        assert tail.stderr is not None
        try:
            assert b"connected" in await tail.stderr.readline()
            for arguments, stdin in (
                (["ann", '{"text": "hello"}'], ""),
                (["ann", "-"], '1\n2\n"cut \\ud83d"\n'),
                (["-"], '{"user":"ann","event":"note","data":3}\n'),
                (["ann", "--text", "plain"], ""),
            ):
                done = await command("publish", *arguments, stdin=stdin, **settings)
                assert done.code == 0, done.err
            lines = [json.loads(await tail.stdout.readline()) for _ in range(6)]
        finally:
            tail.send_signal(signal.SIGINT)
            async with asyncio.timeout(LIMIT_S):
                _, talk = await tail.communicate()

    assert talk.decode() == "disconnected: client disconnect\n"  # and no traceback
    assert [(line["event"], line["data"]) for line in lines] == [
        ("message", {"text": "hello"}),
        ("message", 1),
        ("message", 2),
        ("message", "cut \ud83d"),
        ("note", 3),
        ("message", "plain"),
    ]
    assert tail.returncode == 0


async def test_publish_to_a_missing_exchange_names_the_fix(
    broker: LocalNode, namespace: str
) -> None:
    """No bridge has run yet, or the namespace is misspelled."""
    settings = settings_for_program(broker, namespace)

    done = await command("publish", "ann", "1", **settings)

    assert done.code == 1
    assert f"no exchange '{namespace}.messages'" in done.err
    assert "bridge run declares it: has one run there, with this BRIDGE_NAMESPACE?" in (
        done.err
    )


async def test_publish_sends_each_line_at_once_until_ctrl_c(
    broker: LocalNode, namespace: str
) -> None:
    """With `tail -f` as input, the next line may come in an hour, for another user."""
    settings = settings_for_program(broker, namespace)
    async with running_bridge(settings_for(broker, namespace)):
        publishing = await start("publish", "-", "--json", **settings)
        assert publishing.stdin is not None
        assert publishing.stdout is not None
        try:
            for user in ("ann", "bob"):
                line = orjson.dumps({"user": user, "id": f"for-{user}", "data": 1})
                publishing.stdin.write(line + b"\n")
                async with asyncio.timeout(LIMIT_S):
                    printed = orjson.loads(await publishing.stdout.readline())
                assert printed == {"id": f"for-{user}"}
        finally:
            publishing.send_signal(signal.SIGINT)
            _, err = await publishing.communicate()

    assert b"Traceback" not in err
    assert b"Fatal" not in err


async def test_publish_stops_at_a_bad_line_and_reports_it(
    broker: LocalNode, namespace: str
) -> None:
    """The author can fix that line and publish the rest."""
    settings = settings_for_program(broker, namespace)
    async with running_bridge(settings_for(broker, namespace)):
        result = await command("publish", "ann", "-", stdin="1\n{\n3\n", **settings)

    assert result.code == 2
    assert "1 published before this" in result.err
    assert "line 2: DATA is not JSON" in result.err


async def test_publish_with_schemas_reports_every_bad_line_and_sends_nothing(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """Half a file in the queue is worse than none."""
    (tmp_path / "message.json").write_text('{"type": "integer"}')
    settings = settings_for_program(broker, namespace, schemas=str(tmp_path))
    lines = "1\n{\n3\n\n" + '"4"\n' * 150
    async with running_bridge(settings_for(broker, namespace)):
        bad = await command("publish", "ann", "-", stdin=lines, **settings)
        good = await command("publish", "ann", "-", stdin="1\n2\n", **settings)
        one = await command("publish", "ann", '"x"', **settings)

    assert (bad.code, one.code, good.code) == (2, 2, 0)
    errors = bad.err.splitlines()
    assert "line 2: DATA is not JSON" in errors[0]
    assert errors[1].startswith("bridge: line 5: DATA breaks message.json#/type")
    assert errors[-2:] == ["bridge: and 51 more lines", "bridge: nothing was published"]
    assert "2 published" in good.err


async def test_publish_without_a_broker_exits_with_3() -> None:
    """A script can distinguish a temporary failure from a permanent one."""
    result = await command(
        "publish",
        "ann",
        "1",
        amqp_url="amqp://127.0.0.1:1/",
        broker_timeout="1s",
    )

    assert result.code == 3


async def test_tail_names_the_cause_when_it_cannot_connect() -> None:
    """It printed the text of the library, with `[Connect call failed ('127.0.0.1', 1)]`."""
    result = await command(
        "tail", "ann", "--url", "http://127.0.0.1:1", jwt_secret=SECRET
    )

    assert result.code == 3
    assert result.err.strip() == (
        "bridge: cannot connect to http://127.0.0.1:1: connection refused; no program "
        "listens there"
    )


async def test_shards_shows_and_changes_the_number_while_a_bridge_runs(
    broker: LocalNode, namespace: str
) -> None:
    """The command returns once the old queues are empty."""
    settings = {"amqp_url": broker.url, "namespace": namespace, "jwt_secret": SECRET}
    async with running_bridge(settings_for(broker, namespace)):
        dry_run = await command("shards", "set", "2", "--dry-run", **settings)
        assert (dry_run.code, dry_run.out) == (0, "from 1 to 2 shards\n")
        changed = await command("shards", "set", "2", **settings)
        assert (changed.code, changed.out) == (0, "2 shards\n")
        assert "waiting for the bridges to empty" in changed.err

    shown = await command("shards", "--json", **settings, shards="2")

    assert shown.code == 0
    assert orjson.loads(shown.out) == {
        "shards": 2,
        "setting": 2,
        "before": 2,
        "left_of_before": [],
    }
