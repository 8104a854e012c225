"""`bridge demo` as a command: it starts anywhere, reports its state, and cleans up."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.browser.demo_process import (
    ANY_PORTS,
    DemoProcess,
    is_free,
    running_demo,
)
from tests.browser.watched_page import opened_page
from tests.conftest import eventually
from tests.local_node import LocalNode
from tests.processes import family_of, is_frozen

pytestmark = pytest.mark.asyncio(loop_scope="session")

_LAST_WORDS = "stopped; everything that the demo created was removed\n"


async def test_ctrl_c_ends_everything_with_exit_code_0(tmp_path: Path) -> None:
    """The command promises it: Ctrl-C stops everything and removes what it created."""
    async with running_demo(tmp_path / "demo", *ANY_PORTS) as demo:
        await demo.started()
        family = family_of(demo.process.pid)
        ports = demo.ports
        assert len(family) >= 4
        assert len(ports) == 3

        assert await demo.end(signal.SIGINT) == 0

        assert demo.err.endswith(_LAST_WORDS)
        assert "Traceback" not in demo.err
        await demo.assert_nothing_left(family, ports)


async def test_after_the_printed_line_every_command_uses_the_demo(
    demo: DemoProcess,
) -> None:
    """A newcomer tries the commands of the documentation without any setup."""
    await demo.consumes()
    [line] = re.findall(r"^export BRIDGE_.+$", demo.out, re.MULTILINE)
    for words in (
        "check",
        "token ann",
        "queues",
        "shards",
        "publish eve 1",
        "users",
    ):
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-c", f"{line}; {sys.executable} -m bridge {words}"],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)


async def test_kill_9_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    """After a crash of the demo, the node's keeper cleans up."""
    async with running_demo(tmp_path / "demo", *ANY_PORTS) as demo:
        await demo.started()
        family = family_of(demo.process.pid)
        ports = demo.ports

        demo.process.kill()

        await demo.assert_nothing_left(family, ports)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
async def test_a_start_can_be_interrupted(tmp_path: Path, name: str) -> None:
    """The start takes seconds; Ctrl-C during it exits cleanly with status 0."""
    async with running_demo(tmp_path / "demo", *ANY_PORTS) as demo:
        await eventually(lambda: list((demo.folder / "tmp").glob("*/node.out")))
        family = family_of(demo.process.pid)

        assert await demo.end(getattr(signal, name)) == 0

        assert demo.err.endswith(_LAST_WORDS)
        assert "Traceback" not in demo.err
        await demo.assert_nothing_left(family, [])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
async def test_sigterm_and_a_closed_terminal_stop_it(
    tmp_path: Path, broker: LocalNode, name: str
) -> None:
    """Without a handler for SIGHUP, it would outlive its terminal."""
    async with running_demo(
        tmp_path / "demo", *ANY_PORTS, "--no-node", "--amqp-url", broker.url
    ) as demo:
        await demo.started()

        assert await demo.end(getattr(signal, name)) == 0

        assert demo.err.endswith("stopped; bridge-demo.* stays on the broker\n")
        assert "Traceback" not in demo.err


async def test_a_dead_node_is_reported_on_the_page_and_on_the_terminal(
    tmp_path: Path, browser: Browser
) -> None:
    """It is restarted. The user sees that the bridge waits, and Ctrl-C still works."""
    async with running_demo(tmp_path / "demo", *ANY_PORTS) as demo:
        await demo.started()
        async with opened_page(browser, demo.url) as page:
            readiness = page.page.locator("#readiness")
            await expect(readiness).to_have_text("ready")

            _signal_node(demo, signal.SIGKILL)

            await expect(readiness).to_contain_text("nothing is consumed")
            await page.expect_live()
            await eventually(lambda: "waiting: nothing is consumed" in demo.err)
            await eventually(lambda: "restarting it" in demo.err)
            await eventually(lambda: "ready again" in demo.err, within_s=60)
            await expect(readiness).to_have_text("ready")
            page.assert_clean()
        family = family_of(demo.process.pid)

        assert await demo.end(signal.SIGINT) == 0

        assert "Traceback" not in demo.err
        await demo.assert_nothing_left(family, demo.ports)


async def test_an_open_page_survives_a_restart_of_the_demo(
    tmp_path: Path, browser: Browser, broker: LocalNode, namespace: str
) -> None:
    """Its position belongs to a store that is gone: the page is notified and continues."""
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
                await expect(note).to_contain_text("Missing:")
                await page.publish(f"after {namespace}")
                await page.expect_message("ann", f"after {namespace}")
                await second.end(signal.SIGTERM)


def _signal_node(demo: DemoProcess, number: signal.Signals) -> int:
    for pid in family_of(demo.process.pid):
        if "beam" in Path(f"/proc/{pid}/comm").read_text():
            os.kill(pid, number)
            return pid
    pytest.fail("no node among the processes of the demo")


