"""The program as its users run it: output, exit codes, signals."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson
import pytest

from bridge.broker.local_node import LocalNode
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.running import (
    OPERATOR_TOKEN,
    SECRET,
    open_windows,
    running_bridge,
    settings_for,
)

LIMIT_S = 30 * SLOW_FACTOR


@dataclass
class Result:
    """What a command left."""

    code: int
    out: str
    err: str


def environment(**settings: str) -> dict[str, str]:
    """Return an environment with these BRIDGE_* settings and no others."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith("BRIDGE_")}
    given = {f"BRIDGE_{name.upper()}": value for name, value in settings.items()}
    return kept | given | {"COLUMNS": "200", "NO_COLOR": "1"}


async def start(*arguments: str, **settings: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bridge",
        *arguments,
        env=environment(**settings),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )


async def command(*arguments: str, stdin: str = "", **settings: str) -> Result:
    """Run a command to its end."""
    process = await start(*arguments, **settings)
    async with asyncio.timeout(LIMIT_S):
        out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())


@dataclass
class RunningProgram:
    """`bridge run` in a process of its own."""

    process: Process
    public_url: str
    operator_url: str

    async def logged(self, event: str) -> dict[str, object]:
        """Wait for a line of its log and return it."""
        assert self.process.stderr is not None
        async with asyncio.timeout(LIMIT_S):
            while line := await self.process.stderr.readline():
                fields: dict[str, object] = orjson.loads(line)
                if fields["event"] == event:
                    return fields
        pytest.fail(f"the program ended without {event}")

    async def ended(self) -> int:
        """Wait for its end and return its exit code."""
        return await ended(self.process)


async def ended(process: Process) -> int:
    """Wait for the end of a process and return its exit code."""
    async with asyncio.timeout(LIMIT_S):
        return await process.wait()


