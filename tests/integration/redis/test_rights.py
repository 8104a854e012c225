"""A login with the rights that the documentation names: it is enough, and no more than that."""

import asyncio
import re
from collections.abc import Iterator

import pytest

from bridge.core.redis_address import parse_redis
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis import admin_scripts as redis_looking_scripts
from bridge.inbox.redis import migration_target as redis_carry
from bridge.inbox.redis import scripts as redis_scripts
from bridge.inbox.redis.permissions import ON_KEYS
from bridge.inbox.redis.store import RedisInbox
from tests.conftest import eventually
from tests.redis_bridges import RETENTION, bridge_on, messages
from tests.redis_rights import documented_rights
from tests.redis_server import RedisServer

RIGHTS = documented_rights("user bridge ")
# What a bridge does without, or needs when somebody asks for it.
SPARED = {"+config|get", "+ping"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer.started(tmp_path_factory.mktemp("redis")) as server:
        yield server


def allow(server: RedisServer, rights: list[str]) -> None:
    """Let the user do this and nothing else."""
    words = ("reset", "on", ">secret", *rights)
    assert server.command("ACL", "SETUSER", "bridge", *words) == "+OK"


@pytest.fixture
def url(server: RedisServer) -> str:
    """Return the way in as a user with the rights of the documentation."""
    allow(server, RIGHTS)
    return f"redis://bridge:secret@{server.host}:{server.port}/1"


async def problem(url: str) -> str | None:
    """Return why a bridge is not ready with this store; None if it is."""
    inbox = RedisInbox(parse_redis(url), RETENTION)
    try:
        await inbox.open()
        await inbox.follow("ann")
    except StoreUnavailableError as exc:
        return exc.problem
    finally:
        await inbox.close()
    return None


async def test_each_right_of_the_documentation_is_needed_and_named_when_it_lacks(
    server: RedisServer, url: str
) -> None:
    """Before anything is consumed: readiness says the very word that is missing."""
    assert await problem(url) is None
    url += "?replicas=1"
    words = [word for word in RIGHTS if word.startswith("+")]
    assert words

    for word in words:
        allow(server, [each for each in RIGHTS if each != word])

        found = await problem(url)

        if word not in SPARED:
            assert found is not None, word
            assert word[1:].partition("|")[0] in found, (word, found)


@pytest.mark.parametrize("word", ["~bridge/*", "&bridge/*"])
async def test_keys_and_channels_that_are_not_allowed_are_named(
    server: RedisServer, url: str, word: str
) -> None:
    """Another namespace than the one that the rights were made for."""
    allow(server, [each for each in RIGHTS if each != word])

    assert word in str(await problem(url))


async def test_a_right_that_is_taken_away_while_it_runs_is_waited_for(
    server: RedisServer, url: str
) -> None:
    """A slip of an administrator must not make dead letters of what comes meanwhile."""
    async with bridge_on(url) as bridge:
        await bridge.append(messages("ann", b"1", message_id="m"))
        server.command("ACL", "SETUSER", "bridge", "-rpush")
        appending = asyncio.create_task(bridge.append(messages("ann", b"2")))
        await eventually(lambda: "+rpush" in str(bridge.inbox.problem))

        server.command("ACL", "SETUSER", "bridge", "+rpush")

        assert await appending == [2]
        assert await bridge.texts("ann") == [b"1", b"2"]


def test_what_the_scripts_run_is_tried_at_the_start() -> None:
    """Whoever adds a command to one finds here where else it has to stand."""
    code = [script.code for script in (*redis_scripts.ALL, *redis_looking_scripts.ALL)]
    code.append(redis_carry._PUT.code)
    used = set(re.findall(r"call\('([A-Z]+)'", " ".join(code)))

    assert used <= set(ON_KEYS)
