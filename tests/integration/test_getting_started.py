"""The commands and the page of docs/getting-started.md work when they are copied."""

import asyncio
import re
import shlex
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any, Final

import aio_pika
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from playwright.async_api import async_playwright, expect

from tests.browser.watched_page import launch_chromium
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.programs import LIMIT_S, environment
from tests.integration.running import open_windows
from tests.local_node import LocalNode

_PAGE: Final = Path(__file__).parents[2] / "docs" / "getting-started.md"
_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(section: str) -> list[str]:
    """Return the code blocks under the heading that starts with `section`."""
    text = _PAGE.read_text(encoding="utf-8").split(f"\n## {section}")[1]
    return [body for _, body in _BLOCK.findall(text.partition("\n## ")[0])]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Machine:
    """A folder and a broker on which the commands of the page run."""

    def __init__(self, folder: Path, node: LocalNode) -> None:
        self.folder = folder
        self.node = node
        self.ports = {name: free_port() for name in ("8080", "8081", "8000")}
        self.issuer_url = ""
        self.admin_url = f"amqp://admin:{node.password}@{node.host}:{node.port}/"
        tools = folder / "tools"
        tools.mkdir()
        for name, command in {
            "bridge": f"{sys.executable} -m bridge",
            "rabbitmqctl": f"env {_assignments(node.setup.environment())} "
            f"{node.program('rabbitmqctl')} --quiet",
        }.items():
            (tools / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (tools / name).chmod(0o755)
        # Ports of this test in place of those that every reader has free.
        self.variables = {
            "PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin",
            "RABBIT_PASSWORD": "b" * 32,
            "WORKER_PASSWORD": "w" * 32,
        }

    def adapted(self, text: str) -> str:
        """Return a block of the page with the addresses of this machine."""
        for port, own in self.ports.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{own}")
            text = text.replace(f"http.server {port} ", f"http.server {own} ")
        text = text.replace("127.0.0.1:5672", f"{self.node.host}:{self.node.port}")
        return text.replace(
            "https://login.example.org/.well-known/jwks.json", self.issuer_url
        )

    def _environment(self) -> Mapping[str, str]:
        settings = {"port": self.ports["8080"], "operator_port": self.ports["8081"]}
        root = str(Path(__file__).parents[2])
        return environment(**settings) | self.variables | {"PYTHONPATH": root}

    async def type(self, block: str) -> str:
        """Run a block, which must succeed; return its output."""
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-euc",
            self.adapted(block),
            cwd=self.folder,
            env=self._environment(),
            stdout=PIPE,
            stderr=STDOUT,
        )
        try:
            async with asyncio.timeout(
                2 * LIMIT_S
            ):  # step 2 runs rabbitmqctl four times
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, (block, output.decode())
        return output.decode()

    @asynccontextmanager
    async def running(self, block: str) -> AsyncIterator[None]:
        """Run a block whose last command does not end by itself."""
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-euc",
            self.adapted(block).replace("\nbridge run", "\nexec bridge run"),
            cwd=self.folder,
            env=self._environment(),
            stdout=PIPE,
        )
        assert process.stdout is not None
        try:
            if "bridge run" in block:
                async with asyncio.timeout(LIMIT_S):
                    line = await process.stdout.readline()
                assert b"listens" in line
            yield
        finally:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(LIMIT_S):
                await process.wait()


def _assignments(variables: Mapping[str, str]) -> str:
    return shlex.join(f"{name}={value}" for name, value in variables.items())


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    """The page names fixed users and queues, so it gets a broker of its own."""
    async with LocalNode.start(ready_within_s=90 * SLOW_FACTOR) as node:
        # The administrator has the name that the page gives to the user of bridge.
        await node.add_user("admin", node.password, ".*", ".*", ".*")
        await node.delete_user("bridge")
        yield Machine(tmp_path, node)


async def test_a_reader_gets_from_a_broker_to_a_page(machine: Machine) -> None:
    """Steps 2 to 5, and the existing exchange of step 7, in their order."""
    await machine.type(blocks("2.")[1])
    await machine.type(blocks("3.")[0])
    check, run, publish = blocks("4.")
    html, serve = blocks("5.")
    checked = await machine.type(check)
    assert "fail" not in [
        line.split()[0] for line in checked.splitlines() if line.strip()
    ]
    (machine.folder / "page.html").write_text(machine.adapted(html))
    load = check.splitlines()[0]

    async with machine.running(f"{load}\n{run}"):
        assert "hello" in await machine.type(publish)
        token, serve_page = serve.splitlines()
        await machine.type(f"{load}\n{token}")
        async with (
            machine.running(f"exec {serve_page}\n"),
            async_playwright() as playwright,
        ):
            browser = await launch_chromium(playwright)
            page = await browser.new_page()
            url = f"http://127.0.0.1:{machine.ports['8000']}/page.html"
            await eventually(lambda: _opens(page, url), within_s=LIMIT_S)
            items = page.locator("#messages li")
            await expect(items).to_have_text(["hello"])
            await machine.type(publish.replace("hello", "again"))
            await expect(items).to_have_text(["hello", "again"])
            await _publish_through_another_exchange(machine)
            await expect(items).to_have_text(["hello", "again", "bound"])
            await browser.close()


async def _opens(page: Any, url: str) -> bool:
    try:
        await page.goto(url)
    except Exception as exc:  # noqa: BLE001 - the server has not started yet
        return "ERR_CONNECTION_REFUSED" not in str(exc)
    return True


async def _publish_through_another_exchange(machine: Machine) -> None:
    scope: dict[str, Any] = {}
    exec(blocks("7.")[0], scope)  # noqa: S102 - a block of our own page
    async with await aio_pika.connect(machine.admin_url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("orders", "topic", durable=True)
        await scope["bind"](machine.admin_url, "orders")
        await exchange.publish(
            aio_pika.Message(b'{"text": "bound"}'), routing_key="ann"
        )


@asynccontextmanager
async def _serving_key_set(key: rsa.RSAPrivateKey) -> AsyncIterator[str]:
    entry = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "1"}

    async def key_set(_: web.Request) -> web.Response:
        return web.json_response({"keys": [entry]})

    app = web.Application()
    app.router.add_get("/jwks", key_set)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    finally:
        await runner.cleanup()


async def test_tokens_of_an_own_issuer_are_accepted(machine: Machine) -> None:
    """Step 6, with a key set of RS256, an audience and an issuer."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    await machine.type(blocks("2.")[1])
    await machine.type(blocks("3.")[0])
    claims = {"sub": "ann", "exp": 4102444800, "aud": "push"}
    signed = jwt.encode(
        claims | {"iss": "https://login.example.org/"}, key, "RS256", {"kid": "1"}
    )
    load = blocks("4.")[0].splitlines()[0]

    async with AsyncExitStack() as stack:
        machine.issuer_url = await stack.enter_async_context(_serving_key_set(key))
        await machine.type(blocks("6.")[0])
        run = f"{load}\n{blocks('4.')[1]}"
        await stack.enter_async_context(machine.running(run))
        url = f"http://127.0.0.1:{machine.ports['8080']}"
        async with open_windows(url, [signed]) as (ann,):
            assert ann.data("bridge:sync")


def test_the_token_of_the_page_is_one_that_bridge_accepts() -> None:
    """A reader signs tokens where users log in."""
    scope: dict[str, Any] = {}
    exec(blocks("6.")[1], scope)  # noqa: S102 - a block of our own page

    signed = scope["token_for"]("ann", "s" * 32)

    assert jwt.decode(signed, "s" * 32, ["HS256"])["sub"] == "ann"
