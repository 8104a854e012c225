"""`bridge demo` as a command: it starts anywhere, says what it does, and leaves nothing."""

import os
import signal
import socket
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from bridge.demo.private_node import LocalNode
from tests.browser.demo_process import (
    ANY_PORTS,
    DemoProcess,
    is_free,
    running_demo,
)
from tests.browser.watched_page import opened_page
from tests.conftest import eventually
from tests.processes import family_of, is_frozen

pytestmark = pytest.mark.asyncio(loop_scope="session")

_LAST_WORDS = "stopped; nothing is left behind\n"


async def test_ctrl_c_ends_everything_with_exit_code_0(tmp_path: Path) -> None:
    """The one promise that a person who tries something out cares about."""
    async with running_demo(tmp_path / "demo", *ANY_PORTS) as demo:
        await demo.started()
        family = family_of(demo.process.pid)
        ports = demo.ports
        assert len(family) >= 4
        assert len(ports) == 3

        assert await demo.end(signal.SIGINT) == 0

        assert demo.talk.endswith(_LAST_WORDS)
        assert "Traceback" not in demo.talk
        await demo.assert_nothing_left(family, ports)


async def test_kill_9_leaves_nothing(tmp_path: Path) -> None:
    """A crash cannot clean up after itself; the node's keeper does."""
    async with running_demo(tmp_path / "demo", *ANY_PORTS) as demo:
        await demo.started()
        family = family_of(demo.process.pid)
        ports = demo.ports

        demo.process.kill()

        await demo.assert_nothing_left(family, ports)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
async def test_a_start_can_be_interrupted(tmp_path: Path, name: str) -> None:
    """The start takes seconds, and impatience is no fault."""
    async with running_demo(tmp_path / "demo", *ANY_PORTS) as demo:
        await eventually(lambda: list((demo.folder / "tmp").glob("*/node.out")))
        family = family_of(demo.process.pid)

        assert await demo.end(getattr(signal, name)) == 0

        assert demo.talk.endswith(_LAST_WORDS)
        assert "Traceback" not in demo.talk
        await demo.assert_nothing_left(family, [])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
async def test_a_service_manager_or_a_closed_terminal_ends_it_too(
    tmp_path: Path, broker: LocalNode, name: str
) -> None:
    """A demo whose terminal is gone would otherwise run for ever."""
    async with running_demo(
        tmp_path / "demo", *ANY_PORTS, "--no-node", "--amqp-url", broker.url
    ) as demo:
        await demo.started()

        assert await demo.end(getattr(signal, name)) == 0

        assert demo.talk.endswith("stopped; bridge-demo.* stays on the broker\n")
        assert "Traceback" not in demo.talk


async def test_a_dead_node_is_told_on_the_page_and_on_the_terminal(
    tmp_path: Path, browser: Browser
) -> None:
    """Waiting is a state that must be seen, and Ctrl-C works in it as ever."""
    async with running_demo(tmp_path / "demo", *ANY_PORTS) as demo:
        await demo.started()
        async with opened_page(browser, demo.url) as page:
            readiness = page.page.locator("#readiness")
            await expect(readiness).to_have_text("ready")

            _signal_node(demo, signal.SIGKILL)

            await expect(readiness).to_contain_text("nothing is consumed")
            await page.expect_live()
            await eventually(lambda: "waiting: nothing is consumed" in demo.talk)
            page.assert_clean()
        family = family_of(demo.process.pid)

        assert await demo.end(signal.SIGINT) == 0

        assert "Traceback" not in demo.talk
        await demo.assert_nothing_left(family, demo.ports)


async def test_an_open_page_outlives_a_restart_of_the_demo(
    tmp_path: Path, browser: Browser, broker: LocalNode, namespace: str
) -> None:
    """Its old place is of a store that is gone: it is told, and goes on from there."""
    flags = (
        *("--port", str(_free_port()), "--operator-port", "0"),
        *("--no-node", "--amqp-url", broker.url),
    )
    async with running_demo(tmp_path / "first", *flags) as first:
        await first.started()
        async with opened_page(browser, first.url) as page:
            await page.publish(f"before {namespace}")
            await page.expect_message("ann", f"before {namespace}")
            assert await first.end(signal.SIGTERM) == 0
            await page.expect_state("ann", "cut")
            readiness = page.page.locator("#readiness")
            await expect(readiness).to_have_text("the demo has stopped")

            async with running_demo(tmp_path / "second", *flags) as second:
                await second.started()
                await page.expect_live()
                note = page.window("ann").locator("#note")
                await expect(note).to_contain_text("Gone for good")
                await page.publish(f"after {namespace}")
                await page.expect_message("ann", f"after {namespace}")
                await second.end(signal.SIGTERM)


def _signal_node(demo: DemoProcess, number: signal.Signals) -> int:
    for pid in family_of(demo.process.pid):
        if "beam" in Path(f"/proc/{pid}/comm").read_text():
            os.kill(pid, number)
            return pid
    pytest.fail("no node among the processes of the demo")


