"""
The Lua scripts: what Redis does in one step. A connection loads them and calls them by hash.

The keys of a user; each begins with a prefix that ends in the hash tag of the user:

    h            a hash: user -> last offset, delivered mark, why older messages are gone,
                 and, unless it is 0, the offset after which those of this user start. For
                 a sparse inbox, then the newest offset in the list, and the newest offset
                 that was deleted from the sorted set for another reason than its key;
                 and under the empty name the epoch, so it is lost together with them.
                 Fields that begin with a control character belong to no user:
                 - the replication id of the server that the data are from
                 - the fences: for each queue the largest token that messages were stored
                   under. A single server has all fences in the first tag; in a cluster
                   each tag has its own.
                 - the claims: for each queue the token given out last, in the first tag
                 - lost: when the tag was found without its hash, which it had before
                 - forgotten: the offset after which those of new users start; see
                   inbox/sqlite/schema.py
    u            a sorted set of the users, all with score 0: the index for operators
    m:USER       a list of the kept messages, oldest first
    s:USER       a sorted set: the places of the messages since the first one with a key, by
                 offset. A place is the key, or for a message without one its offset
    k:USER       a hash: place -> element of these messages
    i:USER       a sorted set of the message ids of the user, by time
    b:SESSION    the last batch of a bridge, and its result
    t:KEY        a trial: a count
    r            a sorted set of the revocations of users of the tag as JSON, all with score 0

Offsets in the list have no gaps, so the position determines the offset: the last element
has the last offset, or in a sparse inbox the offset in the head. In s:USER a message with a
key replaces the one before it, which leaves a hole.

Reads never write, so they work on a server without free memory. They skip messages beyond
the limit or the age, which the next append or sweep removes. Messages and ids have no time to
live, because the server would delete them if its clock jumped ahead.

`now`, `steady` and `lowest` are a reading of the bridge's clock; the oldest times are computed
from it (core/clock_reading.py).
"""

from dataclasses import dataclass
from hashlib import sha1
from typing import Final

from bridge.core.replay import FORGOTTEN_STEP
from bridge.enums import SyncReason

# How long the result of a batch is kept: longer than any bridge retries it.
_BATCH_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Script:
    """Lua code, and the hash that the server knows it by."""

    code: str

    @property
    def sha(self) -> bytes:
        """The hash, as Redis defines it. It protects nothing."""
        return sha1(self.code.encode(), usedforsecurity=False).hexdigest().encode()


# Why older messages are gone, as stored in the hash. With ALL_EXPIRED the list is empty for
# that reason; without it an empty list was deleted by something else than a bridge.
ALL_EXPIRED: Final = 4
REASONS: Final = {
    0: None,
    1: SyncReason.LIMIT,
    2: SyncReason.EXPIRED,
    3: SyncReason.RESET,
    ALL_EXPIRED: SyncReason.EXPIRED,
}

# A user without a head is new, unless the hash was lost: then the messages in the list count
# from 1.
_HEADS: Final = """
local call = redis.call
local function head_of(p, user)
  local got = call('HMGET', p .. 'h', user, '', '\\1lost', '\\1forgotten')
  if not got[1] then
    local is_lost = not got[2] or (got[3] and got[3] ~= '')
    local length, forgotten = call('LLEN', p .. 'm:' .. user), tonumber(got[4] or 0)
    if length > 0 then forgotten = 0 end
    return got[2], length + forgotten, forgotten, is_lost and 3 or 0, forgotten
  end
  local last, delivered, reason = struct.unpack('<I6I6B', got[1])
  if #got[1] > 19 then
    local forgotten, upto, gone = struct.unpack('<I6I6I6', got[1], 14)
    return got[2], last, delivered, reason, forgotten, upto, gone
  end
  local forgotten = #got[1] > 13 and struct.unpack('<I6', got[1], 14) or 0
  return got[2], last, delivered, reason, forgotten
end
local function set_head(p, user, last, delivered, reason, forgotten, upto, gone)
  local head = struct.pack('<I6I6B', last, delivered, reason)
  if upto then
    head = head .. struct.pack('<I6I6I6', forgotten, upto, gone)
  elseif forgotten > 0 then
    head = head .. struct.pack('<I6', forgotten)
  end
  call('HSET', p .. 'h', user, head)
end
-- Messages of a sparse inbox above an offset: elements, offsets, places.
local function sparse_above(p, user, offset, skip, most)
  local got = call('ZRANGEBYSCORE', p .. 's:' .. user, '(' .. string.format('%.0f', offset),
    '+inf', 'WITHSCORES', 'LIMIT', skip, most)
  local places, offsets = {}, {}
  for k = 1, #got, 2 do
    places[#places + 1], offsets[#offsets + 1] = got[k], tonumber(got[k + 1])
  end
  if #places == 0 then return {}, {}, {} end
  local elements = {}
  for k = 1, #places, 1000 do
    local last = math.min(k + 999, #places)
    local piece = call('HMGET', p .. 'k:' .. user, unpack(places, k, last))
    for n = 1, #piece do elements[k + n - 1] = piece[n] end
  end
  return elements, offsets, places
end
local function taken_at(p, user, index)
  local element = call('LINDEX', p .. 'm:' .. user, index)
  return element and struct.unpack('<d', element)
end
"""

