"""
The writing side of `bridge inbox migrate`: whole inboxes, written as the store's scripts do.

Beside the inboxes it keeps one key, `carry`, under the first tag: which migration it is, up
to which user it is complete, and whether it is done. Until it is done, bridges wait
(connection_setup.py), in a cluster on all nodes.

A part of a user's inbox may be written again. Messages that exist already must then be the
same, and only the rest is added. So a retry adds nothing twice, and a bridge that writes into
the store at the same time is noticed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from math import inf
from struct import Struct
from typing import Final

from bridge.core.receipts import Receipt, WorkerEvent, due_s
from bridge.core.redis_address import RedisAddress
from bridge.core.revocation import Revocation
from bridge.enums import SyncReason
from bridge.errors import MigrationRefusedError, StoreUnavailableError
from bridge.inbox.migration.model import (
    InboxCount,
    InboxNumbers,
    InboxPart,
    MigrationBatch,
    SourceIdentity,
)
from bridge.inbox.redis.connection import connect
from bridge.inbox.redis.encoding import (
    key_prefixes,
    migration_key,
    pack,
    pack_key,
    tag_of,
)
from bridge.inbox.redis.errors import RefusedByRedisError
from bridge.inbox.redis.eviction import check_eviction
from bridge.inbox.redis.protocol import (
    Argument,
    RedisConnection,
    RedisConnectionLostError,
    Reply,
    is_error,
    parse_info,
)
from bridge.inbox.redis.receipts import pack_event, pack_receipt
from bridge.inbox.redis.revocations import store_command
from bridge.inbox.redis.scripts.heads import ALL_EXPIRED, REASONS
from bridge.inbox.redis.scripts.script import Script
from bridge.inbox.redis.topology import find_servers

# A command for the server of a tag.
Command = tuple[int, Sequence[Argument]]

# As the scripts pack it: last offset, delivered mark, reason. Six bytes are no C type.
_HEAD: Final = Struct("<6s6sB")
_NUMBERS: Final = {None: 0, SyncReason.LIMIT: 1, SyncReason.EXPIRED: 2}
# The field for the replication id of the server that a tag's data are from; see BEGIN in
# scripts/upkeep.py.
_REPLICATION_ID: Final = b"\x01line"
# The offset after which those of new users start.
_FORGOTTEN: Final = b"\x01forgotten"
_REPLY_S: Final = 60.0

# ARGV: prefix, user, last offset, delivered mark, reason, index of the first element in the
# list, number of elements, forgotten, newest offset in the list (empty if it is not sparse),
# `gone`, number of other messages, the elements, then for each other message its offset, key and
# element, then for each id its time and the id.
PUT: Final = Script(
    """
local call = redis.call
local p, user = ARGV[1], ARGV[2]
local list, ids = p .. 'm:' .. user, p .. 'i:' .. user
local index, count = tonumber(ARGV[6]), tonumber(ARGV[7])
local length, fresh = call('LLEN', list), {}
local head = call('HGET', p .. 'h', user)
if head and struct.unpack('<I6', head) ~= tonumber(ARGV[3]) then
  return redis.error_reply('CARRY something else is there')