async def test_a_frozen_node_does_not_hold_ctrl_c_up(tmp_path: Path) -> None:
    """It answers nothing, not even a goodbye; a second Ctrl-C does not wait for one."""
    async with running_demo(tmp_path / "demo", *ANY_PORTS) as demo:
        await demo.started()
        await demo.consumes()  # or there is nobody to say goodbye to
        family = family_of(demo.process.pid)
        node = _signal_node(demo, signal.SIGSTOP)
        await eventually(lambda: is_frozen(node))  # until then it could say goodbye

        os.killpg(demo.process.pid, signal.SIGINT)
        await eventually(lambda: "stopping; Ctrl-C again" in demo.talk)
        assert await demo.end(signal.SIGINT) == 0

        assert demo.talk.endswith(_LAST_WORDS)
        assert "Traceback" not in demo.talk
        await demo.assert_nothing_left(family, demo.ports)


async def test_a_broker_that_is_not_there_ends_the_demo_with_what_is_wrong(
    tmp_path: Path,
) -> None:
    """A bridge waits for its broker; who tries something out has mistyped its address."""
    flags = ("--no-node", "--amqp-url", "amqp://guest:guest@127.0.0.1:1/")
    async with running_demo(tmp_path / "demo", *ANY_PORTS, *flags) as demo:
        await eventually(lambda: demo.process.poll() is not None, within_s=30)

        assert demo.process.returncode == 3
        assert demo.talk.endswith(
            "bridge: connect to RabbitMQ at 127.0.0.1:1: connection refused; "
            "is RabbitMQ running at 127.0.0.1:1?\n"
        )


async def test_settings_of_the_environment_are_set_aside_and_named(
    tmp_path: Path, broker: LocalNode
) -> None:
    """Who runs a bridge in this shell can still try the demo; no secret is printed."""
    environment = {
        "BRIDGE_AUTH": "open",
        "BRIDGE_NO_SUCH_SETTING": "secret-value",
        "BRIDGE_CONFIG": "/no/such/file",
    }
    async with running_demo(
        tmp_path / "demo",
        *ANY_PORTS,
        *("--no-node", "--amqp-url", broker.url),
        environment=environment,
    ) as demo:
        await demo.started()

        assert "BRIDGE_AUTH, BRIDGE_CONFIG, BRIDGE_NO_SUCH_SETTING" in demo.talk
        assert "secret-value" not in demo.talk + demo.facts
        await demo.end(signal.SIGTERM)


async def test_a_taken_port_is_replaced_and_told(
    tmp_path: Path, broker: LocalNode
) -> None:
    """8080 is where everything runs."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ("--port", str(port), "--operator-port", str(port))
        async with running_demo(
            tmp_path / "demo", *flags, "--no-node", "--amqp-url", broker.url
        ) as demo:
            await demo.started()

            assert demo.talk.count(f"port {port} cannot be had") == 2
            assert not demo.url.endswith(f":{port}")
            await demo.end(signal.SIGTERM)


async def test_a_free_port_is_used_as_given(tmp_path: Path, broker: LocalNode) -> None:
    """What was asked for, for those who typed it into a browser already."""
    port = _free_port()
    flags = ("--port", str(port), "--operator-port", "0")
    async with running_demo(
        tmp_path / "demo", *flags, "--no-node", "--amqp-url", broker.url
    ) as demo:
        await demo.started()

        assert demo.url == f"http://127.0.0.1:{port}"
        await demo.end(signal.SIGTERM)


async def test_the_page_does_not_show_the_address_of_somebody_elses_broker(
    tmp_path: Path, browser: Browser, broker: LocalNode
) -> None:
    """It holds a password. The terminal shows what was typed there."""
    async with running_demo(
        tmp_path / "demo", *ANY_PORTS, "--no-node", "--amqp-url", broker.url
    ) as demo:
        await demo.started()
        async with opened_page(browser, demo.url) as page:
            await expect(page.page.locator("#lines li")).to_have_count(1)
            assert broker.password not in await page.page.content()
        assert demo.shell_lines["over AMQP"].startswith("env BRIDGE_NAMESPACE=")
        await demo.end(signal.SIGTERM)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--no-node"], "go together"),
        (["--amqp-url", "amqp://localhost/"], "go together"),
        (["--token-life", "soon"], "--token-life"),
        (["--token-life", "1s"], "--token-life"),
        (["--no-node", "--amqp-url", "http://localhost/"], "BRIDGE_AMQP_URL"),
    ],
)
async def test_wrong_use_is_told_with_exit_code_2(
    tmp_path: Path, flags: list[str], problem: str
) -> None:
    """Before anything is started."""
    async with running_demo(tmp_path / "demo", *flags) as demo:
        await eventually(lambda: demo.process.poll() is not None)

        assert demo.process.returncode == 2
        assert problem in demo.talk
        assert "Traceback" not in demo.talk


def _free_port() -> int:
    """Below those that the kernel gives to outgoing connections."""
    return next(port for port in range(9000, 9999) if is_free(port))
