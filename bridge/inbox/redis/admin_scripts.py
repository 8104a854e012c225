"""What operators ask Redis for, in one step each: reads alone (see redis_scripts)."""

from typing import Final

from bridge.inbox.redis.scripts import VIEW, Script

# ARGV: prefix, user, most messages, oldest time, now, before (0 = from the end), messages,
# bytes of data (0 = none). Returns for each, newest first: offset, element, bytes of data.
LOOK: Final = Script(
    VIEW
    + """
local p, user = ARGV[1], ARGV[2]
local before, most, bytes = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local epoch, first, last, delivered, reason, base =
  view(p, user, tonumber(ARGV[3]), tonumber(ARGV[4]))
local at, out, found, size = last, {}, 0, 0
if before > 0 then at = math.min(last, before - 1) end
while at >= first and found < most do
  local low = math.max(first, at - math.min(63, most - 1))
  local piece = call('LRANGE', p .. 'm:' .. user, low - base - 1, at - base - 1)
  for k = #piece, 1, -1 do
    local element = piece[k]
    local _, _, between = struct.unpack('<ddH', element)
    size = size + #element - 20 - between
    if found >= most or (found > 0 and bytes > 0 and size > bytes) then return out end
    found = found + 1
    out[#out + 1] = at
    out[#out + 1] = bytes > 0 and element or string.sub(element, 1, 20 + between)
    out[#out + 1] = #element - 20 - between
    at = at - 1
  end
end
return out
"""
)

# ARGV: prefix, nothing, most messages, oldest time, now, id, after how many messages to
# stop, users. Returns how many messages and how many users, one at least, were looked at;
# then for each of these who has or had the id: name, when it was stored last, how many
# elements, and for each offset, its head, bytes of data.
FIND: Final = Script(
    VIEW
    + """
local p, id, enough, looked, out = ARGV[1], ARGV[6], tonumber(ARGV[7]), 0, {0, 0}
for i = 8, #ARGV do
  local user = ARGV[i]
  local epoch, first, last, delivered, reason, base =
    view(p, user, tonumber(ARGV[3]), tonumber(ARGV[4]))
  local found = {}
  for at = first, last, 64 do
    local piece = call('LRANGE', p .. 'm:' .. user, at - base - 1,
      math.min(at + 63, last) - base - 1)
    for k = 1, #piece do
      local element = piece[k]
      local _, _, between, length = struct.unpack('<ddHH', element)
      if length == #id and string.sub(element, 23, 22 + length) == id then
        found[#found + 1] = at + k - 1
        found[#found + 1] = string.sub(element, 1, 20 + between)
        found[#found + 1] = #element - 20 - between
      end
    end
  end
  looked = looked + math.max(0, last - first + 1)
  local seen = call('ZSCORE', p .. 'i:' .. user, id)
  if seen or #found > 0 then
    out[#out + 1] = user
    out[#out + 1] = seen or ''
    out[#out + 1] = #found / 3
    for k = 1, #found do out[#out + 1] = found[k] end
  end
  out[1], out[2] = looked, i - 7
  if looked >= enough then break end
end
return out
"""
)

# ARGV: nothing but prefixes and users, as NEWEST has them, behind most and oldest.
# Returns for each user what READ returns first: epoch, first, last, delivered, reason.
STATES: Final = Script(
    VIEW
    + """
local out = {}
for i = 3, #ARGV, 2 do
  local epoch, first, last, delivered, reason =
    view(ARGV[i], ARGV[i + 1], tonumber(ARGV[1]), tonumber(ARGV[2]))
  out[#out + 1] = {epoch, first, last, delivered, reason}
end
return out
"""
)

ALL: Final = (LOOK, FIND, STATES)
