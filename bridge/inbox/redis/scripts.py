"""
What Redis does in one step: Lua scripts, each sent once to a server and called by its hash.

The keys of a user, all behind a prefix that ends in the hash tag of the user:

    h            a hash: user -> last offset, delivered mark, why older ones are gone;
                 and under the empty name the epoch. So the epoch is gone when they are.
                 Under names with a control character, which no user has, stand whose
                 data they are (the replication id of the server), and the fences: the
                 largest token that something of a queue was stored under. On one server
                 all fences are in the first tag; in a cluster each tag has its own.
                 There is the last token that was given out, too: in the first tag
    u            a sorted set of the users, all with score 0: the operators' index
    m:USER       a list of the messages that are kept, the oldest first
    i:USER       a sorted set of the ids that the user has had, by when
    b:SESSION    the last batch of a bridge, and what came of it
    t:KEY        a trial: a count

Offsets have no holes, so the offset of an element is known by its place in the list:
the last one has the last offset.

Readers forget in the eye alone: what is over the limit or too old is not shown, and goes
with the next append. So they never write, and work in a server that is full. A list that
gets nothing more expires as a whole.
"""

from dataclasses import dataclass
from hashlib import sha1
from typing import Final

from bridge.enums import SyncReason

# What a batch's result is remembered for: longer than any bridge tries again.
_BATCH_MS: Final = 3_600_000
# Keys live so much longer than what is in them counts: clocks differ.
_GRACE_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Script:
    """Lua code and the name that the server knows it by."""

    code: str

    @property
    def sha(self) -> bytes:
        """Return the name: what the protocol wants, no secret."""
        return sha1(self.code.encode(), usedforsecurity=False).hexdigest().encode()


# The reasons, as they stand in heads.
LIMIT: Final = 1
EXPIRED: Final = 2
REASONS: Final = {0: None, LIMIT: SyncReason.LIMIT, EXPIRED: SyncReason.EXPIRED}

_HEADS: Final = """
local call = redis.call
local function head_of(p, user)
  local got = call('HMGET', p .. 'h', user, '')
  if not got[1] then return got[2], 0, 0, 0 end
  local last, delivered, reason = struct.unpack('<I6I6B', got[1])
  return got[2], last, delivered, reason
end
local function set_head(p, user, last, delivered, reason)
  call('HSET', p .. 'h', user, struct.pack('<I6I6B', last, delivered, reason))
end
local function taken_at(p, user, place)
  local element = call('LINDEX', p .. 'm:' .. user, place)
  return element and struct.unpack('<d', element)
end
"""

# What is kept by today's rules: `first` is its oldest offset, `base` the offset before the
# first element of the list.
VIEW: Final = (
    _HEADS
    + """
local function view(p, user, most, oldest)
  local epoch, last, delivered, reason = head_of(p, user)
  local base = last
  if last > 0 then base = last - call('LLEN', p .. 'm:' .. user) end
  if base == last and last > 0 then reason = 2 end
  local first = base + 1
  if last - base > most then first, reason = last - most + 1, 1 end
  while first <= last do
    if taken_at(p, user, first - base - 1) >= oldest then break end
    first, reason = first + 1, 2
  end
  if first > 1 and reason == 0 then reason = 1 end
  return epoch or '', first, last, delivered, reason, base
end
"""
)

