"""
Whether our login may do all that a bridge does: asked once on each new connection.

Redis tells of a missing right when it is needed, and before Redis 7.2 and Valkey not of
which, if it is a script that needs it. The live feed would not tell at all: what is
stored and cannot be published is stored all the same. So the rights are tried here, on
a key and a channel that nobody has, before the connection is used; a bridge that lacks one
is not ready, and says what to allow.
"""

from typing import Final

from bridge.core.redis_address import RedisAddress
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.connection import ask, is_missing_right
from bridge.inbox.redis.protocol import Answer, Link, Word
from bridge.inbox.redis.scripts import Script

# What is run on keys, in scripts and out of them, and words that do no harm to a key that
# is not there, or will not be there after the last of them.
ON_KEYS: Final[dict[str, str]] = {
    "GET": "",
    "HGET": "x",
    "HMGET": "x",
    "LINDEX": "0",
    "LLEN": "",
    "LPOP": "",
    "LRANGE": "0 0",
    "LTRIM": "0 0",
    "PEXPIRE": "1",
    "ZADD": "XX 0 x",
    "ZCARD": "",
    "ZRANGEBYLEX": "- +",
    "ZREMRANGEBYSCORE": "0 0",
    "ZSCORE": "x",
    "SET": "x XX",
    "HSET": "x x",
    "RPUSH": "x",
    "INCR": "",
    "DEL": "",
}

# ARGV: a key that nobody has, a channel that nobody hears, how to publish, then for each
# command its name and its words in one. Returns what was refused, and how.
RIGHTS: Final = Script(
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
return out
"""
)


async def see_rights(address: RedisAddress, link: Link, prefix: str) -> None:
    """
    Try all that is done to keys that begin with `prefix`, and the channels beside them.

    Raises:
        StoreUnavailableError: If something is not allowed. It says what to allow.

    Cancellation: safe.
    """
    is_sharded = address.kind == "cluster"
    channel = f"{prefix}c:"
    await ask(address, link, b"SCRIPT", b"LOAD", RIGHTS.code)
    words: list[Word] = [f"{prefix}rights", channel]
    words.append(b"SPUBLISH" if is_sharded else b"PUBLISH")
    for command, rest in ON_KEYS.items():
        words += (command, rest)
    # A key says where a cluster runs it; if keys are not allowed it says that by itself.
    keys: tuple[Word, ...] = (1, f"{prefix}h") if is_sharded else (0,)
    found = await ask(address, link, b"EVALSHA", RIGHTS.sha, *keys, *words)
    allow = _to_allow(found, prefix)
    if allow:
        user = address.user or "default"
        problem = (
            f"its user {user!r} lacks rights: ACL SETUSER {user} {' '.join(allow)}"
        )
        raise StoreUnavailableError(str(address), problem)
    if address.replicas:
        await ask(address, link, b"WAIT", 0, 0)
    # A refusal ends the connection, and whoever asks next is told of it.
    link.send(b"SSUBSCRIBE" if is_sharded else b"SUBSCRIBE", channel)
    link.send(b"SUNSUBSCRIBE" if is_sharded else b"UNSUBSCRIBE", channel)


def _to_allow(found: Answer, prefix: str) -> list[str]:
    namespace = prefix.partition("/")[0]
    allow: dict[str, None] = {}
    for place in range(0, len(found), 2):
        command, text = found[place].decode().lower(), found[place + 1].decode()
        if not is_missing_right(text):
            continue  # full, or a replica: told when it is needed, in its own words
        if "channel" in text:
            allow[f"&{namespace}/*"] = None
        elif "access" in text:
            allow[f"~{namespace}/*"] = None
        else:
            allow[f"+{command}"] = None
    return list(allow)
