"""`bridge tail`: print the messages of a user as a browser would receive them."""

import asyncio
import datetime as dt
import ssl
import sys
from functools import partial
from typing import Annotated

import aiohttp
import socketio
import typer

from bridge.auth.issuing import signed_token
from bridge.cli.options import ConfigFile, check_url
from bridge.cli.tables import print_note
from bridge.core.json_text import render_json
from bridge.core.listen_hosts import local_host
from bridge.enums import EVENT_JOIN, EVENT_SYNC, ExitCode
from bridge.errors import ConfigError, connection_problem
from bridge.http.listeners import http_url
from bridge.logging import configure_logs
from bridge.server_certificate import context_trusting
from bridge.settings.load import TOKEN_VARIABLE, load_settings

_TOKEN_LIFE_S = 3600.0
_CONNECT_TIMEOUT_S = 10
_SCHEMES = frozenset({"http", "https", "ws", "wss"})


def tail(
    user: Annotated[
        str | None, typer.Argument(help="The user whose messages to print.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Public address of the bridge. Default: this machine."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar=TOKEN_VARIABLE,
            show_envvar=True,
            help="A token of USER. Default: one that is signed with BRIDGE_JWT_SECRET.",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line.")
    ] = False,
    config_file: ConfigFile = None,
    older_user: Annotated[
        str | None, typer.Option("--user", hidden=True, help="An earlier form of USER.")
    ] = None,
) -> None:
    """
    Connect like a browser of USER and print its messages, until Ctrl-C.

    It counts as a window but acknowledges nothing: printed messages stay undelivered until
    a page receives them.

    Examples:

        bridge tail ann

        BRIDGE_TOKEN=eyJ… bridge tail ann --url https://push.example.org --json

        SSL_CERT_FILE=ca.pem bridge tail ann --url https://push.example.org

    """
    configure_logs(level="error", log_format="auto")
    user = user or older_user
    if user is None:
        raise ConfigError(["USER is missing, as in: bridge tail ann"])
    if url is not None:
        check_url(url, schemes=_SCHEMES, example="http://127.0.0.1:8080")
    is_open = False
    trust: ssl.SSLContext | bool = True
    if token is None or url is None:
        settings = load_settings(config_file=config_file, is_complete=False)
        is_open = settings.auth == "open"
        host = local_host(settings.host)
        if url is None and host is None:
            raise ConfigError(["--url: is needed, since BRIDGE_HOST is a Unix socket"])
        if url is None:
            is_tls = settings.tls_cert is not None
            url = http_url(host or "", settings.port, is_tls=is_tls)
            trust = context_trusting(settings.tls_cert) if settings.tls_cert else True
        if token is None and not is_open:
            token = signed_token(settings, user, ttl_s=_TOKEN_LIFE_S)
    follower = _Follower(user, shows_json=json, joins=is_open)
    try:
        asyncio.run(follower.follow(url, token, trust=trust))
    except KeyboardInterrupt:
        sys.exit(ExitCode.DONE)
    sys.exit(follower.exit_code)


class _Follower:
    """Prints the events of one window: messages to stdout, everything else to stderr."""

    def __init__(self, user: str, *, shows_json: bool, joins: bool) -> None:
        self.exit_code = ExitCode.DONE
        self._user = user
        self._shows_json = shows_json
        self._joins = joins

    async def follow(
        self, url: str, token: str | None, *, trust: ssl.SSLContext | bool
    ) -> None:
        """
        Stay connected until the bridge refuses a reconnect.

        Args:
            url: The public address of the bridge.
            token: A token of the user; ``None`` in open mode.
            trust: Verifies its certificate; `True` does it with the authorities of the
                system.

        Cancellation: safe; the connection is closed.
        """
        # python-socketio never closes the aiohttp session it creates; a session of our own
        # avoids the warning at exit.
        connector = aiohttp.TCPConnector(ssl=trust)
        async with aiohttp.ClientSession(connector=connector) as session:
            await self._follow(self._make_client(session), url, token)

    def _make_client(self, session: aiohttp.ClientSession) -> socketio.AsyncClient:
        client = socketio.AsyncClient(
            logger=False,
            engineio_logger=False,
            handle_sigint=False,  # its handler would end Ctrl-C in a traceback
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
                # Manual acks, and none is sent: printing must not count as delivered.
                auth={"token": token, "acks": "manual"},
                wait_timeout=_CONNECT_TIMEOUT_S,
            )
        except socketio.exceptions.ConnectionError as exc:
            if self.exit_code == ExitCode.DONE:  # `_refused` has reported a refusal
                # The library keeps the text of the cause only; that of asyncio is cryptic.
                is_refused = "Connect call failed" in str(exc)
                problem = connection_problem(exc) if is_refused else str(exc)
                if "status code" in problem:
                    problem += "; expected the public port, by https:// if it has a certificate"
                print_note(f"bridge: cannot connect to {url}: {problem}")
                self.exit_code = ExitCode.UNREACHABLE
            return
        try:
            await client.wait()
        finally:
            await client.disconnect()

    async def _connected(self, client: socketio.AsyncClient) -> None:
        print_note(f"connected, waiting for messages of {self._user}; Ctrl-C stops")
        if self._joins:
            await client.emit(EVENT_JOIN, {"username": self._user})

    async def _disconnected(self, reason: str) -> None:
        print_note(f"disconnected: {reason}")

    async def _refused(self, problem: object) -> None:
        data = problem.get("data") if isinstance(problem, dict) else None
        if isinstance(data, dict) and "code" in data:
            self.exit_code = ExitCode.FAILED
            print_note(f"refused, {data['code']}: {problem['message']}")  # type: ignore[index] # it is a dict, see above

    async def _received(self, event: str, *arguments: object) -> None:
        now = dt.datetime.now(tz=dt.UTC)
        data = arguments[0] if arguments else None
        if event.startswith("bridge:"):
            detail = render_json(data).decode()
            if event != EVENT_SYNC or '"complete":false' in detail:
                print_note(f"{event} {detail}")
            return
        position = arguments[1] if len(arguments) > 1 else None
        if self._shows_json:
            facts = {"time": now.isoformat(), "event": event, "data": data}
            line = render_json(facts | {"position": position}).decode()
        else:
            clock = now.astimezone().strftime("%H:%M:%S")
            # JSON escapes control characters that could change the terminal.
            line = f"{clock} {event} {render_json(data).decode()}"
        typer.echo(line)