_TRIM: Final = """
local function trim(p, user, length, most, oldest, reason)
  local key = p .. 'm:' .. user
  if length > most then
    call('LTRIM', key, length - most, -1)
    reason = 1
  end
  local taken = taken_at(p, user, 0)
  while taken and taken < oldest do
    call('LPOP', key)
    reason = 2
    taken = taken_at(p, user, 0)
  end
  return taken and reason or 4
end
-- Returns the reason and the newest offset that was deleted from the sorted set.
local function trim_sparse(p, user, most, oldest, reason, gone)
  local set = p .. 's:' .. user
  local excess = call('ZCARD', set) - most
  local length = call('LLEN', p .. 'm:' .. user)
  local room = math.max(0, -excess)
  if length > 0 then
    if excess > 0 or length > room then reason = 1 end
    local now_for = trim(p, user, length, room, oldest, reason)
    if now_for ~= 4 then
      reason = now_for
    elseif reason == 0 then
      reason = 2
    end
  end
  local elements, offsets, places = sparse_above(p, user, 0, 0, 1)
  while places[1] do
    local is_old = struct.unpack('<d', elements[1]) < oldest
    if excess <= 0 and not is_old then break end
    call('ZREM', set, places[1])
    call('HDEL', p .. 'k:' .. user, places[1])
    gone, reason, excess = offsets[1], is_old and 2 or 1, excess - 1
    elements, offsets, places = sparse_above(p, user, 0, 0, 1)
  end
  if not places[1] and call('LLEN', p .. 'm:' .. user) == 0 then reason = 4 end
  return reason, gone
end
"""

# The messages kept under the current retention: `first` is the oldest offset, `base` the
# offset before the first element of the list, `upto` that of its last one, `kept` the number
# of messages if the inbox is sparse, otherwise -1.
_VIEW: Final = (
    _HEADS
    + """
local function view_sparse(p, user, most, oldest, last, reason, forgotten, upto, gone)
  local count, length = call('ZCARD', p .. 's:' .. user), call('LLEN', p .. 'm:' .. user)
  local base, skip = upto - length, math.max(0, count - most)
  if count + length == 0 and last > forgotten then
    return last + 1, reason == 4 and 2 or 3, base, 0
  end
  if skip > 0 then
    local _, offsets = sparse_above(p, user, 0, skip - 1, 1)
    gone, reason = offsets[1], 1
  end
  while skip < count do
    local elements, offsets = sparse_above(p, user, 0, skip, 1)
    if struct.unpack('<d', elements[1]) >= oldest then break end
    skip, gone, reason = skip + 1, offsets[1], 2
  end
  local room = most - (count - skip)
  local first = base + 1
  if length > room then first, reason = upto - room + 1, 1 end
  while first <= upto do
    if taken_at(p, user, first - base - 1) >= oldest then break end
    first, reason = first + 1, 2
  end
  local kept = count - skip + math.max(0, upto - first + 1)
  return math.max(first, gone + 1), reason, base, kept
end
local function view(p, user, most, oldest)
  local epoch, last, delivered, reason, forgotten, upto, gone = head_of(p, user)
  if upto then
    local first, why, base, kept =
      view_sparse(p, user, most, oldest, last, reason, forgotten, upto, gone)
    if first > forgotten + 1 and why == 0 then why = 1 end
    return epoch or '', first, last, delivered, why, base, forgotten, upto, kept
  end
  local base = last
  if last > forgotten then base = last - call('LLEN', p .. 'm:' .. user) end
  if base == last and last > forgotten then reason = reason == 4 and 2 or 3 end
  local first = base + 1
  if last - base > most then first, reason = last - most + 1, 1 end
  while first <= last do
    if taken_at(p, user, first - base - 1) >= oldest then break end
    first, reason = first + 1, 2
  end
  if first > forgotten + 1 and reason == 0 then reason = 1 end
  return epoch or '', first, last, delivered, reason, base, forgotten, last, -1
end
-- The next messages above an offset: elements, and their offsets if they may have holes.
local function piece_above(p, user, at, base, upto, most)
  if at < upto then
    return call('LRANGE', p .. 'm:' .. user, at - base, at - base + most - 1)
  end
  return sparse_above(p, user, at, 0, most)
end
"""
)

