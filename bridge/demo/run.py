"""
Run the demo: a private RabbitMQ node, the bridge and a page; a signal stops everything.

The bridge runs in this process, the node below a keeper process. Both use loopback ports
and a temporary folder, so there is nothing to configure and nothing to clean up.
"""

import asyncio
import os
import secrets
import shlex
import signal
import socket
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
from pydantic import SecretStr
from yarl import URL

from bridge.amqp.connection import Purpose, open_connection
from bridge.amqp.frame_reader import FrameReader
from bridge.app import Bridge
from bridge.core.broker_names import DEFAULT_NAMESPACE
from bridge.demo.page import DemoPage, ShellCommand
from bridge.demo.private_node import PrivateNode
from bridge.demo.worker import DemoWorker
from bridge.http.listeners import Listening
from bridge.logging import configure_logs
from bridge.settings.load import load_settings
from bridge.settings.model import Settings
from bridge.settings.names import ENVIRONMENT_PREFIX
from bridge.wiring import broker_address

# Another broker may serve other bridges: the demo keeps out of their namespace.
NAMESPACE_ELSEWHERE: Final = "bridge-demo"

_HOST: Final = "127.0.0.1"
_DRAIN_S: Final = 5.0
_READINESS_POLL_S: Final = 0.5
_QUICK_STOP_S: Final = 0.3


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """
    The options of `bridge demo`.

    Attributes:
        port: The public port; 0 means any free one.
        operator_port: The operator port; 0 means any free one.
        amqp_url: The broker to use; ``None`` starts a private node.
        token_life_s: How long the tokens of the page are valid.
        log_level: The lowest level that is logged.
        program: The words that start `bridge` in any folder, for the printed commands.

    """

    port: int
    operator_port: int
    amqp_url: str | None
    token_life_s: float
    log_level: str
    program: Sequence[str]


@dataclass(frozen=True, slots=True)
class DemoStarted:
    """
    The addresses of a started demo, and commands that publish to it.

    `exports` is a line for a shell, after which every command of bridge uses the demo.
    """

    page_url: str
    console_url: str
    operator_token: str
    commands: Sequence[ShellCommand]
    exports: str


Say = Callable[[str], None]


async def run_demo(
    options: DemoOptions, *, say: Say, on_started: Callable[[DemoStarted], None]
) -> None:
    """
    Run the demo until SIGINT, SIGTERM or SIGHUP, then drain; a second signal cancels.

    Args:
        options: From the command line.
        say: Receives short sentences about the progress.
        on_started: Called once, when the page can be opened.

    Raises:
        BridgeError: If the node or the bridge does not start.
        OSError: If a port cannot be opened.

    Cancellation:
        Safe: the node and its folder are removed. A signal during the start cancels.

    """
    signals = _DemoSignals()
    _remove_settings(os.environ, say=say)
    async with AsyncExitStack() as stack:
        url = options.amqp_url
        node = None
        if url is None:
            node = await stack.enter_async_context(PrivateNode.open(progress=say))
            url = node.url
        settings = _settings(options, url, say=say)
        configure_logs(level=settings.log_level, log_format=settings.log_format)
        if options.amqp_url is not None:
            # The bridge would retry for ever. This connection fails at once if the
            # broker is unreachable or refuses the password.
            probe = await open_connection(
                broker_address(settings), purpose=Purpose.CHECK, reader=FrameReader
            )
            await probe.disconnect()
        signals.started()
        await _RunningDemo(settings, options, amqp_url=url, say=say, node=node).run(
            signals.stop, on_started
        )


