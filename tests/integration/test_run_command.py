"""`bridge run` as a process: start, refused starts, signals."""

import asyncio
import signal
import socket
from pathlib import Path

import aiohttp
import pytest

from tests.conftest import eventually
from tests.integration.programs import (
    LIMIT_S,
    RunningProgram,
    command,
    program,
    settings_for_program,
    start,
)
from tests.integration.running import (
    OPERATOR_TOKEN,
    SECRET,
    open_windows,
)
from tests.local_node import LocalNode


async def test_run_prints_its_urls_and_drains_on_sigterm(
    broker: LocalNode, namespace: str
) -> None:
    """Windows are asked to reconnect, and the exit status is 0."""
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


async def test_ctrl_c_drains(broker: LocalNode, namespace: str) -> None:
    """The exit status is 0, and there is no traceback."""
    async with program(broker, namespace) as running:
        running.process.send_signal(signal.SIGINT)
        assert await running.ended() == 0
        assert running.process.stderr is not None
        assert b"Traceback" not in await running.process.stderr.read()


async def test_sighup_applies_reloadable_settings_and_logs_the_changes(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """A secret can be rotated without a restart: the next token is checked with the new one."""
    file = tmp_path / "bridge.toml"
    file.write_text(f'jwt_secret = "{SECRET}"\nlog_level = "info"\n')
    new_secret = "another-secret-of-more-than-32-bytes"
    settings = settings_for_program(broker, namespace)
    del settings["jwt_secret"]
    process = await start("run", "--config", str(file), **settings)
    assert process.stdout is not None
    try:
        words = (await process.stdout.readline()).decode().split()
        running = RunningProgram(process, words[4].rstrip(","), words[6])
        await running.logged("intake.consuming")

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


async def test_all_invalid_settings_are_reported_with_exit_code_2() -> None:
    """An operator fixes them in one round."""
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
        "BRIDGE_JWT_SECRET: no key is set that can verify tokens",
    ):
        assert words in result.err
    assert "Traceback" not in result.err


async def test_a_port_in_use_is_a_clear_error(
    broker: LocalNode, namespace: str
) -> None:
    """It is the most common problem of a first start."""
    async with program(broker, namespace) as running:
        port = running.port
        settings = settings_for_program(broker, namespace, port=port)
        result = await command("run", **settings)

    assert result.code == 1
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("bridge: ")
    assert port in last
    assert "Traceback" not in result.err


async def test_invalid_schemas_refuse_the_start_with_all_problems(
    tmp_path: Path,
) -> None:
    """Each problem has its file and place; every command that reads schemas reports them."""
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


async def test_without_a_broker_the_bridge_is_live_but_not_ready_and_refuses_to_publish() -> (
    None
):
    """A restart would not help, so only readiness fails; a publish gets a Retry-After."""
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
            url = f"{words[4].rstrip(',')}/health/ready"
            async with session.get(url) as ready:
                assert ready.status == 503
                reasons = (await ready.json())["reasons"]
                assert reasons == ["nothing is consumed from the broker"]
            async with session.get(f"{words[6]}/health/ready") as ready:
                [reason] = (await ready.json())["reasons"]
                assert "broker: connect to RabbitMQ at 127.0.0.1:1: conn" in reason
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


async def test_systemd_is_notified_when_the_ports_are_open(
    broker: LocalNode, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit that starts after bridge can connect at once (`Type=notify`)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = str(tmp_path / "notify")
        manager.bind(address)
        manager.settimeout(LIMIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", address)

        async with program(broker, namespace):
            assert await asyncio.to_thread(manager.recv, 100) == b"READY=1"


async def test_a_missing_service_manager_does_not_stop_the_start(
    broker: LocalNode, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable may be inherited from a shell of a service that has ended."""
    monkeypatch.setenv("NOTIFY_SOCKET", "@bridge-tests-nothing-listens")

    async with program(broker, namespace) as running:
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0