# ARGV: now, message limit, oldest time of messages and of ids, epoch to use if there is none,
# session, number of the batch, publish command, prefix of the fences, number of fences, for
# each its queue and token; then for each user: prefix, user, number of messages, and for each
# message its id and element. If the number is negative, a message of the user has a key, and
# each has three arguments: id, key (may be empty), element.
# Returns the offsets separated by spaces (0 = duplicate, x = not stored), and the error that
# kept messages from being stored. If a queue has a larger token: nothing, FENCED, the queue
# and that token.
APPEND: Final = Script(
    _HEADS
    + _TRIM
    + f"local BATCH_MS = {_BATCH_MS}"
    + """
local most, oldest, oldest_id = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local candidate, publish = ARGV[5], ARGV[8]
local fences_end = 10 + 2 * tonumber(ARGV[10])
local batch_key = ARGV[fences_end + 1] .. 'b:' .. ARGV[6]
local out, had, failure, stored = {}, nil, nil, false

local before = call('GET', batch_key)
if before then
  local number, rest = string.match(before, '^(%d+) (.*)$')
  if number == ARGV[7] then
    if not string.find(rest, 'x', 1, true) then
      call('SET', batch_key, before, 'PX', BATCH_MS)
      return {rest}
    end
    had = {}
    for word in string.gmatch(rest, '%S+') do had[#had + 1] = word end
  end
end

-- The result of a stored batch is repeated above, even if another bridge has the queue by
-- now, because that stores nothing. Everything below needs a token that is large enough.
for k = 11, fences_end, 2 do
  local key, field = ARGV[9] .. 'h', '\\1fence ' .. ARGV[k]
  local token, passed_by = tonumber(ARGV[k + 1]), call('HMGET', key, field)[1]
  local largest = tonumber(passed_by or 0)
  if token < largest then return {'', 'FENCED', ARGV[k], passed_by} end
  if token > largest then call('HSET', key, field, ARGV[k + 1]) end
end

local function publish_news(p, user, epoch, first, fresh)
  local parts = {struct.pack('<I8', first), epoch}
  for k = 1, #fresh do
    parts[#parts + 1] = struct.pack('<I4', #fresh[k])
    parts[#parts + 1] = fresh[k]
  end
  -- Without the permission to publish the messages are stored all the same: an error here
  -- would make the bridge store them again.
  redis.pcall(publish, p .. 'c:' .. user, table.concat(parts))
end

-- Returns how many messages the sorted set had before, and how many it has now.
local function store_sparse(p, user, first, fresh, keys)
  local set, elements = p .. 's:' .. user, p .. 'k:' .. user
  local before = call('ZCARD', set)
  local now = before
  for k = 1, #fresh do
    local offset = first + k - 1
    local place = keys[k] ~= '' and keys[k] or '\\1' .. offset
    now = now + call('ZADD', set, offset, place)
    call('HSET', elements, place, fresh[k])
  end
  return before, now
end

-- All reads come first, then RPUSH or ZADD, the only writes that may fail (out of memory). So
-- all messages of a user are stored, or none.
local function store(i, p, user, count, has_keys)
  local epoch, last, delivered, reason, forgotten, upto, gone = head_of(p, user)
  local has_fresh_key = upto
  if has_keys and not upto then upto, gone = last, 0 end
  local had_messages = last > forgotten
  local keys = {}
  local list, ids = p .. 'm:' .. user, p .. 'i:' .. user
  local first, fresh, results, noted, seen_here = last + 1, {}, {}, {}, {}
  for k = 1, count do
    local id, element, key = ARGV[i], ARGV[i + 1], ''
    i = i + 2
    if has_keys then
      key, element = element, ARGV[i]
      i = i + 1
    end
    local had_it = false
    if id ~= '' then
      if seen_here[id] then
        had_it = true
      else
        local seen = call('ZSCORE', ids, id)
        had_it = seen and tonumber(seen) >= oldest_id
        seen_here[id] = true
      end
      if not had_it then
        noted[#noted + 1] = ARGV[1]
        noted[#noted + 1] = id
      end
    end
    if had_it then
      results[k] = 0
    else
      last = last + 1
      fresh[#fresh + 1] = element
      results[k] = last
      if upto then
        keys[#fresh] = key
        has_fresh_key = has_fresh_key or key ~= ''
      end
    end
  end
  if not has_fresh_key then upto = nil end
  if #fresh > 0 then
    local length
    if upto then
      local before, now = store_sparse(p, user, first, fresh, keys)
      length = now
      if before == 0 or now > most / 2 then length = now + call('LLEN', list) end
      if before == 0 then
        call('ZADD', p .. 'u', 0, user)
        if length == now and had_messages then reason = reason == 4 and 2 or 3 end
      end
      -- What is too old is left to the next sweep: readers skip it.
      if length > most then
        reason, gone = trim_sparse(p, user, most, oldest, reason, gone)
      end
    else
      for k = 1, #fresh, 1000 do
        length = call('RPUSH', list, unpack(fresh, k, math.min(k + 999, #fresh)))
      end
    end
    if not epoch then
      epoch = candidate
      call('HSET', p .. 'h', '', epoch, '\\1lost', ARGV[1])
    end
    if not upto then
      if length == #fresh and had_messages then reason = reason == 4 and 2 or 3 end
      if length == #fresh or reason == 3 then call('ZADD', p .. 'u', 0, user) end
      reason = trim(p, user, length, most, oldest, reason)
    end
    set_head(p, user, last, delivered, reason, forgotten, upto, gone)
    for k = 1, #noted, 1000 do
      call('ZADD', ids, unpack(noted, k, math.min(k + 999, #noted)))
    end
    if #noted > 0 then call('ZREMRANGEBYSCORE', ids, '-inf', '(' .. ARGV[4]) end
    publish_news(p, user, epoch, first, fresh)
  end
  return results
end

local i = fences_end + 1
while i <= #ARGV do
  local p, user, count = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  i = i + 3
  local has_keys = count < 0
  count = math.abs(count)
  local ok, results
  if had and had[#out + 1] ~= 'x' then
    results = {}
    for k = 1, count do results[k] = had[#out + k] end
  else
    ok, results = pcall(store, i, p, user, count, has_keys)
    if ok then
      stored = true
    else
      failure = results
      results = {}
      for k = 1, count do results[k] = 'x' end
    end
  end
  for k = 1, count do out[#out + 1] = results[k] end
  i = i + (has_keys and 3 or 2) * count
end

if failure then
  if type(failure) == 'table' then failure = failure.err end
  if not (stored or had) then return {'', failure} end
end
local words = table.concat(out, ' ')
call('SET', batch_key, ARGV[7] .. ' ' .. words, 'PX', BATCH_MS)
return {words, failure}
"""
)

