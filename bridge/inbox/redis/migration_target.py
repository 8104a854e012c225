"""
The writing side of `bridge inbox carry`: whole inboxes into Redis, as its own scripts have them.

Beside the inboxes it keeps one key, `carry`, under the first tag: what is carried, up to
which user, and whether it is done. While it says that it is not, bridges wait (redis.py),
in a cluster with all of its nodes.

A user's part may be put again: what is there already must be the same, message for
message, and only the rest is added. So nothing comes twice, and a bridge that wrote into the
store at the same time is noticed.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Any, Final

from bridge.core.redis_address import RedisAddress
from bridge.enums import SyncReason
from bridge.errors import MigrationRefusedError, StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.migration.model import CarriedInbox, Held, Load, Portion, Waybill
from bridge.inbox.redis.connection import (
    RefusedByRedisError,
    ask,
    connect,
    failure_of,
)
from bridge.inbox.redis.encoding import pack, tag_names, tag_of
from bridge.inbox.redis.protocol import Link, LinkLostError, Word, is_error
from bridge.inbox.redis.scripts import EXPIRED, LIMIT, Script
from bridge.inbox.redis.servers import find_servers, parse_info

# By tag: who has it, runs it.
Command = tuple[int, Sequence[Word]]

# As the scripts pack it: last offset, delivered mark, reason; six bytes are no C type.
_HEAD: Final = Struct("<6s6sB")
_REASONS: Final = {None: 0, SyncReason.LIMIT: LIMIT, SyncReason.EXPIRED: EXPIRED}
_WORDS: Final = {number: reason for reason, number in _REASONS.items()}
# Under this name stands whose data a tag's are; see redis_scripts.BEGIN.
LINE: Final = b"\x01line"
_GRACE_MS: Final = 60_000
_ANSWER_S: Final = 60.0

# ARGV: prefix, user, last, delivered, reason, life of messages and of ids (ms), the place of
# the first element in the list, how many elements, elements, and each id behind its time.
_PUT: Final = Script(
    """
local call = redis.call
local p, user = ARGV[1], ARGV[2]
local list, ids = p .. 'm:' .. user, p .. 'i:' .. user
local place, count = tonumber(ARGV[8]), tonumber(ARGV[9])
local length, fresh = call('LLEN', list), {}
local head = call('HGET', p .. 'h', user)
if head and struct.unpack('<I6', head) ~= tonumber(ARGV[3]) then
  return redis.error_reply('CARRY something else is there')
