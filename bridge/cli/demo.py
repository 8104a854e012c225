"""
`bridge demo`: a private RabbitMQ node, the bridge and a page to play with; Ctrl-C ends all.

Everything lives in this process and below the node's keeper, on loopback ports and in
one temporary folder. So there is nothing to configure and nothing to clean up.
"""

import asyncio
import os
import secrets
import shlex
import signal
import socket
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import orjson
import typer
import uvloop
from aiohttp import web
from rich.console import Console

from bridge.amqp.connection import Purpose, open_connection
from bridge.amqp.frame_reader import FrameReader
from bridge.app import Bridge
from bridge.cli.token import signed_token
from bridge.core.broker_names import (
    DEFAULT_NAMESPACE,
    BrokerNames,
)
from bridge.demo.page import add_demo_routes
from bridge.demo.private_node import LocalNode
from bridge.errors import BridgeError, ConfigError, first_error
from bridge.http.listeners import Listening
from bridge.http.publish import PublishEndpoint
from bridge.logging import configure_logs
from bridge.settings.load import load_settings
from bridge.settings.model import Settings
from bridge.settings.names import ENVIRONMENT_PREFIX
from bridge.settings.values import parse_duration_s
from bridge.wiring import broker_address

_HOST: Final = "127.0.0.1"
# On a broker that others use too, the bridge of others must not lose a message to us.
_NAMESPACE_ELSEWHERE: Final = "bridge-demo"
_DRAIN_S: Final = 5.0
_LOOK_EACH_S: Final = 0.5
_QUICK_STOP_S: Final = 0.3
_TOKEN_LIFE_MIN_S: Final = 4.0

_facts = Console(highlight=False)
_talk = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class _Options:
    port: int
    operator_port: int
    amqp_url: str | None  # None: a private node
    token_life_s: float
    log_level: str


def demo(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the page; 0 = any free one.")
    ] = 8080,
    operator_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the operator; 0 = any free one.")
    ] = 8081,
    no_node: Annotated[
        bool, typer.Option("--no-node", help="Start no RabbitMQ; use --amqp-url.")
    ] = False,
    amqp_url: Annotated[
        str | None,
        typer.Option(
            help="The RabbitMQ to use with --no-node; names there begin with "
            f"{_NAMESPACE_ELSEWHERE}, so that no other bridge is disturbed."
        ),
    ] = None,
    token_life: Annotated[
        str,
        typer.Option(help="Of the page's tokens; short, so that renewing can be seen."),
    ] = "2m",  # noqa: S107 - a duration
    log_level: Annotated[
        str, typer.Option(help="Least level that is logged.")
    ] = "error",
) -> None:
    """
    Show it all on one page: RabbitMQ, the bridge, two users side by side.

    Starts a private RabbitMQ node, which needs no root and touches no system service.
    Ctrl-C ends everything, and nothing is left behind. BRIDGE_* settings do not count.

    Examples:

        bridge demo

        bridge demo --port 0 --token-life 10s

        bridge demo --no-node --amqp-url amqp://guest:guest@localhost/

    """
    if no_node != (amqp_url is not None):
        raise ConfigError(["--no-node and --amqp-url go together: give both or none"])
    options = _Options(
        port=port,
        operator_port=operator_port,
        amqp_url=amqp_url,
        token_life_s=_token_life_s(token_life),
        log_level=log_level,
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(options))
    except (asyncio.CancelledError, KeyboardInterrupt):
        pass  # Ctrl-C while starting, or a second one: ended at once, and cleaned up
    if amqp_url is None:
        _say("stopped; nothing is left behind")
    else:
        _say(f"stopped; {_NAMESPACE_ELSEWHERE}.* stays on the broker")


async def _run(options: _Options) -> None:
    leaving = _Leaving()
    _set_environment_aside(os.environ)
    async with AsyncExitStack() as stack:
        url = options.amqp_url
        if url is None:
            node = await stack.enter_async_context(LocalNode.start(progress=_say))
            url = node.url
        settings = _settings(options, url)
        configure_logs(level=settings.log_level, log_format=settings.log_format)
        if options.amqp_url is not None:
            # Once by itself: a wrong password is told at once. The bridge would wait.
            address = broker_address(settings)
            probe = await open_connection(
                address, purpose=Purpose.CHECK, reader=FrameReader
            )
            await probe.disconnect()
        shown = _Demo(settings, options, amqp_url=url)
        leaving.is_starting = False
        await shown.run(leaving.stop)