# ARGV: prefix, revocation, publish command. A script with an error in its middle keeps what it
# wrote. So the write comes first: without it no window is closed.
REVOKE: Final = Script(
    """
redis.call('ZADD', ARGV[1] .. 'r', 0, ARGV[2])
redis.call(ARGV[3], ARGV[1] .. 'revoked', ARGV[2])
return 1
"""
)

# ARGV: prefix, queue, least token. Returns a token that is larger than all before.
CLAIM: Final = Script(
    """
local key, field = ARGV[1] .. 'h', '\\1claim ' .. ARGV[2]
local last = tonumber(redis.call('HMGET', key, field)[1] or 0)
local token = string.format('%.0f', math.max(last + 1, tonumber(ARGV[3])))
redis.call('HSET', key, field, token)
return token
"""
)

# Whether a message is past its deadline; see `ClockReading.has_passed`. Needs ARGV as in READ.
_IS_OVER: Final = """
local now, steady, lowest = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local function is_over(taken, deadline)
  if deadline > now then return false end
  local ttl = deadline - taken
  return (ttl >= 0 and ttl <= steady) or deadline <= lowest
end
"""

# ARGV: prefix, user, message limit, oldest time, now, steady, lowest, offset to read after,
# maximum of messages and of bytes. Returns epoch, first, last, delivered, reason, forgotten, the newest
# offset in the list, the number of messages (-1 if it is not sparse), the offset after which the next page
# begins, the number of messages past their deadline, then for each message its offset and element.
READ: Final = Script(
    _VIEW
    + _IS_OVER
    + """
local p, user = ARGV[1], ARGV[2]
local after, most, bytes = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local epoch, first, last, delivered, reason, base, forgotten, upto, kept =
  view(p, user, tonumber(ARGV[3]), tonumber(ARGV[4]))
local out = {epoch, first, last, delivered, reason, forgotten, upto, kept, 0, 0}
local at, expired, found, size = math.max(after, first - 1), 0, 0, 0
local is_full = most == 0
while at < last and not is_full do
  local piece, offsets = piece_above(p, user, at, base, upto, math.min(most, 64))
  if #piece == 0 then at = last end
  for k = 1, #piece do
    local element = piece[k]
    local taken, deadline, between = struct.unpack('<ddH', element)
    if is_over(taken, deadline) then
      expired = expired + 1
    else
      size = size + #element - 20 - between
      if found > 0 and (found >= most or size > bytes) then
        is_full = true
        break
      end
      found = found + 1
      out[#out + 1] = offsets and offsets[k] or at + 1
      out[#out + 1] = element
    end
    at = offsets and offsets[k] or at + 1
  end
end
out[9], out[10] = at, expired
return out
"""
)

