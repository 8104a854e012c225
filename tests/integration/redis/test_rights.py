"""The documented permissions of the Redis user: they suffice, and each one is needed."""

import asyncio
import re
from collections.abc import Iterator

import pytest

from bridge.core.redis_address import parse_redis
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis import migration_target
from bridge.inbox.redis.permissions import KEY_COMMANDS
from bridge.inbox.redis.scripts.loaded import ALL_SCRIPTS
from bridge.inbox.redis.store import RedisInbox
from tests.conftest import eventually
from tests.redis_bridges import RETENTION, bridge_on, messages
from tests.redis_rights import documented_rights
from tests.redis_server import RedisServer

RIGHTS = documented_rights("user bridge ")
# A bridge is ready without these; `bridge check` and pings use them.
OPTIONAL = {"+config|get", "+ping"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer.started(tmp_path_factory.mktemp("redis")) as server:
        yield server


def allow(server: RedisServer, rights: list[str]) -> None:
    """Give the user these permissions and no others."""
    words = ("reset", "on", ">secret", *rights)
    assert server.command("ACL", "SETUSER", "bridge", *words) == "+OK"


@pytest.fixture
def url(server: RedisServer) -> str:
    """Return the URL of a user with the documented permissions."""
    allow(server, RIGHTS)
    return f"redis://bridge:secret@{server.host}:{server.port}/1"


async def problem(url: str) -> str | None:
    """Return why a bridge is not ready with this store; ``None`` if it is."""
    inbox = RedisInbox(parse_redis(url), RETENTION)
    try:
        await inbox.open()
        await inbox.follow("ann")
    except StoreUnavailableError as exc:
        return exc.problem
    finally:
        await inbox.close()
    return None


async def test_each_documented_permission_is_needed_and_named_when_missing(
    server: RedisServer, url: str
) -> None:
    """Before anything is consumed, readiness names the missing permission."""
    assert await problem(url) is None
    url += "?replicas=1"
    words = [word for word in RIGHTS if word.startswith("+")]
    assert words

    for word in words:
        allow(server, [each for each in RIGHTS if each != word])

        found = await problem(url)

        if word not in OPTIONAL:
            assert found is not None, word
            assert word[1:].partition("|")[0] in found, (word, found)


@pytest.mark.parametrize("word", ["~bridge/*", "&bridge/*"])
async def test_keys_and_channels_that_are_not_allowed_are_named(
    server: RedisServer, url: str, word: str
) -> None:
    """The permissions may have been granted for another namespace."""
    allow(server, [each for each in RIGHTS if each != word])

    assert word in str(await problem(url))


async def test_the_bridge_waits_for_a_permission_that_is_revoked_while_it_runs(
    server: RedisServer, url: str
) -> None:
    """A mistake of an administrator must not dead-letter the messages that arrive meanwhile."""
    async with bridge_on(url) as bridge:
        await bridge.append(messages("ann", b"1", message_id="m"))
        server.command("ACL", "SETUSER", "bridge", "-rpush")
        appending = asyncio.create_task(bridge.append(messages("ann", b"2")))
        await eventually(lambda: "+rpush" in str(bridge.inbox.problem))

        server.command("ACL", "SETUSER", "bridge", "+rpush")

        assert await appending == [2]
        assert await bridge.texts("ann") == [b"1", b"2"]


def test_all_commands_of_the_scripts_are_tried_on_a_new_connection() -> None:
    """A new command in a script belongs into `KEY_COMMANDS`, too."""
    code = [script.code for script in (*ALL_SCRIPTS, migration_target.PUT)]
    used = set(re.findall(r"call\('([A-Z]+)'", " ".join(code)))

    # These are tried without a key.
    assert used - {"PUBSUB", "TIME"} <= set(KEY_COMMANDS)
