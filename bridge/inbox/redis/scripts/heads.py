"""Lua functions that scripts share: the head of a user, and the deletion of old messages."""

from typing import Final

from bridge.enums import SyncReason

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
HEADS: Final = """
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

TRIM: Final = """
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
-- Returns the reason, the newest offset that was deleted from the sorted set, and how many
-- messages were over the limit.
local function trim_sparse(p, user, most, oldest, reason, gone)
  local set = p .. 's:' .. user
  local excess = call('ZCARD', set) - most
  local length = call('LLEN', p .. 'm:' .. user)
  local room = math.max(0, -excess)
  local over = math.max(0, excess) + math.max(0, length - room)
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
    if not call('ZSCORE', p .. 'v:' .. user, places[1]) then
      call('HDEL', p .. 'k:' .. user, places[1])
    end
    gone, reason, excess = offsets[1], is_old and 2 or 1, excess - 1
    elements, offsets, places = sparse_above(p, user, 0, 0, 1)
  end
  if not places[1] and call('LLEN', p .. 'm:' .. user) == 0 then reason = 4 end
  return reason, gone, over
end
"""

# Whether a message is past its deadline; see `ClockReading.has_passed`. Needs ARGV as in READ
# (reading.py).
IS_OVER: Final = """
local now, steady, lowest = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local function is_over(taken, deadline)
  if deadline > now then return false end
  local ttl = deadline - taken
  return (ttl >= 0 and ttl <= steady) or deadline <= lowest
end
"""