end
if place > length then return redis.error_reply('CARRY a part is missing') end
for k = 1, count do
  local element = ARGV[9 + k]
  if place + k <= length then
    if call('LINDEX', list, place + k - 1) ~= element then
      return redis.error_reply('CARRY something else is there')
    end
  else
    fresh[#fresh + 1] = element
  end
end
if #fresh > 0 then
  call('RPUSH', list, unpack(fresh))
  call('PEXPIRE', list, ARGV[6])
end
if #ARGV > 9 + count then
  call('ZADD', ids, unpack(ARGV, 10 + count))
  call('PEXPIRE', ids, ARGV[7])
end
call('ZADD', p .. 'u', 0, user)
call('HSET', p .. 'h', user, struct.pack('<I6I6B', ARGV[3], ARGV[4], ARGV[5]))
return 1
"""
)

# Of two carries that begin at the same time, the second finds the note of the first.
_BEGIN: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
"""


class RedisTarget:
    """One server, or the masters of a cluster, that is carried into."""

    def __init__(
        self, address: RedisAddress, prefixes: Sequence[str], retention: Retention
    ) -> None:
        """
        Know where it is, and touch nothing yet.

        Args:
            address: How to get there, and how to call it in errors.
            prefixes: Of the keys of each tag.
            retention: How long keys live that nothing is added to.

        """
        self.description = str(address)
        self._address = address
        self._prefixes = prefixes
        self._retention = retention
        self._links: list[Link] = []
        self._owners: dict[int, Link] = {}
        self._note_key = _note_key(prefixes[0])

    async def open(self) -> None:
        """
        Connect to all of it.

        Raises:
            StoreUnavailableError: If it cannot be had.

        """
        try:
            for host, tags in (await find_servers(self._address)).items():
                link = await connect(self._address, host)
                self._links.append(link)
                self._owners |= dict.fromkeys(tags, link)
        except OSError as exc:
            raise StoreUnavailableError(self.description, str(exc)) from exc
        for link in self._links:
            await self._ask_by(link, b"SCRIPT", b"LOAD", _PUT.code)

    async def close(self) -> None:
        """Hang up."""
        for link in self._links:
            link.abort("it was closed")
        self._links, self._owners = [], {}

    async def look(self, waybill: Waybill) -> int | None:
        """Say where to go on; as the protocol has it (carried.py)."""
        note = await self._ask(
            b"HMGET", self._note_key, b"epoch", b"contents", b"upto", b"done"
        )
        epoch, contents, upto, done = (_text(each) for each in note)
        if epoch is None:
            await self._see_that_it_is_empty()
            return 0
        if (epoch, contents) != (waybill.epoch, waybill.contents):
            raise self._refusal(
                "inboxes of another file were carried into it, or the file has changed "
                "since; empty it to begin anew"
            )
        return None if done else int(upto or 0)

    async def begin(self, waybill: Waybill) -> None:
        """Write down what is carried, and give each tag the epoch."""
        note = (b"epoch", waybill.epoch, b"contents", waybill.contents)
        if not await self._ask(b"EVAL", _BEGIN, b"1", self._note_key, *note):
            await self.look(waybill)  # refuses what is not this carry
        await self._ask_many(
            [
                (tag, (b"HSET", f"{prefix}h", b"", waybill.epoch))
                for tag, prefix in enumerate(self._prefixes)
            ]
        )

    async def put(self, load: Load) -> None:
        """Put a load, then note how far that is."""
        await self._ask_many(self.commands_of(load))
        await self._ask(b"HSET", self._note_key, b"upto", load.upto)

    async def held(self, users: Sequence[str]) -> Sequence[Held]:
        """Say what is there for `users`."""
        commands: list[Command] = []
        for user in users:
            tag = tag_of(user)
            prefix = self._prefixes[tag]
            commands.append((tag, (b"HGET", f"{prefix}h", user)))
            commands.append((tag, (b"LLEN", f"{prefix}m:{user}")))
        answers = await self._ask_many(commands)
        return [
            _held(user, answers[2 * place], answers[2 * place + 1])
            for place, user in enumerate(users)
        ]

    async def finish(self, waybill: Waybill) -> None:  # noqa: ARG002 - as the protocol has it
        """
        Write down that it is done.

        And whose data they are: what is lost from here on is noticed by bridges
        (redis_servers.begin), which give it a new epoch.
        """
        lines: dict[Link, str] = {}
        for link in self._links:
            info = parse_info(await self._ask_by(link, b"INFO", b"replication"))
            lines[link] = info["master_replid"]
        await self._ask_many(
            [
                (tag, (b"HSET", f"{prefix}h", LINE, lines[self._owners[tag]]))
                for tag, prefix in enumerate(self._prefixes)
            ]
        )
        await self._ask(b"HSET", self._note_key, b"done", b"1")

    # --- words

    def commands_of(self, load: Load) -> list[Command]:
        """Return what puts a load, without noting it."""
        return [
            (tag_of(each.inbox.user), self._put_words(each)) for each in load.portions
        ]

    def _put_words(self, portion: Portion) -> Sequence[Word]:
        inbox, messages = portion.inbox, portion.messages
        prefix = self._prefixes[tag_of(inbox.user)]
        place = messages[0].offset - inbox.first if messages else 0
        words: list[Word] = [b"EVALSHA", _PUT.sha, b"1", f"{prefix}h", prefix]
        words += (inbox.user, inbox.last, inbox.delivered, _REASONS[inbox.trimmed_for])
        words += (
            int(self._retention.max_age_s * 1000) + _GRACE_MS,
            int(self._retention.dedupe_s * 1000) + _GRACE_MS,
            place,
            len(messages),
        )
        words += (pack(each.message) for each in messages)
        for message_id, seen_s in portion.ids:
            words += (repr(seen_s), message_id)
        return words

    async def _see_that_it_is_empty(self) -> None:
        # A bridge that was started here and stored nothing has left its epoch, no user.
        users = await self._ask_many(
            [
                (tag, (b"ZCARD", f"{prefix}u"))
                for tag, prefix in enumerate(self._prefixes)
            ]
        )
        if any(users):
            raise self._refusal(
                "there are inboxes in it already; carry into an empty one"
            )

    # --- asking

    async def _ask(self, *words: Word) -> Any:  # noqa: ANN401 - whatever the command answers
        """Ask who has the first tag, and with it the note."""
        return await self._ask_by(self._owners[0], *words)

    async def _ask_by(self, link: Link, *words: Word) -> Any:  # noqa: ANN401 - as above
        try:
            return await ask(self._address, link, *words, within_s=_ANSWER_S)
        except RefusedByRedisError as exc:
            raise self._refusal(str(exc)) from exc

    async def _ask_many(self, commands: Sequence[Command]) -> Sequence[Any]:
        """Send each command to who has its tag, all at once; the first that fails is told."""
        coming = [(self._owners[tag], words) for tag, words in commands]
        sent = [(link, link.call(*words)) for link, words in coming]
        for link in dict.fromkeys(link for link, _ in coming):
            # Answered behind all of them, within its deadline.
            await self._ask_by(link, b"PING")
        answers = []
        for link, each in sent:
            try:
                answer = each.result()
            except LinkLostError as exc:
                raise StoreUnavailableError(self.description, str(exc)) from exc
            if is_error(answer):
                failure = failure_of(self._address, str(answer), link)
                if isinstance(failure, StoreUnavailableError):
                    raise failure
                raise self._refusal(str(answer))
            answers.append(answer)
        return answers

    def _refusal(self, problem: str) -> MigrationRefusedError:
        if problem.startswith("CARRY "):
            problem = (
                f"{problem.removeprefix('CARRY ')}: a bridge wrote into it meanwhile, or "
                "part of it was lost; stop the bridges, empty it, and begin again"
            )
        return MigrationRefusedError(self.description, problem)


def _held(user: str, head: bytes | None, length: int) -> Held:
    if head is None:
        return Held(CarriedInbox(user, 1, 0, 0, None), length)
    last_bytes, delivered_bytes, number = _HEAD.unpack(head)
    last = int.from_bytes(last_bytes, "little")
    delivered = int.from_bytes(delivered_bytes, "little")
    inbox = CarriedInbox(user, last - length + 1, last, delivered, _WORDS[number])
    return Held(inbox, length)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _note_key(first_prefix: str) -> str:
    return f"{first_prefix}carry"


async def refuse_while_carried(
    address: RedisAddress, link: Link, first_prefix: str
) -> None:
    """
    Let no bridge in before everything is there.

    Raises:
        StoreUnavailableError: If inboxes are being carried into the store, or were begun
            to be. Asked again it may be done.

    """
    note = await ask(
        address, link, b"HMGET", _note_key(first_prefix), b"epoch", b"done"
    )
    if note[0] is not None and note[1] is None:
        problem = (
            "inboxes are being carried into it; `bridge inbox carry` must end first"
        )
        raise StoreUnavailableError(str(address), problem)


def redis_target(
    address: RedisAddress, *, namespace: str, retention: Retention
) -> RedisTarget:
    """Return the store at `address`, to be carried into."""
    prefixes = [f"{namespace}/{address.db}:{{{name}}}:" for name in tag_names()]
    return RedisTarget(address, prefixes, retention)
