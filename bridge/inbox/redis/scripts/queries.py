"""Scripts that read inboxes for operators (admin_queries.py)."""

from typing import Final

from bridge.inbox.redis.scripts.reading import VIEW
from bridge.inbox.redis.scripts.script import Script

# ARGV: prefix, user, message limit, oldest time, now, steady, lowest, offset to read before
# (0 = from the end), maximum of messages and of bytes of data (0 = no data). Returns for each
# message, newest first: offset, element, bytes of data.
BROWSE: Final = Script(
    VIEW
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

# ARGV: prefix, unused, message limit, oldest time, now, steady, lowest, id, number of messages
# after which to stop, users. Returns the numbers of messages and of users searched (at least
# one), then for each of these users who has or had the id: name, when it was stored last,
# number of elements, and for each element its offset, header and bytes of data.
FIND: Final = Script(
    VIEW
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
# Returns for each user what READ returns first, up to the number of retained keys.
STATES: Final = Script(
    VIEW
    + """
local out = {}
for i = 3, #ARGV, 2 do
  local epoch, first, last, delivered, reason, _, forgotten, upto, kept =
    view(ARGV[i], ARGV[i + 1], tonumber(ARGV[1]), tonumber(ARGV[2]))
  local retained = count_retained(ARGV[i], ARGV[i + 1], kept)
  out[#out + 1] = {epoch, first, last, delivered, reason, forgotten, upto, kept, retained}
end
return out
"""
)

# ARGV: prefix, user, message id, number of the event after which to search. Examines about a
# megabyte, or 1000 events. Returns the number of the last one (empty at the end), then the elements
# that are about messages with the id, without data.
WAITING: Final = Script(
    """
local PAGE, ENOUGH, LEAST = 16, 1000000, 1000
local p, user, id, after = unpack(ARGV)
local out, size, found = {''}, 0, nil
repeat
  found =
    redis.call('ZRANGEBYSCORE', p .. 'e', '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, PAGE)
  for k = 1, #found, 2 do
    local element, head_end = found[k], nil
    local kind = string.sub(element, 1, 1)
    if kind == 'D' then
      local _, _, _, user_length, length = struct.unpack('<dBBHH', element, 2)
      local receipt = 16 + user_length
      local _, _, _, _, id_length = struct.unpack('<dddBH', element, receipt)
      if string.sub(element, 16, receipt - 1) == user
        and string.sub(element, receipt + 29, receipt + 28 + id_length) == id then
        head_end = receipt + length - 1
      end
    elseif kind == 'E' then
      local line_end = string.find(element, '\\n', 1, true)
      local head = cjson.decode(string.sub(element, 2, line_end))
      if head[3] == user and head[7] == id then head_end = line_end end
    end
    if head_end then out[#out + 1] = string.sub(element, 1, head_end) end
    size, after = size + math.max(LEAST, #element), found[k + 1]
  end
until #found < 2 * PAGE or size >= ENOUGH
if #found == 2 * PAGE then out[1] = after end
return out
"""
)
