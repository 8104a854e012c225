"""
The client of commands that ask a running bridge: its address, its token, and its API.

Errors become those of bridge: an unreachable bridge, or one that cannot reach its broker or
store, is exit code 3, a wrong token is 2, any other refusal is 1.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import quote

import aiohttp
import orjson
import typer
from pydantic import BaseModel, ValidationError
from yarl import URL

from bridge.cli.options import ConfigFile, check_url
from bridge.core.contracts.operator.operation import PAGE_MAX, Page
from bridge.core.listen_hosts import local_host, unix_path
from bridge.errors import (
    ConfigError,
    OperatorRefusedError,
    OperatorUnreachableError,
    connection_problem,
)
from bridge.http.listeners import http_url
from bridge.settings.load import load_settings

ModelT = TypeVar("ModelT", bound=BaseModel)
PageT = TypeVar("PageT", bound=Page[Any])

# The bridge has shorter timeouts for its own requests to the broker and the store. This one
# is for a bridge that hangs.
_TIMEOUT_S: Final = 60.0
_CONNECT_TIMEOUT_S: Final = 5.0
_SCHEMES: Final = frozenset({"http", "https"})

Method = Literal["GET", "POST", "DELETE"]
Query = Mapping[str, str | int | float | bool | Sequence[str] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorOptions:
    """The options of a command that asks a running bridge."""

    json: Annotated[
        bool, typer.Option("--json", help="Print the API's answer as JSON.")
    ] = False
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            help="The operator port of the bridge, such as http://127.0.0.1:8081. "
            "Default: BRIDGE_OPERATOR_HOST and BRIDGE_OPERATOR_PORT.",
        ),
    ] = None
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            help="The operator token. Prefer BRIDGE_OPERATOR_TOKEN: other users of the "
            "machine can read a command line.",
        ),
    ] = field(default=None, repr=False)
    config_file: ConfigFile = None

    def address(self) -> tuple[str, str]:
        """
        Return the URL and the token, which the settings hold if the options do not.

        The URL of a Unix socket is `unix:PATH`.

        Raises:
            ConfigError: If the settings are wrong, or there is no token.

        """
        settings = load_settings(config_file=self.config_file, is_complete=False)
        token, url = self.token, self.url
        if token is None and settings.operator_token is not None:
            token = settings.operator_token.get_secret_value()
        if not token:
            raise ConfigError(
                ["BRIDGE_OPERATOR_TOKEN: is not set; use the token of bridge run"]
            )
        if url is None:
            host = local_host(settings.operator_host)
            url = (
                settings.operator_host[0]
                if host is None
                else http_url(host, settings.operator_port)
            )
        elif unix_path(url) is None:
            check_url(url, schemes=_SCHEMES, example="http://127.0.0.1:8081")
        return url.rstrip("/"), token


def segment(text: str) -> str:
    """Return `text` as one path segment; dots are escaped, since `..` has a meaning."""
    return quote(text, safe="").replace(".", "%2E")


class OperatorClient:
    """A client of one bridge's API. Open it with `operator_client`."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(
        self,
        method: Method,
        path: str,
        answer: type[ModelT],
        *,
        query: Query | None = None,
        body: BaseModel | None = None,
    ) -> ModelT:
        """
        Send a request and return its answer.

        Args:
            method: The HTTP method.
            path: The path from `/api/` on; variable parts are escaped by `segment`.
            answer: The model of the answer.
            query: Parameters; those that are ``None`` are left out.
            body: The JSON body; fields that are not set are left out.

        Raises:
            OperatorUnreachableError: If the bridge does not answer, or cannot reach its
                broker or store.
            OperatorRefusedError: If the bridge refuses the request.
            ConfigError: If the token is wrong.

        """
        url = URL(self._url + path, encoded=True)
        if query:
            url = url.with_query(
                {
                    name: str(value).lower() if isinstance(value, bool) else value
                    for name, value in query.items()
                    if value is not None
                }
            )
        content = None if body is None else body.model_dump_json(exclude_unset=True)
        try:
            async with self._session.request(
                method, url, data=content, headers={"Content-Type": "application/json"}
            ) as response:
                status, raw = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            problem = (
                f"cannot be reached: {connection_problem(exc)}; is bridge running?"
            )
            raise self._unreachable(problem) from exc
        if status >= 400:
            raise self._refusal(status, raw)
        try:
            return answer.model_validate_json(raw)
        except ValidationError as exc:
            problem = "its answer is invalid; is this a bridge's operator port?"
            raise self._unreachable(problem) from exc

    def _unreachable(self, problem: str) -> OperatorUnreachableError:
        return OperatorUnreachableError(self._url, problem)

    def _refusal(self, status: int, raw: bytes) -> Exception:
        try:
            detail = str(orjson.loads(raw)["detail"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            problem = f"answers {status}; is this a bridge's operator port?"
            return self._unreachable(problem)
        if status in {401, 403}:
            return ConfigError([detail])
        if status == 503:
            return self._unreachable(detail)
        return OperatorRefusedError(status, detail)


@asynccontextmanager
async def operator_client(operator: OperatorOptions) -> AsyncIterator[OperatorClient]:
    """Open a client for the bridge of these options; no request is sent yet."""
    url, token = operator.address()
    path = unix_path(url)
    async with aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(path) if path else None,
        headers={"Authorization": f"Bearer {token}"},
        timeout=aiohttp.ClientTimeout(
            total=_TIMEOUT_S, sock_connect=_CONNECT_TIMEOUT_S
        ),
    ) as session:
        yield OperatorClient(session, "http://localhost" if path else url)


def ask_once(
    operator: OperatorOptions,
    path: str,
    answer: type[ModelT],
    *,
    method: Method = "GET",
    query: Query | None = None,
    body: BaseModel | None = None,
) -> ModelT:
    """Send one request with a client of its own. Errors as `OperatorClient.ask`."""

    async def ask() -> ModelT:
        async with operator_client(operator) as client:
            return await client.ask(method, path, answer, query=query, body=body)

    return asyncio.run(ask())


def ask_pages(
    operator: OperatorOptions,
    path: str,
    page: type[PageT],
    *,
    query: Query,
    limit: int,
    cursor: str | None,
) -> PageT:
    """Return up to `limit` items from `cursor` on as one page, from several requests."""

    async def ask() -> PageT:
        items: list[Any] = []
        after = cursor
        async with operator_client(operator) as client:
            while True:
                size = min(PAGE_MAX, limit - len(items))
                query_part = {**query, "limit": size, "cursor": after}
                part = await client.ask("GET", path, page, query=query_part)
                items += part.items
                after = part.next
                if after is None or len(items) >= limit:
                    return part.model_copy(update={"items": items})

    return asyncio.run(ask())


def print_json(model: BaseModel) -> None:
    """Print an answer as indented JSON."""
    value = orjson.loads(model.model_dump_json(by_alias=True))
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