class _Leaving:
    """The first signal drains, or ends a start; the second insists."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.is_starting = True
        self._main = asyncio.current_task()
        loop = asyncio.get_running_loop()
        # SIGHUP too: a demo whose terminal was closed is of use to nobody.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._leave)

    def _leave(self) -> None:
        if (self.is_starting or self.stop.is_set()) and self._main is not None:
            self._main.cancel()
        self.stop.set()


@dataclass(slots=True)
class _Demo:
    """The bridge with the page, and what the page may ask of it (web/demo.py)."""

    settings: Settings
    options: _Options
    amqp_url: str
    bridge: Bridge = field(init=False)
    door: PublishEndpoint = field(init=False)
    lines: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bridge = Bridge(self.settings)
        parts = self.bridge.components
        add_demo_routes(parts.public_app, self)
        self.door = PublishEndpoint(
            parts.messages,
            parts.metrics,
            max_message_bytes=self.settings.max_message_bytes,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set; errors as `Bridge.run`."""
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watch(stop), name="watch")
                await self.bridge.run(stop, on_listening=self._listens)
                watching.cancel()
        except* (BridgeError, OSError) as group:
            failure = first_error(group)
        else:
            return
        raise failure

    # --- what the page asks for

    def facts(self) -> Mapping[str, object]:
        """Return shell lines, readiness, and where the form publishes to."""
        reasons = self.bridge.unready_reasons()
        return {
            # The address of somebody's broker holds a password: not for a page.
            "lines": self.lines[:1] if self.options.amqp_url else self.lines,
            "ready": not reasons,
            "reasons": reasons,
            "exchange": BrokerNames(self.settings.namespace).messages,
        }

    def token(self, user: str) -> Mapping[str, object]:
        """Return a token for anybody who asks."""
        life_s = self.options.token_life_s
        token = signed_token(self.settings, user, ttl_s=life_s)
        return {"token": token, "expires_in_s": life_s}

    def cut(self, sid: str) -> bool:
        """Cut a window's connection without a word, as a bad network would."""
        for window in self.bridge.components.sockets.rooms:
            if window.sid == sid:
                window.session.close("cut by the demo", abort=True)
                return True
        return False

    async def publish(self, request: web.Request) -> web.Response:
        """Publish through the broker, as a worker does."""
        return await self.door.publish(request)

    # --- what the terminal shows

    def _listens(self, listening: Listening) -> None:
        self.lines = self._shell_lines(listening.operator_url)
        assert self.settings.operator_token is not None  # noqa: S101 - as the key below
        token = self.settings.operator_token.get_secret_value()
        _facts.print(f"\nThe page: [bold]{listening.public_url}/[/bold]")
        _facts.print(
            f"The console: {listening.operator_url}/console, signed in to with {token}\n",
            soft_wrap=True,
        )
        for line in self.lines:
            _facts.print(f"[dim]{line['title']}:[/dim]")
            # Not wrapped, not coloured, nothing in front: to be copied as it is.
            _facts.print(line["text"], markup=False, soft_wrap=True, end="\n\n")
        _say("Ctrl-C stops everything")

    def _shell_lines(self, operator_url: str) -> list[dict[str, str]]:
        hello = orjson.dumps({"user": "ann", "data": "hello from a shell"}).decode()
        assert self.settings.api_key is not None  # noqa: S101 - _settings made one
        key = self.settings.api_key.get_secret_value()
        curl = [
            *("curl", "-sS", f"{operator_url}/api/publish"),
            *("-H", f"X-API-Key: {key}", "-H", "Content-Type: application/json"),
            *("-d", hello),
        ]
        namespace = self.settings.namespace
        where = ["env", f"BRIDGE_NAMESPACE={namespace}"]
        publish = [
            *(where if namespace != DEFAULT_NAMESPACE else ()),
            *_this_program(),
            *("publish", "--amqp-url", self.amqp_url),
            *("ann", '{"text": "hello from a worker"}'),
        ]
        return [
            {"title": "over HTTP", "text": shlex.join(curl)},
            {"title": "over AMQP", "text": shlex.join(publish)},
        ]

    async def _watch(self, stop: asyncio.Event) -> None:
        """Say when the bridge begins to wait for its broker, and when it goes on."""
        told = last = ""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EACH_S):
                    await stop.wait()
            if stop.is_set():
                await asyncio.sleep(_QUICK_STOP_S)  # most are over by then
                _say("stopping; Ctrl-C again does not wait")
                return
            now = ", ".join(self.bridge.unready_reasons())
            if now == last and now != told:  # not what is over in a moment
                told = now
                _say(f"waiting: {now}" if now else "ready again")
            last = now


def _set_environment_aside(environment: MutableMapping[str, str]) -> None:
    """Take all settings out of our own environment: the demo brings its own."""
    names = sorted(
        name for name in environment if name.upper().startswith(ENVIRONMENT_PREFIX)
    )
    for name in names:
        del environment[name]
    if names:
        _say(f"set aside, the demo has its own settings: {', '.join(names)}")


def _settings(options: _Options, amqp_url: str) -> Settings:
    is_own_broker = options.amqp_url is None
    return load_settings(
        {
            "amqp_url": amqp_url,
            "namespace": DEFAULT_NAMESPACE if is_own_broker else _NAMESPACE_ELSEWHERE,
            "host": _HOST,
            "port": _free_or_any(options.port),
            "operator_host": _HOST,
            "operator_port": _free_or_any(options.operator_port),
            "operator_token": secrets.token_urlsafe(24),
            "api_key": secrets.token_hex(12),
            "auth": "jwt",
            "jwt_secret": secrets.token_urlsafe(48),
            # Server and page have one clock, and a token's end should be seen.
            "jwt_leeway": "0s",
            "inbox": "memory:",
            "drain_timeout": _DRAIN_S,
            "log_level": options.log_level,
        }
    )


def _free_or_any(port: int) -> int:
    """Return `port` if it can be had, else 0, and say so."""
    with socket.socket() as probe:
        # As the server does it: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
            _say(f"port {port} cannot be had ({reason}); using a free one")
            return 0
    return port


def _token_life_s(text: str) -> float:
    try:
        life_s = parse_duration_s(text)
    except ValueError as exc:
        raise ConfigError([f"--token-life: {exc}"]) from exc
    if life_s < _TOKEN_LIFE_MIN_S:
        problem = (
            f"--token-life: {text} is short, expected {_TOKEN_LIFE_MIN_S:g}s or more"
        )
        raise ConfigError([problem])
    return life_s


def _this_program() -> list[str]:
    """Return how we were called, so that it works from any folder."""
    called = Path(sys.argv[0]).absolute()
    if called.name == "__main__.py":
        return [sys.executable, "-m", "bridge"]
    return [str(called)]


def _say(sentence: str) -> None:
    _talk.print(sentence, markup=False, soft_wrap=True)