async def test_a_frozen_node_does_not_delay_a_second_ctrl_c(tmp_path: Path) -> None:
    """The AMQP close handshake gets no answer; the second Ctrl-C does not wait for it."""
    async with running_demo(tmp_path / "demo", *ANY_PORTS) as demo:
        await demo.started()
        await demo.consumes()  # so that there is a connection to close
        family = family_of(demo.process.pid)
        node = _signal_node(demo, signal.SIGSTOP)
        await eventually(lambda: is_frozen(node))  # until then it could answer

        os.killpg(demo.process.pid, signal.SIGINT)
        await eventually(lambda: "stopping; press Ctrl-C again" in demo.err)
        assert await demo.end(signal.SIGINT) == 0

        assert demo.err.endswith(_LAST_WORDS)
        assert "Traceback" not in demo.err
        await demo.assert_nothing_left(family, demo.ports)


async def test_a_page_that_the_reader_writes_receives_from_the_demo(
    tmp_path: Path, browser: Browser, broker: LocalNode
) -> None:
    """The page of docs/getting-started.md, opened as a file, with a token of the command."""
    guide = Path(__file__).parents[2] / "docs" / "getting-started.md"
    found = re.search(
        r"^```html\n(.*?)^```$", guide.read_text(), re.DOTALL | re.MULTILINE
    )
    assert found
    flags = ("--no-node", "--amqp-url", broker.url)
    async with running_demo(tmp_path / "demo", *ANY_PORTS, *flags) as demo:
        await demo.started()
        await demo.consumes()
        [line] = re.findall(r"^export BRIDGE_.+$", demo.out, re.MULTILINE)

        def output(command: str) -> str:
            script = f"{line}\n{sys.executable} -m bridge {command}"
            return subprocess.run(
                ["sh", "-euc", script],
                env=demo.environment,
                cwd="/",
                check=True,
                capture_output=True,
                text=True,
            ).stdout

        text = found[1].replace("http://127.0.0.1:8080", demo.url)
        file = tmp_path / "page.html"
        token = await asyncio.to_thread(output, "token reader")
        file.write_text(text.replace("TOKEN", token.strip()))
        await asyncio.to_thread(output, """publish reader '{"text": "for my page"}'""")
        await asyncio.to_thread(output, "publish reader '\"plain text\"'")
        page = await browser.new_page()
        await page.goto(file.as_uri())

        items = page.locator("#messages li")
        await expect(items).to_have_text(["for my page", "plain text"])

        async def is_reported_online() -> bool:
            shown = await asyncio.to_thread(output, "users reader --json")
            return '"user.online"' in shown

        await eventually(is_reported_online)
        await page.close()
        await demo.end(signal.SIGTERM)


async def test_an_unreachable_broker_ends_the_demo_with_an_error(
    tmp_path: Path,
) -> None:
    """A bridge waits for its broker, but here the address is probably mistyped."""
    flags = ("--no-node", "--amqp-url", "amqp://guest:guest@127.0.0.1:1/")
    async with running_demo(tmp_path / "demo", *ANY_PORTS, *flags) as demo:
        await eventually(lambda: demo.process.poll() is not None, within_s=30)

        assert demo.process.returncode == 3
        assert demo.err.endswith(
            "bridge: connect to RabbitMQ at 127.0.0.1:1: connection refused; "
            "is RabbitMQ running at 127.0.0.1:1?\n"
        )


async def test_settings_of_the_environment_are_ignored_and_named(
    tmp_path: Path, broker: LocalNode
) -> None:
    """The demo starts in a shell configured for a real bridge, and prints no secret."""
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

        assert "BRIDGE_AUTH, BRIDGE_CONFIG, BRIDGE_NO_SUCH_SETTING" in demo.err
        assert "secret-value" not in demo.err + demo.out
        await demo.end(signal.SIGTERM)


async def test_a_taken_port_is_replaced_with_a_message(
    tmp_path: Path, broker: LocalNode
) -> None:
    """The default port 8080 is popular."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ("--port", str(port), "--operator-port", str(port))
        async with running_demo(
            tmp_path / "demo", *flags, "--no-node", "--amqp-url", broker.url
        ) as demo:
            await demo.started()

            assert demo.err.count(f"port {port} is not available") == 2
            assert not demo.url.endswith(f":{port}")
            await demo.end(signal.SIGTERM)


async def test_a_free_port_is_used_as_given(tmp_path: Path, broker: LocalNode) -> None:
    """A user may have bookmarked the address."""
    port = _free_port()
    flags = ("--port", str(port), "--operator-port", "0")
    async with running_demo(
        tmp_path / "demo", *flags, "--no-node", "--amqp-url", broker.url
    ) as demo:
        await demo.started()

        assert demo.url == f"http://127.0.0.1:{port}"
        await demo.end(signal.SIGTERM)


async def test_the_page_does_not_show_the_address_of_a_given_broker(
    tmp_path: Path, browser: Browser, broker: LocalNode
) -> None:
    """The URL contains a password. Only the terminal, where it was typed, shows it."""
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
async def test_wrong_usage_ends_with_exit_code_2(
    tmp_path: Path, flags: list[str], problem: str
) -> None:
    """The options are checked before a node is started."""
    async with running_demo(tmp_path / "demo", *flags) as demo:
        await eventually(lambda: demo.process.poll() is not None)

        assert demo.process.returncode == 2
        assert problem in demo.err
        assert "Traceback" not in demo.err


def _free_port() -> int:
    """Return a free port below the kernel's range for outgoing connections."""
    return next(port for port in range(9000, 9999) if is_free(port))