# ARGV: prefix, user, message limit, oldest time, now, steady, lowest, offset to count after.
# Returns the number of messages past their deadline.
COUNT_EXPIRED: Final = Script(
    _VIEW
    + _IS_OVER
    + """
local p, user, after = ARGV[1], ARGV[2], tonumber(ARGV[8])
local epoch, first, last, delivered, reason, base, forgotten, upto =
  view(p, user, tonumber(ARGV[3]), tonumber(ARGV[4]))
local at, expired = math.max(after, first - 1), 0
while at < last do
  local piece, offsets = piece_above(p, user, at, base, upto, 64)
  for k = 1, #piece do
    if is_over(struct.unpack('<dd', piece[k])) then expired = expired + 1 end
  end
  at = #piece == 0 and last or offsets and offsets[#piece] or at + #piece
end
return expired
"""
)

# ARGV: for each user prefix, user, epoch of the mark, offset. A mark of another epoch is
# ignored.
MARK: Final = Script(
    _HEADS
    + """
for i = 1, #ARGV, 4 do
  local p, user, offset = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 3])
  local epoch, last, delivered, reason, forgotten, upto, gone = head_of(p, user)
  offset = math.min(offset, last)
  if epoch == ARGV[i + 2] and offset > delivered then
    set_head(p, user, last, offset, reason, forgotten, upto, gone)
  end
end
return 1
"""
)

# ARGV: how long trials are kept (ms), then for each trial its key, and 1 if it starts again.
# Returns the number of each trial.
NOTE_TRIALS: Final = Script(
    """
local out = {}
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] == '1' then redis.call('DEL', ARGV[i]) end
  out[#out + 1] = redis.call('INCR', ARGV[i])
  redis.call('PEXPIRE', ARGV[i], ARGV[1])
end
return out
"""
)

