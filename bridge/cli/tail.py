"""`bridge tail`: be a page of a user, in a terminal."""

import asyncio
import datetime as dt
import sys
from functools import partial
from typing import Annotated

import aiohttp
import orjson
import socketio
import typer
from rich.console import Console

from bridge.cli.options import ConfigFile
from bridge.cli.token import signed_token
from bridge.enums import EVENT_JOIN, EVENT_SYNC, ExitCode
from bridge.logging import configure_logs
from bridge.settings.load import load_settings

_TOKEN_LIFE_S = 3600.0
_CONNECT_WITHIN_S = 10


def tail(
    user: Annotated[str, typer.Option("--user", help="Whose messages to print.")],
    url: Annotated[
        str | None,
        typer.Option(help="The bridge's public address. Without it: this machine's."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="TOKEN",
            show_envvar=True,
            help="A token of USER. Without it one is signed with BRIDGE_JWT_SECRET.",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line.")
    ] = False,
    config_file: ConfigFile = None,
) -> None:
    """
    Connect as a browser of USER would and print what arrives, until Ctrl-C.

    It counts as a window but only looks on: what it prints still waits for a page.

    Examples:

        bridge tail --user ann

        bridge tail --user ann --url https://push.example.org --token "$TOKEN" --json

    """
    configure_logs(level="error", log_format="auto")
    is_open = False
    if token is None or url is None:
        settings = load_settings(config_file=str(config_file) if config_file else None)
        is_open = settings.auth == "open"
        url = url or f"http://{settings.host}:{settings.port}"
        if token is None and not is_open:
            token = signed_token(settings, user, ttl_s=_TOKEN_LIFE_S)
    follower = _Follower(user, shows_json=json, joins=is_open)
    try:
        asyncio.run(follower.follow(url, token))
    except KeyboardInterrupt:
        sys.exit(ExitCode.DONE)
    sys.exit(follower.exit_code)


class _Follower:
    """Prints what one window gets: messages on stdout, talk on stderr."""

    def __init__(self, user: str, *, shows_json: bool, joins: bool) -> None:
        self.exit_code = ExitCode.DONE
        self._user = user
        self._shows_json = shows_json
        self._joins = joins
        self._talk = Console(stderr=True, highlight=False)

    async def follow(self, url: str, token: str | None) -> None:
        """
        Stay connected until the bridge ends it for good.

        Cancellation: safe; what was opened is closed.
        """
        # The client leaves a session of its own open, and the interpreter's end would
        # complain of it with a traceback.
        async with aiohttp.ClientSession() as session:
            await self._follow(self._make_client(session), url, token)

    def _make_client(self, session: aiohttp.ClientSession) -> socketio.AsyncClient:
        client = socketio.AsyncClient(
            logger=False,
            engineio_logger=False,
            handle_sigint=False,  # or Ctrl-C ends in a traceback
            http_session=session,
        )
        client.on("disconnect", self._disconnected)
        client.on("connect_error", self._refused)
        client.on("*", self._received)
        return client

    async def _follow(
        self, client: socketio.AsyncClient, url: str, token: str | None
    ) -> None:
        client.on("connect", partial(self._connected, client))
        try:
            await client.connect(
                url,
                # A pure observer: it acks nothing, so what it prints is not delivered.
                auth={"token": token, "acks": "manual"},
                wait_timeout=_CONNECT_WITHIN_S,
            )
        except socketio.exceptions.ConnectionError as exc:
            if self.exit_code == ExitCode.DONE:  # not refused: that was told
                self._say(f"cannot connect to {url}: {exc}")
                self.exit_code = ExitCode.UNREACHABLE
            return
        try:
            await client.wait()
        finally:
            await client.disconnect()

    async def _connected(self, client: socketio.AsyncClient) -> None:
        self._say(f"connected, waiting for messages of {self._user}; Ctrl-C ends")
        if self._joins:
            await client.emit(EVENT_JOIN, {"username": self._user})

    async def _disconnected(self, reason: str) -> None:
        self._say(f"disconnected: {reason}")

    async def _refused(self, problem: object) -> None:
        data = problem.get("data") if isinstance(problem, dict) else None
        if isinstance(data, dict) and "code" in data:
            self.exit_code = ExitCode.FAILED
            self._say(f"refused, {data['code']}: {problem['message']}")  # type: ignore[index] # a dict, above

    async def _received(self, event: str, *arguments: object) -> None:
        now = dt.datetime.now(tz=dt.UTC)
        data = arguments[0] if arguments else None
        if event.startswith("bridge:"):
            detail = orjson.dumps(data).decode()
            if event != EVENT_SYNC or '"complete":false' in detail:
                self._say(f"{event} {detail}")
            return
        position = arguments[1] if len(arguments) > 1 else None
        if self._shows_json:
            line = orjson.dumps(
                {"time": now, "event": event, "data": data, "position": position}
            ).decode()
        else:
            clock = now.astimezone().strftime("%H:%M:%S")
            # JSON escapes what could move a terminal's cursor.
            line = f"{clock} {event} {orjson.dumps(data).decode()}"
        typer.echo(line)

    def _say(self, text: str) -> None:
        self._talk.print(text, markup=False, soft_wrap=True)
