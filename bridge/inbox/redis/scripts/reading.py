"""Scripts that read the inbox of one user."""

from typing import Final

from bridge.inbox.redis.scripts.heads import HEADS, IS_OVER
from bridge.inbox.redis.scripts.script import Script

# The messages kept under the current retention: `first` is the oldest offset, `base` the
# offset before the first element of the list, `upto` that of its last one, `kept` the number
# of messages if the inbox is sparse, otherwise -1.
VIEW: Final = (
    HEADS
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
local function count_retained(p, user, kept)
  return kept < 0 and 0 or call('ZCARD', p .. 'v:' .. user)
end
"""
)

# ARGV: prefix, user, message limit, oldest time, now, steady, lowest, offset to read after,
# maximum of messages and of bytes. Returns epoch, first, last, delivered, reason, forgotten,
# the newest offset in the list, the number of messages (-1 if it is not sparse), the number of
# retained keys, the offset after which the next page begins, the number of messages past their
# deadline, then for each message its offset and element.
READ: Final = Script(
    VIEW
    + IS_OVER
    + """
local p, user = ARGV[1], ARGV[2]
local after, most, bytes = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local epoch, first, last, delivered, reason, base, forgotten, upto, kept =
  view(p, user, tonumber(ARGV[3]), tonumber(ARGV[4]))
local retained = count_retained(p, user, kept)
local out = {epoch, first, last, delivered, reason, forgotten, upto, kept, retained, 0, 0}
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
out[10], out[11] = at, expired
return out
"""
)

# ARGV: prefix, user, message limit, oldest time, now, steady, lowest, offset to count after.
# Returns the number of messages past their deadline.
COUNT_EXPIRED: Final = Script(
    VIEW
    + IS_OVER
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

# ARGV: as in READ, then the offsets to read after and up to, and the maximum of bytes. Returns
# the offset and element of the newest message of each retained key.
RETAINED: Final = Script(
    IS_OVER
    + """
local p, user, bytes = ARGV[1], ARGV[2], tonumber(ARGV[10])
local got = redis.call('ZRANGEBYSCORE', p .. 'v:' .. user, '(' .. ARGV[8], ARGV[9], 'WITHSCORES')
local out, size = {}, 0
for k = 1, #got, 2 do
  local element = redis.call('HGET', p .. 'k:' .. user, got[k])
  local taken, deadline, between = struct.unpack('<ddH', element)
  if not is_over(taken, deadline) then
    size = size + #element - 20 - between
    if #out > 0 and size > bytes then break end
    out[#out + 1] = tonumber(got[k + 1])
    out[#out + 1] = element
  end
end
return out
"""
)

# ARGV: for each user prefix and user. Returns for each user epoch, last offset and newest
# element.
NEWEST: Final = Script(
    HEADS
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