end
if index > length then return redis.error_reply('CARRY a part is missing') end
for k = 1, count do
  local element = ARGV[11 + k]
  if index + k <= length then
    if call('LINDEX', list, index + k - 1) ~= element then
      return redis.error_reply('CARRY something else is there')
    end
  else
    fresh[#fresh + 1] = element
  end
end
if #fresh > 0 then call('RPUSH', list, unpack(fresh)) end
local at = 12 + count
for k = 1, tonumber(ARGV[11]) do
  local place = ARGV[at + 1] ~= '' and ARGV[at + 1] or '\\1' .. ARGV[at]
  if place:byte() == 2 then
    place = place:sub(2)
    call('ZADD', p .. 'v:' .. user, ARGV[at], place)
  end
  if tonumber(ARGV[at]) > tonumber(ARGV[10]) then
    call('ZADD', p .. 's:' .. user, ARGV[at], place)
  end
  call('HSET', p .. 'k:' .. user, place, ARGV[at + 2])
  at = at + 3
end
if #ARGV >= at then call('ZADD', ids, unpack(ARGV, at)) end
call('ZADD', p .. 'u', 0, user)
head = struct.pack('<I6I6B', ARGV[3], ARGV[4], ARGV[5])
if ARGV[9] ~= '' then
  head = head .. struct.pack('<I6I6I6', ARGV[8], ARGV[9], ARGV[10])
elseif ARGV[8] ~= '0' then
  head = head .. struct.pack('<I6', ARGV[8])
end
call('HSET', p .. 'h', user, head)
return 1
"""
)

# Of two migrations that begin at the same time, the second one finds the key of the first.
_BEGIN: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
"""


class RedisTarget:
    """An empty store that inboxes are migrated into: one server, or a cluster."""

    def __init__(self, address: RedisAddress, *, namespace: str) -> None:
        """
        Create it without connecting.

        Args:
            address: The server, Sentinels or cluster.
            namespace: The first part of all names of keys.

        """
        self.description = str(address)
        self._address = address
        self._prefixes = key_prefixes(namespace, address.db)
        self._connections: list[RedisConnection] = []
        self._owners: dict[int, RedisConnection] = {}
        self._key = migration_key(self._prefixes)

    async def open(self) -> None:
        """
        Connect to all servers.

        Raises:
            StoreUnavailableError: If one of them cannot be reached, or evicts inboxes.

        """
        for host, tags in (await find_servers(self._address)).items():
            connection = await connect(self._address, host)
            self._connections.append(connection)
            self._owners |= dict.fromkeys(tags, connection)
        for connection in self._connections:
            await check_eviction(connection, self.description)
            await self._ask(connection, b"SCRIPT", b"LOAD", PUT.code)

    async def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.abort("the migration closed it")
        self._connections, self._owners = [], {}

    async def progress(self, source: SourceIdentity) -> int | None:
        """Return where to resume; see `MigrationTarget`."""
        note = await self._ask(
            self._owners[0],
            *(b"HMGET", self._key, b"epoch", b"contents", b"upto", b"done"),
        )
        epoch, contents, upto, done = (each and each.decode() for each in note)
        if epoch is None:
            await self._check_empty()
            return 0
        if (epoch, contents) != (source.epoch, source.contents):
            raise self._refusal(
                "inboxes of another file were migrated into it, or the file has changed "
                "since; empty it to start again"
            )
        return None if done else int(upto or 0)

    async def begin(self, source: SourceIdentity) -> None:
        """Record which migration this is, and give each tag the epoch of the source."""
        fields = (b"epoch", source.epoch, b"contents", source.contents)
        owner = self._owners[0]
        if not await self._ask(owner, b"EVAL", _BEGIN, b"1", self._key, *fields):
            await self.progress(source)  # refuses any other migration than this one
        await self._ask_each_tag(
            lambda _, prefix: (
                *(f"{prefix}h", b"", source.epoch),
                *(_FORGOTTEN, str(source.forgotten)),
            )
        )

    async def write(self, batch: MigrationBatch) -> None:
        """Write a batch, then record how far the migration is."""
        await self._ask_many(self.commands_of(batch))
        await self._ask(self._owners[0], b"HSET", self._key, b"upto", batch.upto)

    async def write_revocations(self, revocations: Sequence[Revocation]) -> None:
        """Write all revocations."""
        await self._ask_many([store_command(self._prefixes, r) for r in revocations])

    async def write_receipts(self, receipts: Sequence[Receipt]) -> None:
        """Write receipts; what duplicates of older messages need is not copied."""
        commands: list[Command] = []
        for receipt in receipts:
            user, offset = receipt.message.user, receipt.offset
            tag = tag_of(user)
            prefix = self._prefixes[tag]
            packed = pack_receipt(receipt.message, receipt.tracking, receipt.id)
            at_s = due_s(receipt.message, receipt.tracking)
            due = (repr(inf if at_s is None else at_s), f"{offset:016} {user}")
            commands.append((tag, (b"ZADD", f"{prefix}w:{user}", offset, packed)))
            commands.append((tag, (b"ZADD", f"{prefix}d", *due)))
        await self._ask_many(commands)

    async def write_events(self, events: Sequence[WorkerEvent]) -> None:
        """Write events, numbered from 1 in each tag."""
        numbers: Counter[int] = Counter()
        for event in events:
            tag = tag_of(event.user)
            numbers[tag] += 1
            key, head = f"{self._prefixes[tag]}e", f"{self._prefixes[tag]}h"
            number = numbers[tag]
            add = (tag, (b"ZADD", key, number, pack_event(event)))
            await self._ask_many([add, (tag, (b"HSET", head, b"\x01events", number))])

    async def counts(self, users: Sequence[str]) -> Sequence[InboxCount]:
        """Return the inboxes of `users` as they are in the store, in order."""
        commands: list[Command] = []
        for user in users:
            tag = tag_of(user)
            prefix = self._prefixes[tag]
            commands.append((tag, (b"HGET", f"{prefix}h", user)))
            commands.append((tag, (b"LLEN", f"{prefix}m:{user}")))
            commands.append((tag, (b"ZCARD", f"{prefix}s:{user}")))
            commands.append((tag, (b"ZCARD", f"{prefix}v:{user}")))
        replies = iter(await self._ask_many(commands))
        each_four = zip(replies, replies, replies, replies, strict=True)
        return [
            _inbox_count(user, *each)
            for user, each in zip(users, each_four, strict=True)
        ]

    async def finish(self, source: SourceIdentity) -> None:  # noqa: ARG002 - as the protocol has it
        """
        Record that the migration is done, and the replication id of each server.

        If a server loses data from now on, its replication id changes, and the bridges
        start a new epoch (connection_setup.py).
        """
        ids: dict[RedisConnection, str] = {}
        for connection in self._connections:
            info = await self._ask(connection, b"INFO", b"replication")
            ids[connection] = parse_info(info)["master_replid"]
        await self._ask_each_tag(
            lambda tag, prefix: (f"{prefix}h", _REPLICATION_ID, ids[self._owners[tag]])
        )
        await self._ask(self._owners[0], b"HSET", self._key, b"done", b"1")

    # --- commands

    def commands_of(self, batch: MigrationBatch) -> list[Command]:
        """Return the commands that write a batch, without the progress of the migration."""
        return [
            (tag_of(each.inbox.user), self._write_command(each)) for each in batch.parts
        ]

    def _write_command(self, part: InboxPart) -> Sequence[Argument]:
        inbox, messages = part.inbox, part.messages
        prefix = self._prefixes[tag_of(inbox.user)]
        command: list[Argument] = [b"EVALSHA", PUT.sha, b"1", f"{prefix}h", prefix]
        command += (inbox.user, inbox.last, inbox.delivered)
        dense = [each for each in messages if each.offset <= inbox.dense_last]
        sparse = messages[len(dense) :]
        command += (
            ALL_EXPIRED if inbox.is_empty else _NUMBERS[inbox.trimmed_for],
            dense[0].offset - inbox.first if dense else 0,
            len(dense),
            inbox.forgotten,
            b"" if inbox.sparse_after is None else inbox.sparse_after,
            inbox.gone,
            len(sparse),
        )
        command += (pack(each.message) for each in dense)
        for each in sparse:
            message = each.message
            command += (each.offset, pack_key(message), pack(message))
        for message_id, seen_s in part.ids:
            command += (repr(seen_s), message_id)
        return command

    async def _check_empty(self) -> None:
        # A bridge that was started here, but stored nothing, leaves an epoch and no user.
        counts = await self._ask_many(
            [
                (tag, (b"ZCARD", f"{prefix}u"))
                for tag, prefix in enumerate(self._prefixes)
            ]
        )
        if any(counts):
            raise self._refusal(
                "it already contains inboxes; migrate into an empty store"
            )

    async def _ask_each_tag(
        self, fields: Callable[[int, str], Sequence[Argument]]
    ) -> None:
        """Set fields of a hash in each tag; `fields` returns its key, names and values."""
        await self._ask_many(
            [
                (tag, (b"HSET", *fields(tag, prefix)))
                for tag, prefix in enumerate(self._prefixes)
            ]
        )

    async def _ask(self, connection: RedisConnection, *arguments: Argument) -> Reply:
        try:
            return await connection.ask(*arguments, within_s=_REPLY_S)
        except RefusedByRedisError as exc:
            raise self._refusal(str(exc)) from exc

    async def _ask_many(self, commands: Sequence[Command]) -> Sequence[Reply]:
        """Send each command to the server of its tag, all at once; raise the first error."""
        pending = [
            (owner, owner.call(*command))
            for owner, command in ((self._owners[tag], c) for tag, c in commands)
        ]
        for connection in dict.fromkeys(owner for owner, _ in pending):
            # The reply to PING comes after all others, so one timeout covers them.
            await self._ask(connection, b"PING")
        replies = []
        for connection, future in pending:
            try:
                reply = future.result()
            except RedisConnectionLostError as exc:
                raise StoreUnavailableError(self.description, str(exc)) from exc
            if is_error(reply):
                error = connection.error_of(str(reply))
                if isinstance(error, StoreUnavailableError):
                    raise error
                raise self._refusal(str(reply))
            replies.append(reply)
        return replies

    def _refusal(self, problem: str) -> MigrationRefusedError:
        if problem.startswith("CARRY "):
            problem = (
                f"{problem.removeprefix('CARRY ')}: a bridge wrote into it meanwhile, or "
                "part of it was lost; stop the bridges, empty it, and start again"
            )
        return MigrationRefusedError(self.description, problem)


def _inbox_count(
    user: str, head: bytes | None, length: int, sparse_count: int, retained: int
) -> InboxCount:
    if head is None:
        return InboxCount(InboxNumbers(user, 1, 0, 0, None), length)
    last_bytes, delivered_bytes, number = _HEAD.unpack_from(head)
    more = head[_HEAD.size :]
    forgotten = int.from_bytes(more[:6], "little")
    sparse_after, gone = None, 0
    if len(more) > 6:
        sparse_after = int.from_bytes(more[6:12], "little")
        gone = int.from_bytes(more[12:18], "little")
    last = int.from_bytes(last_bytes, "little")
    delivered = int.from_bytes(delivered_bytes, "little")
    inbox = InboxNumbers(
        user,
        (last if sparse_after is None else sparse_after) - length + 1,
        last,
        delivered,
        REASONS[number],
        forgotten,
        sparse_after,
        gone,
        sparse_count,
        retained,
    )
    return InboxCount(inbox, length)