class _DemoSignals:
    """Sets `stop` at the first signal; cancels the main task at the second."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self._is_starting = True
        self._main = asyncio.current_task()
        loop = asyncio.get_running_loop()
        # SIGHUP too: without it, the demo would outlive its terminal.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._receive)

    def started(self) -> None:
        """Let the next signal drain the bridge. Until then it cancels the start."""
        self._is_starting = False

    def _receive(self) -> None:
        if (self._is_starting or self.stop.is_set()) and self._main is not None:
            self._main.cancel()
        self.stop.set()


class _RunningDemo:
    """The bridge with the page."""

    def __init__(
        self,
        settings: Settings,
        options: DemoOptions,
        *,
        amqp_url: str,
        say: Say,
        node: PrivateNode | None,
    ) -> None:
        self._settings = settings
        self._options = options
        self._amqp_url = amqp_url
        self._say = say
        self._node = node
        self._commands: Sequence[ShellCommand] = ()
        self._bridge = Bridge(settings)
        page = DemoPage(
            self._bridge,
            token_life_s=options.token_life_s,
            commands=self._commands_of_page,
        )
        page.add_routes(self._bridge.components.public_app)

    async def run(
        self, stop: asyncio.Event, on_started: Callable[[DemoStarted], None]
    ) -> None:
        """Run until `stop` is set; raises the errors of `Bridge.run`."""
        token = self._settings.operator_token
        assert token is not None  # noqa: S101 - `_settings` always sets one

        def listening(addresses: Listening) -> None:
            self._commands = self._shell_commands(addresses.operator_url)
            on_started(
                DemoStarted(
                    page_url=f"{addresses.public_url}/",
                    console_url=f"{addresses.operator_url}/console",
                    operator_token=token.get_secret_value(),
                    commands=self._commands,
                    exports=self._exports(addresses),
                )
            )

        await self._bridge.run(stop, on_listening=listening, beside=self._watch(stop))

    async def _watch(self, stop: asyncio.Event) -> None:
        worker = DemoWorker(self._amqp_url, self._settings.namespace)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(worker.run(), name="worker")]
            if self._node is not None:
                keeping = self._node.keep_running(progress=self._say)
                running.append(tasks.create_task(keeping, name="node"))
            await self._report_readiness(stop)
            for task in running:
                task.cancel()

    def _exports(self, addresses: Listening) -> str:
        settings = self._settings
        given = {
            "AMQP_URL": self._amqp_url,
            "NAMESPACE": settings.namespace,
            "PORT": URL(addresses.public_url).port,
            "OPERATOR_PORT": URL(addresses.operator_url).port,
            "OPERATOR_TOKEN": _plain(settings.operator_token),
            "API_KEY": _plain(settings.api_key),
            "JWT_SECRET": _plain(settings.jwt_secret[0]),
            "INBOX": settings.inbox,
        }
        words = [f"{ENVIRONMENT_PREFIX}{name}={value}" for name, value in given.items()]
        line = f"export {shlex.join(words)}"
        folder = Path(self._options.program[0]).parent
        if len(self._options.program) > 1 or folder == Path():
            return line
        return f'{line} PATH={shlex.quote(str(folder))}:"$PATH"'

    def _commands_of_page(self) -> Sequence[ShellCommand]:
        # The AMQP command holds the password of the broker that the user named.
        return self._commands[:1] if self._options.amqp_url else self._commands

    def _shell_commands(self, operator_url: str) -> list[ShellCommand]:
        body = orjson.dumps({"user": "ann", "data": "hello from a shell"}).decode()
        assert self._settings.api_key is not None  # noqa: S101 - `_settings` always sets one
        key = self._settings.api_key.get_secret_value()
        curl = [
            *("curl", "-sS", f"{operator_url}/api/publish"),
            *("-H", f"X-API-Key: {key}", "-H", "Content-Type: application/json"),
            *("-d", body),
        ]
        namespace = self._settings.namespace
        environment = ["env", f"BRIDGE_NAMESPACE={namespace}"]
        publish = [
            *(environment if namespace != DEFAULT_NAMESPACE else ()),
            *self._options.program,
            *("publish", "--amqp-url", self._amqp_url),
            *("ann", '{"text": "hello from a worker"}'),
        ]
        return [
            ShellCommand("over HTTP", shlex.join(curl)),
            ShellCommand("over AMQP", shlex.join(publish)),
        ]

    async def _report_readiness(self, stop: asyncio.Event) -> None:
        """Say when the bridge starts to wait for its broker, and when it is ready again."""
        reported = previous = ""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_READINESS_POLL_S):
                    await stop.wait()
            if stop.is_set():
                await asyncio.sleep(_QUICK_STOP_S)  # most drains end sooner
                self._say("stopping; press Ctrl-C again to stop at once")
                return
            reasons = ", ".join(self._bridge.unready_reasons())
            # Seen twice in a row, so that a short interruption is not reported.
            if reasons == previous and reasons != reported:
                reported = reasons
                self._say(f"waiting: {reasons}" if reasons else "ready again")
            previous = reasons


def _remove_settings(environment: MutableMapping[str, str], *, say: Say) -> None:
    """Remove the settings of a real bridge from this process's environment."""
    names = sorted(
        name for name in environment if name.upper().startswith(ENVIRONMENT_PREFIX)
    )
    for name in names:
        del environment[name]
    if names:
        say(f"ignored, because the demo has its own settings: {', '.join(names)}")


def _settings(options: DemoOptions, amqp_url: str, *, say: Say) -> Settings:
    is_private = options.amqp_url is None
    return load_settings(
        {
            "amqp_url": amqp_url,
            "namespace": DEFAULT_NAMESPACE if is_private else NAMESPACE_ELSEWHERE,
            "host": _HOST,
            "port": _free_port(options.port, say=say),
            "operator_host": _HOST,
            "operator_port": _free_port(options.operator_port, say=say),
            "operator_token": secrets.token_urlsafe(24),
            "api_key": secrets.token_hex(16),
            "auth": "jwt",
            "jwt_secret": secrets.token_urlsafe(48),
            # Server and page share one clock; a token expires exactly when shown.
            "jwt_leeway": "0s",
            # For a page that the reader writes, even opened as a file (origin `null`). Each
            # connection needs a token, and no page of another origin can get one here.
            "dangerously_allow_any_origin": True,
            "inbox": "memory:",
            "presence": True,
            "page_events": ["job.start", "job.cancel"],
            "drain_timeout": _DRAIN_S,
            "log_level": options.log_level,
        }
    )


def _plain(secret: SecretStr | None) -> str:
    return "" if secret is None else secret.get_secret_value()


def _free_port(port: int, *, say: Say) -> int:
    """Return `port` if it is available, otherwise 0 (any free port)."""
    with socket.socket() as probe:
        # As the server does: a port in TIME_WAIT is available.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
            say(f"port {port} is not available ({reason}); using a free one")
            return 0
    return port
