"""
Whether our Redis user may run every command that a bridge needs: tried on each connection.

Redis reports a missing permission only when a command is run, and before Redis 7.2 and
Valkey it does not say which one a script lacked. The live feed would not report it at all: a
message that cannot be published is stored all the same. So all commands are tried on an
unused key and channel before the connection is used. A bridge that lacks one is not ready,
and says what to allow.
"""

from typing import Final

from bridge.core.redis_address import RedisAddress
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.errors import is_missing_permission
from bridge.inbox.redis.protocol import Argument, RedisConnection, Reply
from bridge.inbox.redis.scripts.script import Script

# All commands that the store runs on keys, with harmless arguments for a key that does not
# exist. Some of them create the key; the last one deletes it.
KEY_COMMANDS: Final[dict[str, str]] = {
    "GET": "",
    "HGET": "x",
    "HMGET": "x",
    "LINDEX": "0",
    "LLEN": "",
    "LPOP": "",
    "LRANGE": "0 0",
    "LTRIM": "0 0",
    "PERSIST": "",
    "PEXPIRE": "1",
    "ZADD": "XX 0 x",
    "ZCARD": "",
    "ZRANGEBYLEX": "- +",
    "ZRANGEBYSCORE": "0 0",
    "ZREMRANGEBYSCORE": "0 0",
    "ZSCORE": "x",
    "SET": "x XX",
    "HSET": "x x",
    "HDEL": "x",
    "ZREM": "x",
    "RPUSH": "x",
    "INCR": "",
    "DEL": "",
}

# ARGV: an unused key, an unused channel, the publish command, then for each key command its
# name and its arguments in one string. Returns each refused command with its error.
TRY_COMMANDS: Final = Script(
    """
local out = {}
local function try(command, ...)
  local got = redis.pcall(command, ...)
  if type(got) == 'table' and got.err then
    out[#out + 1] = command
    out[#out + 1] = got.err
  end
end
for i = 4, #ARGV, 2 do
  local words = {}
  for word in string.gmatch(ARGV[i + 1], '%S+') do words[#words + 1] = word end
  try(ARGV[i], ARGV[1], unpack(words))
end
try(ARGV[3], ARGV[2], '')
try('PUBSUB', 'NUMSUB', ARGV[2])
try('TIME')
return out
"""
)


async def check_permissions(
    address: RedisAddress, connection: RedisConnection, prefix: str
) -> None:
    """
    Try every command on a key that begins with `prefix`, and the channel beside it.

    Raises:
        StoreUnavailableError: If something is not allowed. Its text says what to allow.

    Cancellation: safe.
    """
    is_cluster = address.kind == "cluster"
    channel = f"{prefix}c:"
    await connection.ask(b"SCRIPT", b"LOAD", TRY_COMMANDS.code)
    arguments: list[Argument] = [f"{prefix}rights", channel]
    arguments.append(b"SPUBLISH" if is_cluster else b"PUBLISH")
    for item in KEY_COMMANDS.items():
        arguments += item
    # A cluster routes a script by a key. On one server no key is passed, because the
    # server would check the permission for it before our script can report it.
    keys: tuple[Argument, ...] = (1, f"{prefix}h") if is_cluster else (0,)
    refused = await connection.ask(b"EVALSHA", TRY_COMMANDS.sha, *keys, *arguments)
    allow = _permissions_to_add(refused, prefix)
    if allow:
        user = address.user or "default"
        problem = (
            f"its user {user!r} lacks permissions: ACL SETUSER {user} {' '.join(allow)}"
        )
        raise StoreUnavailableError(str(address), problem)
    if address.replicas:
        await connection.ask(b"WAIT", 0, 0)
    # If the subscription is refused the connection ends, and the next command reports it.
    connection.send(b"SSUBSCRIBE" if is_cluster else b"SUBSCRIBE", channel)
    connection.send(b"SUNSUBSCRIBE" if is_cluster else b"UNSUBSCRIBE", channel)


def _permissions_to_add(refused: Reply, prefix: str) -> list[str]:
    namespace = prefix.partition("/")[0]
    allow: dict[str, None] = {}
    for index in range(0, len(refused), 2):
        command, text = refused[index].decode().lower(), refused[index + 1].decode()
        if not is_missing_permission(text):
            continue  # out of memory, or a replica: the failing command will report it
        if "channel" in text:
            allow[f"&{namespace}/*"] = None
        elif "access" in text:
            allow[f"~{namespace}/*"] = None
        else:
            allow[f"+{command}"] = None
    return list(allow)