@asynccontextmanager
async def program(
    broker: LocalNode, namespace: str, *arguments: str, **settings: str
) -> AsyncIterator[RunningProgram]:
    """Start `bridge run` and wait until it consumes."""
    process = await start(
        "run", *arguments, **settings_for_program(broker, namespace, **settings)
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            words = (await process.stdout.readline()).decode().split()
        running = RunningProgram(process, words[4].rstrip(","), words[6])
        await running.logged("intake.consuming")
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def settings_for_program(
    broker: LocalNode, namespace: str, **settings: str
) -> dict[str, str]:
    return {
        "amqp_url": broker.url,
        "namespace": namespace,
        "port": "0",
        "operator_port": "0",
        "operator_token": OPERATOR_TOKEN,
        "jwt_secret": SECRET,
        "inbox": "memory:",
        **settings,
    }


async def test_run_tells_in_one_line_where_it_listens_and_sigterm_drains(
    broker: LocalNode, namespace: str
) -> None:
    """Windows are told to connect again, and the exit status is 0."""
    async with program(broker, namespace) as running:
        token = await command("token", "ann", **settings_for_program(broker, namespace))
        tokens = [token.out.strip()]
        async with open_windows(running.public_url, tokens) as (ann,):
            running.process.send_signal(signal.SIGTERM)
            assert await running.ended() == 0
            await eventually(lambda: ann.data("bridge:closing"))

            (notice,) = ann.data("bridge:closing")
            assert isinstance(notice, dict)
            assert (notice["code"], notice["reconnect"]) == ("draining", True)


async def test_ctrl_c_drains_too(broker: LocalNode, namespace: str) -> None:
    """No traceback, status 0."""
    async with program(broker, namespace) as running:
        running.process.send_signal(signal.SIGINT)
        assert await running.ended() == 0
        assert running.process.stderr is not None
        assert b"Traceback" not in await running.process.stderr.read()


async def test_sighup_applies_what_it_can_and_logs_what_changed(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """Secrets are rotated without a restart: the next token is checked by the new rules."""
    file = tmp_path / "bridge.toml"
    file.write_text(f'jwt_secret = "{SECRET}"\nlog_level = "info"\n')
    new_secret = "n" * 40
    settings = settings_for_program(broker, namespace)
    del settings["jwt_secret"]
    process = await start("run", "--config", str(file), **settings)
    assert process.stdout is not None
    try:
        words = (await process.stdout.readline()).decode().split()
        running = RunningProgram(process, words[4].rstrip(","), words[6])
        await running.logged("intake.consuming")

        file.write_text(f'jwt_secret = "{new_secret}"\nnamespace = "other"\n')
        file.write_text(
            f'jwt_secret = "{new_secret}"\nprefetch = 7\nconnect_timeout = "9s"\n'
        )
        process.send_signal(signal.SIGHUP)
        line = await running.logged("settings.reloaded")
        assert line["changed"] == ["prefetch", "jwt_secret"]
        assert line["needs_restart"] == ["connect_timeout"]

        new = settings | {"jwt_secret": new_secret}
        token = (await command("token", "ann", **new)).out.strip()
        async with open_windows(running.public_url, [token]):
            pass

        file.write_text("prefetch = 0\n")
        process.send_signal(signal.SIGHUP)
        line = await running.logged("settings.reload_refused")
        assert "BRIDGE_PREFETCH" in str(line["problems"])

        (tmp_path / "note.json").write_text('{"minimum": "one"}')
        file.write_text(f'jwt_secret = "{SECRET}"\nschemas = "{tmp_path}"\n')
        process.send_signal(signal.SIGHUP)
        line = await running.logged("settings.reload_refused")
        assert "note.json: #/minimum: it is not of type" in str(line["problems"])
    finally:
        process.kill()
        await process.wait()


async def test_wrong_settings_are_told_all_at_once_with_exit_code_2() -> None:
    """Nobody wants to find three faults in three starts."""
    result = await command(
        "run", port="99999", colour="blue", allowed_origins="*", prefetch="many"
    )

    assert result.code == 2
    assert result.out == ""
    for words in (
        "BRIDGE_COLOUR: is not a setting",
        "BRIDGE_PORT: ",
        "BRIDGE_ALLOWED_ORIGINS: * would let every site",
        "BRIDGE_PREFETCH: ",
        "BRIDGE_JWT_SECRET: HS256 needs a secret",
    ):
        assert words in result.err
    assert "Traceback" not in result.err


async def test_a_taken_port_is_a_clear_error(broker: LocalNode, namespace: str) -> None:
    """The commonest fault of a first start."""
    async with program(broker, namespace) as running:
        port = running.public_url.rpartition(":")[2]
        settings = settings_for_program(broker, namespace, port=port)
        result = await command("run", **settings)

    assert result.code == 1
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("bridge: ")
    assert port in last
    assert "Traceback" not in result.err


async def test_check_says_ok_or_what_to_do(broker: LocalNode, namespace: str) -> None:
    """And changes nothing: a second look finds the same."""
    settings = settings_for_program(broker, namespace)

    for _ in range(2):
        result = await command("check", **settings)
        assert result.code == 0
        assert "RabbitMQ 3.10" in result.out
        assert "is not there yet; bridge run will declare it" in result.out

    away = await command(
        "check", "--json", **settings | {"amqp_url": "amqp://127.0.0.1:1/"}
    )
    assert away.code == 3
    lines = [orjson.loads(line) for line in away.out.splitlines()]
    (wrong,) = (line for line in lines if line["verdict"] == "wrong")
    assert wrong["subject"] == "broker 1 (127.0.0.1:1)"
    assert "is RabbitMQ running at 127.0.0.1:1?" in wrong["text"]
    assert max(line["exit_code"] for line in lines) == 3

    login = broker.url.replace(broker.password, "wrong-password")
    refused = await command("check", **settings | {"amqp_url": login})
    assert refused.code == 3
    assert "check the user and the password in BRIDGE_AMQP_URL" in refused.out
    assert "wrong-password" not in refused.out + refused.err


async def test_config_shows_every_setting_and_no_secret() -> None:
    """What an operator may paste into a ticket."""
    result = await command(
        "config", "--json", jwt_secret=SECRET, amqp_url="amqp://u:topsecret@h/"
    )

    shown = orjson.loads(result.out)
    assert shown["prefetch"] == 500
    assert SECRET not in result.out
    assert "topsecret" not in result.out


async def test_publish_and_tail_meet(broker: LocalNode, namespace: str) -> None:
    """From a shell to a window in a terminal: one, many from stdin, whole lines."""
    settings = settings_for_program(broker, namespace)
    async with program(broker, namespace) as running:
        tail = await start(
            "tail", "--user", "ann", "--json", "--url", running.public_url, **settings
        )
        assert tail.stdout is not None
        assert tail.stderr is not None
        try:
            assert b"connected" in await tail.stderr.readline()
            for arguments, stdin in (
                (["ann", '{"text": "hello"}'], ""),
                (["ann", "-"], "1\n2\n"),
                (["-"], '{"user":"ann","event":"note","data":3}\n'),
                (["ann", "--text", "plain"], ""),
            ):
                done = await command("publish", *arguments, stdin=stdin, **settings)
                assert done.code == 0, done.err
            lines = [orjson.loads(await tail.stdout.readline()) for _ in range(5)]
        finally:
            tail.send_signal(signal.SIGINT)
            code = await tail.wait()

    assert [(line["event"], line["data"]) for line in lines] == [
        ("message", {"text": "hello"}),
        ("message", 1),
        ("message", 2),
        ("note", 3),
        ("message", "plain"),
    ]
    assert code == 0


async def test_publish_stops_at_a_bad_line_and_says_which(
    broker: LocalNode, namespace: str
) -> None:
    """So that the rest can be sent again after it was mended."""
    settings = settings_for_program(broker, namespace)
    async with program(broker, namespace):
        result = await command("publish", "ann", "-", stdin="1\n{\n3\n", **settings)

    assert result.code == 2
    assert "1 published before this" in result.err
    assert "line 2: DATA is not JSON" in result.err


async def test_publish_with_schemas_tells_every_bad_line_and_sends_nothing(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """Half of a file in the queue is worse than none."""
    (tmp_path / "message.json").write_text('{"type": "integer"}')
    settings = settings_for_program(broker, namespace, schemas=str(tmp_path))
    lines = "1\n{\n3\n\n" + '"4"\n' * 150
    async with program(broker, namespace):
        bad = await command("publish", "ann", "-", stdin=lines, **settings)
        good = await command("publish", "ann", "-", stdin="1\n2\n", **settings)
        one = await command("publish", "ann", '"x"', **settings)

    assert (bad.code, one.code, good.code) == (2, 2, 0)
    told = bad.err.splitlines()
    assert "line 2: DATA is not JSON" in told[0]
    assert told[1].startswith("bridge: line 5: data breaks message.json#/type")
    assert told[-2:] == ["bridge: and 51 lines more", "bridge: nothing was published"]
    assert "2 published" in good.err


async def test_wrong_schemas_stop_the_start_with_all_their_faults(
    tmp_path: Path,
) -> None:
    """Exit code 2, each with file and place, whoever reads them."""
    (tmp_path / "note.json").write_text('{"properties": {"a": {"$ref": "no.json"}}}')
    (tmp_path / "other.json").write_text("{")
    settings = {"schemas": str(tmp_path), "jwt_secret": SECRET, "inbox": "memory:"}

    for arguments in (["run"], ["publish", "ann", "1"]):
        result = await command(*arguments, **settings)
        assert result.code == 2
        assert result.out == ""
        first, second = result.err.splitlines()
        assert "note.json: #/properties/a/$ref: 'no.json' names no file" in first
        assert "other.json: is not JSON" in second


async def test_publish_without_a_broker_exits_with_3() -> None:
    """A script can tell "not now" from "never"."""
    result = await command(
        "publish",
        "ann",
        "1",
        amqp_url="amqp://127.0.0.1:1/",
        broker_timeout="1s",
    )

    assert result.code == 3


async def test_every_command_explains_itself_with_examples() -> None:
    """`--help` is the manual that people read."""
    overview = await command("--help")
    for name in ("run", "demo", "check", "config", "token", "publish", "tail"):
        assert name in overview.out
        result = await command(name, "--help")
        assert result.code == 0
        assert "Examples" in result.out or "bridge " + name in result.out


async def test_without_a_broker_the_bridge_lives_is_not_ready_and_refuses_to_publish() -> (
    None
):
    """Live fails slowly, ready tells the truth, and a publisher is told to come back."""
    process = await start(
        "run",
        amqp_url="amqp://127.0.0.1:1/",
        jwt_secret=SECRET,
        operator_token=OPERATOR_TOKEN,
        port="0",
        operator_port="0",
        broker_timeout="1s",
        inbox="memory:",
    )
    assert process.stdout is not None
    try:
        words = (await process.stdout.readline()).decode().split()
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{words[4].rstrip(',')}/health/live") as live:
                assert live.status == 200
            async with session.get(f"{words[6]}/health/ready") as ready:
                assert ready.status == 503
                reasons = (await ready.json())["reasons"]
                assert reasons == ["nothing is consumed from the broker"]
            async with session.post(
                f"{words[6]}/api/publish",
                json={"user": "ann", "data": 1},
                headers={"X-API-Key": OPERATOR_TOKEN},
            ) as answer:
                assert answer.status == 503
                assert answer.headers["Retry-After"]
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_number_of_shards_is_shown_and_changed_while_a_bridge_runs(
    broker: LocalNode, namespace: str
) -> None:
    """The command waits until nothing of before is left, and says so by its exit."""
    settings = {"amqp_url": broker.url, "namespace": namespace, "jwt_secret": SECRET}
    async with running_bridge(settings_for(broker, namespace)):
        would = await command("shards", "set", "2", "--dry-run", **settings)
        assert (would.code, would.out) == (0, "from 1 to 2 shards\n")
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