# ARGV: prefix, user to continue after (empty = from the start), number of users, message limit,
# oldest time of messages and of ids, subcommand that counts subscribers. Removes what is too
# old, the times to live that earlier versions set, and users who have no messages, ids and
# windows. Returns the last of the users; empty if no more follow.
SWEEP: Final = Script(
    _HEADS
    + _TRIM
    + f"local STEP = {FORGOTTEN_STEP}"
    + """
local p, count = ARGV[1], tonumber(ARGV[3])
local low = ARGV[2] == '' and '-' or '(' .. ARGV[2]
local users = call('ZRANGEBYLEX', p .. 'u', low, '+', 'LIMIT', 0, count)
for _, user in ipairs(users) do
  local list, ids = p .. 'm:' .. user, p .. 'i:' .. user
  local epoch, last, delivered, reason, forgotten, upto, gone = head_of(p, user)
  call('PERSIST', list)
  call('PERSIST', ids)
  call('ZREMRANGEBYSCORE', ids, '-inf', '(' .. ARGV[6])
  local length = call('LLEN', list)
  if upto and length + call('ZCARD', p .. 's:' .. user) > 0 then
    local now_for, now_gone =
      trim_sparse(p, user, tonumber(ARGV[4]), tonumber(ARGV[5]), reason, gone)
    if now_for ~= reason or now_gone ~= gone then
      set_head(p, user, last, delivered, now_for, forgotten, upto, now_gone)
    end
    reason = now_for
  elseif length > 0 then
    local now_for = trim(p, user, length, tonumber(ARGV[4]), tonumber(ARGV[5]), reason)
    if now_for ~= reason then set_head(p, user, last, delivered, now_for, forgotten) end
    reason = now_for
  end
  if reason == 4 and call('ZCARD', ids) == 0
    and call('PUBSUB', ARGV[7], p .. 'c:' .. user)[2] == 0 then
    call('HDEL', p .. 'h', user)
    call('ZREM', p .. 'u', user)
    local above = (math.floor(last / STEP) + 1) * STEP
    local known = tonumber(call('HMGET', p .. 'h', '\\1forgotten')[1] or 0)
    if above > known then call('HSET', p .. 'h', '\\1forgotten', above) end
  end
end
local lost = call('HMGET', p .. 'h', '\\1lost')[1]
if lost and lost ~= '' and tonumber(lost) < tonumber(ARGV[5]) then
  call('HSET', p .. 'h', '\\1lost', '')
end
return #users == count and users[count] or ''
"""
)

# ARGV: a new epoch, the server's replication id, 1 if the server loses nothing that it has
# replied to, now, and for each tag its prefix and 1 if it had an epoch before. A tag gets the
# new epoch if it has none, or if its replication id has changed and the server may have lost
# something. Returns the epoch of each.
BEGIN: Final = Script(
    """
local out = {}
for i = 5, #ARGV, 2 do
  local key = ARGV[i] .. 'h'
  local got = redis.call('HMGET', key, '', '\\1line')
  local epoch, replid = got[1], got[2]
  if not epoch or (replid and replid ~= ARGV[2] and ARGV[3] ~= '1') then
    epoch = ARGV[1]
    redis.call('HSET', key, '', epoch)
    if not got[1] and ARGV[i + 1] == '1' then
      redis.call('HSET', key, '\\1lost', ARGV[4])
    end
  end
  if replid ~= ARGV[2] then redis.call('HSET', key, '\\1line', ARGV[2]) end
  out[#out + 1] = epoch
end
return out
"""
)

# ARGV: for each user prefix and user. Returns for each user epoch, last offset and newest
# element.
NEWEST: Final = Script(
    _HEADS
    + """
local out = {}
for i = 1, #ARGV, 2 do
  local epoch, last, _, _, _, upto = head_of(ARGV[i], ARGV[i + 1])
  local element = call('LINDEX', ARGV[i] .. 'm:' .. ARGV[i + 1], -1) or ''
  if upto and upto < last then
    element = sparse_above(ARGV[i], ARGV[i + 1], last - 1, 0, 1)[1] or ''
  end
  out[#out + 1] = epoch or ''
  out[#out + 1] = last
  out[#out + 1] = element
end
return out
"""
)


# --- read-only scripts for operators (admin_queries.py)

