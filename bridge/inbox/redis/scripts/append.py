"""The script that stores a batch."""

from typing import Final

from bridge.inbox.redis.scripts.heads import TRIM
from bridge.inbox.redis.scripts.reading import VIEW
from bridge.inbox.redis.scripts.receipts import ADD, SETTLE
from bridge.inbox.redis.scripts.script import Script

# How long the result of a batch is kept: longer than any bridge retries it.
_BATCH_MS: Final = 3_600_000

# ARGV: now, message limit, oldest time of messages and of ids, epoch to use if there is none,
# session, number of the batch, publish command, limit of retained keys, prefix of the fences,
# number of fences, for each its queue and token, rules (receipts.py), number of receipts, for
# each the number of its message in the call and the receipt; then for each user: prefix, user,
# number of messages, and for each message its id and element. If the number is negative, a
# message of the user has a key, and each has three arguments: id, key (may be empty), element.
# Returns words separated by spaces: how many messages were deleted because their inbox was
# full, then the offsets (0 = duplicate, -1 = one retained key too many, x = not stored); and
# the error that kept messages from being stored. If a queue has a larger token: nothing,
# FENCED, the queue and that token.
APPEND: Final = Script(
    VIEW
    + TRIM
    + SETTLE
    + ADD
    + f"local BATCH_MS = {_BATCH_MS}"
    + """
local RETAIN, CLEAR = 2, 3
local most, oldest, oldest_id = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local candidate, publish = ARGV[5], ARGV[8]
local max_retained = tonumber(ARGV[9])
local fences_end = 11 + 2 * tonumber(ARGV[11])
local asked_end = fences_end + 7 + 2 * tonumber(ARGV[fences_end + 7])
local has_receipts = asked_end > fences_end + 7
local batch_key = ARGV[asked_end + 1] .. 'b:' .. ARGV[6]
-- Time decides nothing here, because other bridges may have marks that are not written.
local rules, asked = rules_from(fences_end + 1, tonumber(ARGV[1]), math.huge), {}
for k = fences_end + 8, asked_end, 2 do asked[tonumber(ARGV[k])] = ARGV[k + 1] end
local out, had, failure, stored, trimmed = {}, nil, nil, false, 0

local before = call('GET', batch_key)
if before then
  local number, count, rest = string.match(before, '^(%d+) (%d+) (.*)$')
  if number == ARGV[7] then
    if not string.find(rest, 'x', 1, true) then
      call('SET', batch_key, before, 'PX', BATCH_MS)
      return {count .. ' ' .. rest}
    end
    had, trimmed = {}, tonumber(count)
    for word in string.gmatch(rest, '%S+') do had[#had + 1] = word end
  end
end

-- The result of a stored batch is repeated above, even if another bridge has the queue by
-- now, because that stores nothing. Everything below needs a token that is large enough.
for k = 12, fences_end, 2 do
  local key, field = ARGV[10] .. 'h', '\\1fence ' .. ARGV[k]
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

-- Returns how many messages the sorted set had before, and how many it has now. Adds the offsets
-- to `replaced` of those that newer ones replace.
local function store_sparse(p, user, first, fresh, keys, modes, count_retained, replaced)
  local set, elements, retained = p .. 's:' .. user, p .. 'k:' .. user, p .. 'v:' .. user
  local before = call('ZCARD', set)
  local now = before
  for k = 1, #fresh do
    local offset = first + k - 1
    local place = keys[k] ~= '' and keys[k] or '\\1' .. offset
    local old = replaced and keys[k] ~= '' and call('ZSCORE', set, place)
    if old then table.insert(replaced, old) end
    now = now + call('ZADD', set, offset, place)
    call('HSET', elements, place, fresh[k])
    if modes[k] == RETAIN then
      call('ZADD', retained, offset, place)
    elseif modes[k] == CLEAR then
      call('ZREM', retained, place)
    elseif count_retained > 0 and keys[k] ~= '' then
      call('ZADD', retained, 'XX', offset, place)
    end
  end
  return before, now
end

-- An undelivered message is published with its data, so its outcome is decided first.
local function settle_before_trim(p, user, ...)
  if call('ZCARD', p .. 'w:' .. user) > 0 then
    set_head(p, user, ...)
    settle(p, user, rules, '-inf')
  end
end

local function note_receipts(p, user, before, results, replaced, may_decide)
  local duplicates = {}
  for k = 1, #results do
    local receipt, offset = asked[before + k], tonumber(results[k])
    if receipt and offset > 0 then
      add_receipt(p, user, offset, receipt)
    elseif receipt and offset == 0 then
      table.insert(duplicates, receipt)
    end
  end
  if duplicates[1] then
    local known = receipts_by_id(p, user)
    for _, receipt in ipairs(duplicates) do add_duplicate(p, user, receipt, known) end
  end
  if may_decide then settle(p, user, rules, '-inf') end
  for _, offset in ipairs(replaced or {}) do
    if call('ZRANGEBYSCORE', p .. 'w:' .. user, offset, offset)[1] then
      settle(p, user, rules, offset, offset)
    end
  end
end

-- All reads come first, then RPUSH or ZADD, the only writes that may fail (out of memory). So
-- all messages of a user are stored, or none.
local function store(i, p, user, count, has_keys)
  local epoch, last, delivered, reason, forgotten, upto, gone = head_of(p, user)
  local has_fresh_key = upto
  if has_keys and not upto then upto, gone = last, 0 end
  local had_messages = last > forgotten
  local keys, modes, is_retained = {}, {}, {}
  local list, ids, retained = p .. 'm:' .. user, p .. 'i:' .. user, p .. 'v:' .. user
  local count_retained = has_keys and call('ZCARD', retained) or 0
  local first, fresh, results, noted, seen_here = last + 1, {}, {}, {}, {}
  for k = 1, count do
    local id, element, key, mode = ARGV[i], ARGV[i + 1], '', nil
    i = i + 2
    if has_keys then
      key, element = element, ARGV[i]
      i = i + 1
      mode = key:byte()
      if mode == RETAIN or mode == CLEAR then key = key:sub(2) end
    end
    local had_it = false
    if id ~= '' then
      local seen = not seen_here[id] and call('ZSCORE', ids, id)
      had_it = seen_here[id] or (seen and tonumber(seen) >= oldest_id)
    end
    local is_refused = false
    if not had_it and (mode == RETAIN or mode == CLEAR) then
      local was = is_retained[key]
      if was == nil then was = call('ZSCORE', retained, key) and true or false end
      is_refused = mode == RETAIN and not was and count_retained >= max_retained
      if not is_refused then
        is_retained[key] = mode == RETAIN
        count_retained = count_retained + (mode == RETAIN and 1 or 0) - (was and 1 or 0)
      end
    end
    if had_it or is_refused then
      results[k] = had_it and 0 or -1
    else
      if id ~= '' then
        seen_here[id] = true
        noted[#noted + 1] = ARGV[1]
        noted[#noted + 1] = id
      end
      last = last + 1
      fresh[#fresh + 1] = element
      results[k] = last
      if upto then
        keys[#fresh], modes[#fresh] = key, mode
        has_fresh_key = has_fresh_key or key ~= ''
      end
    end
  end
  if not has_fresh_key then upto = nil end
  local replaced = nil
  if upto and (has_receipts or call('ZCARD', p .. 'w:' .. user) > 0) then replaced = {} end
  if #fresh > 0 then
    local length
    if upto then
      local before, now =
        store_sparse(p, user, first, fresh, keys, modes, count_retained, replaced)
      length = now
      if before == 0 or now > most / 2 then length = now + call('LLEN', list) end
      if before == 0 then
        call('ZADD', p .. 'u', 0, user)
        if length == now and had_messages then reason = reason == 4 and 2 or 3 end
      end
      -- What is too old is left to the next sweep: readers skip it.
      if length > most then
        settle_before_trim(p, user, last, delivered, reason, forgotten, upto, gone)
        local over
        reason, gone, over = trim_sparse(p, user, most, oldest, reason, gone)
        trimmed = trimmed + over
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
      if length > most then
        settle_before_trim(p, user, last, delivered, reason, forgotten)
      end
      reason = trim(p, user, length, most, oldest, reason)
      trimmed = trimmed + math.max(0, length - most)
    end
    set_head(p, user, last, delivered, reason, forgotten, upto, gone)
    for k = 1, #noted, 1000 do
      call('ZADD', ids, unpack(noted, k, math.min(k + 999, #noted)))
    end
    if #noted > 0 then call('ZREMRANGEBYSCORE', ids, '-inf', '(' .. ARGV[4]) end
    publish_news(p, user, epoch, first, fresh)
  end
  return results, replaced
end

local i = asked_end + 1
while i <= #ARGV do
  local p, user, count = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  i = i + 3
  local has_keys = count < 0
  count = math.abs(count)
  local ok, results, replaced
  local trimmed_before = trimmed
  if had and had[#out + 1] ~= 'x' then
    results = {}
    for k = 1, count do results[k] = had[#out + k] end
  else
    ok, results, replaced = pcall(store, i, p, user, count, has_keys)
    if not ok then
      failure = results
      results = {}
      for k = 1, count do results[k] = 'x' end
    elseif has_keys or has_receipts then
      -- Other messages that were deleted are too old: a sweep decides about them.
      local may_decide = trimmed > trimmed_before
      -- Only a bug makes it fail. The messages stay stored, and a retry does not note receipts.
      local noted, problem =
        pcall(note_receipts, p, user, #out, results, replaced, may_decide)
      if not noted then failure = problem end
    end
    stored = stored or ok
  end
  for k = 1, count do out[#out + 1] = results[k] end
  i = i + (has_keys and 3 or 2) * count
end

if failure then
  if type(failure) == 'table' then failure = failure.err end
  if not (stored or had) then return {'', failure} end
end
local words = trimmed .. ' ' .. table.concat(out, ' ')
call('SET', batch_key, ARGV[7] .. ' ' .. words, 'PX', BATCH_MS)
return {words, failure}
"""
)
