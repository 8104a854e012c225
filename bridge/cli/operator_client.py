"""
What commands share that ask a running bridge: its address, its token, and HTTP to its API.

Errors become ours: no answer, or a bridge that cannot reach its peers, is exit code 3, a
wrong token is 2, any other refusal 1.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import quote

import aiohttp
import orjson
import typer
from pydantic import BaseModel, ValidationError
from yarl import URL

from bridge.errors import ConfigError, OperatorRefusedError, OperatorUnreachableError
from bridge.settings.load import load_settings

ModelT = TypeVar("ModelT", bound=BaseModel)

# The bridge has deadlines of its own for what it asks the broker; this is for a bridge
# that stands still.
_ANSWER_WITHIN_S: Final = 60.0
_CONNECT_WITHIN_S: Final = 5.0

Query = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class OperatorAddress:
    """Where a bridge's operator port is, and what opens it."""

    url: str
    token: str = field(repr=False)


def operator_address(
    url: str | None, token: str | None, config_file: Path | None
) -> OperatorAddress:
    """
    Gather flags and settings.

    Raises:
        ConfigError: If the settings are wrong, or there is no token.

    """
    # Only the operator's settings matter here; this machine may have no token secrets.
    settings = load_settings(
        {"auth": "open", "host": "127.0.0.1"},
        config_file=config_file,
    )
    if token is None and settings.operator_token is not None:
        token = settings.operator_token.get_secret_value()
    if not token:
        raise ConfigError(
            ["BRIDGE_OPERATOR_TOKEN: is not set; it is the one that bridge run has"]
        )
    if url is None:
        host = settings.operator_host
        if host in {"0.0.0.0", "::"}:
            host = "127.0.0.1"  # bound to every address, this one among them
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{settings.operator_port}"
    elif URL(url).scheme not in {"http", "https"} or not URL(url).host:
        raise ConfigError([f"--url: {url!r} is not like http://127.0.0.1:8081"])
    return OperatorAddress(url.rstrip("/"), token)


def segment(text: str) -> str:
    """Return any text as one segment of a path; dots alone would be taken for folders."""
    return quote(text, safe="").replace(".", "%2E")


class OperatorClient:
    """One bridge's API. Open it with `operator_client`."""

    def __init__(
        self, session: aiohttp.ClientSession, address: OperatorAddress
    ) -> None:
        self._session = session
        self._address = address

    async def get(
        self, path: str, answer: type[ModelT], *, query: Query | None = None
    ) -> ModelT:
        """
        Ask for `path` and return the answer as `answer`.

        Args:
            path: From `/api/` on; parts that are data went through `segment`.
            answer: The model of status 200.
            query: Parameters; those that are ``None`` are left out.

        Raises:
            OperatorUnreachableError: If nothing answers, or the bridge cannot reach the
                broker or its store.
            OperatorRefusedError: If the bridge says no.
            ConfigError: If the token is wrong.

        """
        return await self._ask("GET", path, answer, query=query)

    async def post(
        self, path: str, answer: type[ModelT], *, body: BaseModel | None = None
    ) -> ModelT:
        """Post `body` to `path`, without what is not set in it. Errors as `get`."""
        return await self._ask("POST", path, answer, body=body)

    async def delete(self, path: str, answer: type[ModelT]) -> ModelT:
        """Delete `path`. Errors as `get`."""
        return await self._ask("DELETE", path, answer)

    async def _ask(
        self,
        method: Literal["GET", "POST", "DELETE"],
        path: str,
        answer: type[ModelT],
        *,
        query: Query | None = None,
        body: BaseModel | None = None,
    ) -> ModelT:
        url = URL(self._address.url + path, encoded=True)
        if query:
            url = url.with_query(
                {
                    name: str(value).lower() if isinstance(value, bool) else str(value)
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
            raise self._unreachable(_problem_of(exc)) from exc
        if status >= 400:
            raise self._refusal(status, raw)
        try:
            return answer.model_validate_json(raw)
        except ValidationError as exc:
            problem = "answers something else; is this a bridge's operator port?"
            raise self._unreachable(problem) from exc

    def _unreachable(self, problem: str) -> OperatorUnreachableError:
        return OperatorUnreachableError(self._address.url, problem)

    def _refusal(self, status: int, raw: bytes) -> Exception:
        try:
            detail = str(orjson.loads(raw)["detail"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            problem = f"answers {status}; is this a bridge's operator port?"
            return self._unreachable(problem)
        if status in {401, 403}:
            return ConfigError([f"BRIDGE_OPERATOR_TOKEN: {detail}"])
        if status == 503:
            return self._unreachable(detail)
        return OperatorRefusedError(status, detail)


@asynccontextmanager
async def operator_client(address: OperatorAddress) -> AsyncIterator[OperatorClient]:
    """Open a client for the bridge at `address`; nothing is asked yet."""
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {address.token}"},
        timeout=aiohttp.ClientTimeout(
            total=_ANSWER_WITHIN_S, sock_connect=_CONNECT_WITHIN_S
        ),
    ) as session:
        yield OperatorClient(session, address)


def ask_once(
    address: OperatorAddress,
    path: str,
    answer: type[ModelT],
    *,
    query: Query | None = None,
) -> ModelT:
    """Get one answer, for commands that need no more. Errors as `OperatorClient.get`."""

    async def ask() -> ModelT:
        async with operator_client(address) as client:
            return await client.get(path, answer, query=query)

    return asyncio.run(ask())


def post_once(address: OperatorAddress, path: str, answer: type[ModelT]) -> ModelT:
    """Post nothing to `path` and return the answer. Errors as `OperatorClient.get`."""

    async def ask() -> ModelT:
        async with operator_client(address) as client:
            return await client.post(path, answer)

    return asyncio.run(ask())


def print_json(model: BaseModel) -> None:
    """Print an answer as the API gave it, on several lines."""
    value = orjson.loads(model.model_dump_json(by_alias=True))
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def _problem_of(exc: Exception) -> str:
    if isinstance(exc, TimeoutError):
        return "does not answer in time"
    if isinstance(exc, aiohttp.ClientConnectorError):
        return f"cannot be reached ({exc.strerror or exc}); does bridge run there?"
    return str(exc) or type(exc).__name__