# ARGV: prefix, user, message limit, oldest time, now, steady, lowest, offset to read before
# (0 = from the end), maximum of messages and of bytes of data (0 = no data). Returns for each message,
# newest first: offset, element, bytes of data.
BROWSE: Final = Script(
    _VIEW
    + """
local p, user = ARGV[1], ARGV[2]
local before, most, bytes = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local epoch, first, last, delivered, reason, base, forgotten, upto =
  view(p, user, tonumber(ARGV[3]), tonumber(ARGV[4]))
local at, out, found, size = last, {}, 0, 0
if before > 0 then at = math.min(last, before - 1) end
while at >= first and found < most do
  local low, piece, offsets = math.max(first, at - math.min(63, most - 1)), nil, nil
  if at > upto then
    piece, offsets = piece_above(p, user, math.max(upto, first - 1), base, upto, -1)
    while #piece > 0 and offsets[#piece] > at do piece[#piece] = nil end
    if #piece == 0 then at = upto end
  else
    piece = call('LRANGE', p .. 'm:' .. user, low - base - 1, at - base - 1)
  end
  for k = #piece, 1, -1 do
    local element = piece[k]
    if offsets then at = offsets[k] end
    local _, _, between = struct.unpack('<ddH', element)
    size = size + #element - 20 - between
    if found >= most or (found > 0 and bytes > 0 and size > bytes) then return out end
    found = found + 1
    out[#out + 1] = at
    out[#out + 1] = bytes > 0 and element or string.sub(element, 1, 20 + between)
    out[#out + 1] = #element - 20 - between
    at = at - 1
    if offsets and k == 1 then at = upto end
  end
end
return out
"""
)

# ARGV: prefix, unused, message limit, oldest time, now, steady, lowest, id, number of messages after which to
# stop, users. Returns the numbers of messages and of users searched (at least one), then for
# each of these users who has or had the id: name, when it was stored last, number of
# elements, and for each element its offset, header and bytes of data.
FIND: Final = Script(
    _VIEW
    + """
local p, id, enough, searched, out = ARGV[1], ARGV[8], tonumber(ARGV[9]), 0, {0, 0}
for i = 10, #ARGV do
  local user = ARGV[i]
  local epoch, first, last, delivered, reason, base, forgotten, upto, kept =
    view(p, user, tonumber(ARGV[3]), tonumber(ARGV[4]))
  local found, at = {}, first - 1
  while at < last do
    local piece, offsets = piece_above(p, user, at, base, upto, 64)
    for k = 1, #piece do
      local element = piece[k]
      local _, _, between, length = struct.unpack('<ddHH', element)
      if length == #id and string.sub(element, 23, 22 + length) == id then
        found[#found + 1] = offsets and offsets[k] or at + k
        found[#found + 1] = string.sub(element, 1, 20 + between)
        found[#found + 1] = #element - 20 - between
      end
    end
    at = #piece == 0 and last or offsets and offsets[#piece] or at + #piece
  end
  searched = searched + math.max(0, kept < 0 and last - first + 1 or kept)
  local seen = call('ZSCORE', p .. 'i:' .. user, id)
  if seen or #found > 0 then
    out[#out + 1] = user
    out[#out + 1] = seen or ''
    out[#out + 1] = #found / 3
    for k = 1, #found do out[#out + 1] = found[k] end
  end
  out[1], out[2] = searched, i - 9
  if searched >= enough then break end
end
return out
"""
)

# ARGV: message limit, oldest time, then for each user prefix and user.
# Returns for each user what READ returns first, up to the number of messages.
STATES: Final = Script(
    _VIEW
    + """
local out = {}
for i = 3, #ARGV, 2 do
  local epoch, first, last, delivered, reason, _, forgotten, upto, kept =
    view(ARGV[i], ARGV[i + 1], tonumber(ARGV[1]), tonumber(ARGV[2]))
  out[#out + 1] = {epoch, first, last, delivered, reason, forgotten, upto, kept}
end
return out
"""
)

# Loaded on each new connection.
ALL: Final = (
    *(APPEND, SWEEP, CLAIM, READ, COUNT_EXPIRED, MARK, NOTE_TRIALS, BEGIN, NEWEST),
    *(BROWSE, FIND, STATES, REVOKE),
)