# ARGV: now, most messages, greatest age, dedupe window (s), epoch if there is none,
# session, number of the batch, publish command, prefix of the fences, how many of them, for
# each queue and token; then for each user: prefix, user, how many, and for each message id
# and element.
# Returns the offsets in words, 0 = had before, x = not stored; and what kept those from it.
# If the token of a queue was passed: nothing, FENCED, the queue and the token that did.
APPEND: Final = Script(
    _HEADS
    + f"local BATCH_MS, GRACE_MS = {_BATCH_MS}, {_GRACE_MS}"
    + """
local now, most, age = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local dedupe, candidate, publish = tonumber(ARGV[4]), ARGV[5], ARGV[8]
local fences_end = 10 + 2 * tonumber(ARGV[10])
local batch_key = ARGV[fences_end + 1] .. 'b:' .. ARGV[6]
local oldest, out, had, failure, stored = now - age, {}, nil, nil, false

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

-- What was stored before is said again above, whoever has the queue by now: it changes nothing.
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
  -- Whoever may not publish has stored it all the same: failing now would store it twice.
  redis.pcall(publish, p .. 'c:' .. user, table.concat(parts))
end

local function trim(p, user, length, reason)
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
  return reason
end

-- Reads first, then the one write that may fail: a user's part is stored or not.
local function store(i, p, user, count)
  local epoch, last, delivered, reason = head_of(p, user)
  local is_new = last == 0
  local list, ids = p .. 'm:' .. user, p .. 'i:' .. user
  local first, fresh, results, noted, seen_here = last + 1, {}, {}, {}, {}
  for k = 1, count do
    local id, element = ARGV[i], ARGV[i + 1]
    i = i + 2
    local had_it = false
    if id ~= '' then
      if seen_here[id] then
        had_it = true
      else
        local seen = call('ZSCORE', ids, id)
        had_it = seen and now - seen <= dedupe
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
    end
  end
  if #fresh > 0 then
    local length
    for k = 1, #fresh, 1000 do
      length = call('RPUSH', list, unpack(fresh, k, math.min(k + 999, #fresh)))
    end
    if not epoch then
      epoch = candidate
      call('HSET', p .. 'h', '', epoch)
    end
    if is_new then call('ZADD', p .. 'u', 0, user) end
    reason = trim(p, user, length, reason)
    set_head(p, user, last, delivered, reason)
    call('PEXPIRE', list, math.ceil(age * 1000) + GRACE_MS)
    for k = 1, #noted, 1000 do
      call('ZADD', ids, unpack(noted, k, math.min(k + 999, #noted)))
    end
    if #noted > 0 then
      call('ZREMRANGEBYSCORE', ids, '-inf', '(' .. string.format('%.17g', now - dedupe))
      call('PEXPIRE', ids, math.ceil(dedupe * 1000) + GRACE_MS)
    end
    publish_news(p, user, epoch, first, fresh)
  end
  return results
end

local i = fences_end + 1
while i <= #ARGV do
  local p, user, count = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  i = i + 3
  local ok, results
  if had and had[#out + 1] ~= 'x' then
    results = {}
    for k = 1, count do results[k] = had[#out + k] end
  else
    ok, results = pcall(store, i, p, user, count)
    if ok then
      stored = true
    else
      failure = results
      results = {}
      for k = 1, count do results[k] = 'x' end
    end
  end
  for k = 1, count do out[#out + 1] = results[k] end
  i = i + 2 * count
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

# ARGV: prefix, queue, least token. Returns a token, larger than all that were given out.
CLAIM: Final = Script(
    """
local key, field = ARGV[1] .. 'h', '\\1claim ' .. ARGV[2]
local last = tonumber(redis.call('HMGET', key, field)[1] or 0)
local token = string.format('%.0f', math.max(last + 1, tonumber(ARGV[3])))
redis.call('HSET', key, field, token)
return token
"""
)

# ARGV: prefix, user, most messages, oldest time, now, after, messages, bytes.
# Returns epoch, first, last, delivered, reason, where the next page begins, how many are
# past their deadline, and elements, each behind its offset.
READ: Final = Script(
    VIEW
    + """
local p, user, now = ARGV[1], ARGV[2], tonumber(ARGV[5])
local after, most, bytes = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local epoch, first, last, delivered, reason, base =
  view(p, user, tonumber(ARGV[3]), tonumber(ARGV[4]))
local out = {epoch, first, last, delivered, reason, 0, 0}
local at, expired, found, size = math.max(after, first - 1), 0, 0, 0
local is_full = most == 0
while at < last and not is_full do
  local start = at - base
  local piece = call('LRANGE', p .. 'm:' .. user, start, start + math.min(most, 64) - 1)
  for k = 1, #piece do
    local element = piece[k]
    local _, deadline, between = struct.unpack('<ddH', element)
    if deadline <= now then
      expired = expired + 1
    else
      size = size + #element - 20 - between
      if found > 0 and (found >= most or size > bytes) then
        is_full = true
        break
      end
      found = found + 1
      out[#out + 1] = at + 1
      out[#out + 1] = element
    end
    at = at + 1
  end
end
out[6], out[7] = at, expired
return out
"""
)

# ARGV: prefix, user, most messages, oldest time, now, after.
# Returns how many are past their deadline.
COUNT_EXPIRED: Final = Script(
    VIEW
    + """
local p, user, now, after = ARGV[1], ARGV[2], tonumber(ARGV[5]), tonumber(ARGV[6])
local epoch, first, last, delivered, reason, base =
  view(p, user, tonumber(ARGV[3]), tonumber(ARGV[4]))
local at, expired = math.max(after, first - 1), 0
while at < last do
  local piece = call('LRANGE', p .. 'm:' .. user, at - base, at - base + 63)
  for k = 1, #piece do
    local _, deadline = struct.unpack('<dd', piece[k])
    if deadline <= now then expired = expired + 1 end
  end
  at = at + #piece
end
return expired
"""
)

# ARGV: for each user prefix, user, epoch that the mark is of, offset.
MARK: Final = Script(
    _HEADS
    + """
for i = 1, #ARGV, 4 do
  local p, user, offset = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 3])
  local epoch, last, delivered, reason = head_of(p, user)
  offset = math.min(offset, last)
  if epoch == ARGV[i + 2] and offset > delivered then
    set_head(p, user, last, offset, reason)
  end
end
return 1
"""
)

# ARGV: an epoch, the server's replication id, whether it keeps all that it has answered,
# and the prefixes of tags. Those without an epoch get this one, and those whose server is
# not the one of before, unless nothing can be lost. Returns the epoch of each.
BEGIN: Final = Script(
    """
local out = {}
for i = 4, #ARGV do
  local key = ARGV[i] .. 'h'
  local got = redis.call('HMGET', key, '', '\\1line')
  local epoch, line = got[1], got[2]
  if not epoch or (line and line ~= ARGV[2] and ARGV[3] ~= '1') then
    epoch = ARGV[1]
    redis.call('HSET', key, '', epoch)
  end
  if line ~= ARGV[2] then redis.call('HSET', key, '\\1line', ARGV[2]) end
  out[#out + 1] = epoch
end
return out
"""
)

# ARGV: for each user prefix and user. Returns for each epoch, last offset, newest element.
NEWEST: Final = Script(
    _HEADS
    + """
local out = {}
for i = 1, #ARGV, 2 do
  local epoch, last = head_of(ARGV[i], ARGV[i + 1])
  out[#out + 1] = epoch or ''
  out[#out + 1] = last
  out[#out + 1] = call('LINDEX', ARGV[i] .. 'm:' .. ARGV[i + 1], -1) or ''
end
return out
"""
)


ALL: Final = (APPEND, CLAIM, READ, COUNT_EXPIRED, MARK, BEGIN, NEWEST)
