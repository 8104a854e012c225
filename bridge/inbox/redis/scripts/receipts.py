"""
Receipts and the event outbox: what each change of an inbox means for tracked messages.

The rules are those of `decide` in core/receipts.py. redis/receipts.py packs and unpacks the
elements of the sorted sets; a receipt begins with: taken, deadline, late (inf = never), flags
(1 = a receipt is wanted, 2 = the message has an id), bytes of the id and of the tracking id.
"""

from typing import Final

from bridge.inbox.redis.scripts.reading import VIEW
from bridge.inbox.redis.scripts.script import Script

# Needs VIEW. Rules are seven arguments: now, steady, lowest, message limit, oldest time of
# messages and of ids, and how long outcomes are kept for duplicates (ms).
SETTLE: Final = """
local DELIVERED, EXPIRED, TRIMMED, REPLACED, UNDELIVERED = 0, 1, 2, 3, 5
-- Time decides what was due `behind` seconds before `at`.
local function rules_from(i, at, behind)
  local now = at - behind
  return {
    at = at, now = now, steady = tonumber(ARGV[i + 1]),
    lowest = ARGV[i + 2] - ARGV[i] + now, most = tonumber(ARGV[i + 3]),
    oldest = tonumber(ARGV[i + 4]), oldest_id = ARGV[i + 5], kept_ms = ARGV[i + 6],
  }
end
local function has_passed(rules, taken, time)
  if time > rules.now then return false end
  local ttl = time - taken
  return (ttl >= 0 and ttl <= rules.steady) or time <= rules.lowest
end
local function put_event(p, element)
  local number = tonumber(call('HMGET', p .. 'h', '\\1events')[1] or 0) + 1
  call('ZADD', p .. 'e', number, element)
  call('HSET', p .. 'h', '\\1events', number)
  return number
end
local function tell(p, user, receipt, outcome, rules, data)
  local taken, _, _, flags = struct.unpack('<dddB', receipt)
  local is_old = taken < rules.oldest and 1 or 0
  local element = 'D' .. struct.pack('<dBBHH', rules.at, outcome, is_old, #user, #receipt)
    .. user .. receipt .. data
  put_event(p, element)
  if outcome ~= UNDELIVERED and flags >= 2 then
    local key = p .. 'o:' .. user
    call('ZADD', key, rules.at, element)
    call('ZREMRANGEBYSCORE', key, '-inf', '(' .. rules.oldest_id)
    call('PEXPIRE', key, rules.kept_ms)
  end
end
local function element_at(p, user, offset, base, upto)
  if offset <= base then return '' end
  if offset <= upto then
    return call('LINDEX', p .. 'm:' .. user, offset - base - 1) or ''
  end
  local place = call('ZRANGEBYSCORE', p .. 's:' .. user, offset, offset)[1]
  return place and call('HGET', p .. 'k:' .. user, place) or ''
end
-- Decides about the receipts of a user from one offset to another; without a second one about
-- all that a mark, a deletion or a replacement may have decided.
local function settle(p, user, rules, low, high)
  local key, due = p .. 'w:' .. user, p .. 'd'
  if call('ZCARD', key) == 0 then return end
  local _, first, _, delivered, _, base, _, upto, kept = view(p, user, rules.most, rules.oldest)
  if not high then high = kept < 0 and math.max(delivered, first - 1) or '+inf' end
  local got = call('ZRANGEBYSCORE', key, low, high, 'WITHSCORES')
  for k = 1, #got, 2 do
    local receipt, offset = got[k], tonumber(got[k + 1])
    local taken, deadline, late, flags = struct.unpack('<dddB', receipt)
    local final = nil
    if offset < first or taken < rules.oldest then
      final = TRIMMED
    elseif kept >= 0 and offset > upto
      and not call('ZRANGEBYSCORE', p .. 's:' .. user, offset, offset)[1] then
      final = REPLACED
    elseif has_passed(rules, taken, deadline) then
      final = EXPIRED
    elseif offset <= delivered then
      final = DELIVERED
    end
    local is_late = late < math.huge and (final == TRIMMED or final == EXPIRED
      or (final ~= REPLACED and has_passed(rules, taken, late)))
    if is_late then
      local data = element_at(p, user, offset, base, upto)
      tell(p, user, receipt, UNDELIVERED, rules, data)
    end
    local is_wanted = flags % 2 == 1
    if final and is_wanted then tell(p, user, receipt, final, rules, '') end
    if final or is_late then
      call('ZREM', key, receipt)
      if is_wanted and not final then
        local rest = struct.pack('<d', math.huge) .. string.sub(receipt, 25)
        call('ZADD', key, offset, string.sub(receipt, 1, 16) .. rest)
      end
      if call('ZRANGEBYSCORE', key, offset, offset)[1] then
        call('ZADD', due, deadline, offset .. ' ' .. user)
      else
        call('ZREM', due, offset .. ' ' .. user)
      end
    end
  end
end
"""

# Needs SETTLE.
ADD: Final = """
local function parts_of(receipt)
  local _, _, _, flags, id_length, tracking_length = struct.unpack('<dddBHH', receipt)
  local id_end = 29 + id_length
  return flags, string.sub(receipt, 30, id_end), id_end + tracking_length
end
local function add_receipt(p, user, offset, receipt)
  local _, deadline, late = struct.unpack('<ddd', receipt)
  call('ZADD', p .. 'w:' .. user, offset, receipt)
  call('ZADD', p .. 'd', math.min(deadline, late), offset .. ' ' .. user)
end
local function add_duplicate(p, user, receipt)
  local key = p .. 'w:' .. user
  local flags, id, head_end = parts_of(receipt)
  local address = string.sub(receipt, head_end + 1)
  if flags % 2 == 0 then return end
  local original, offset
  local got = call('ZRANGEBYSCORE', key, '-inf', '+inf', 'WITHSCORES')
  for k = 1, #got, 2 do
    local other_flags, other_id, other_end = parts_of(got[k])
    if other_flags >= 2 and other_id == id then
      if other_flags % 2 == 1 and string.sub(got[k], other_end + 1) == address then return end
      original, offset = got[k], got[k + 1]
    end
  end
  if original then
    local _, _, original_end = parts_of(original)
    call('ZADD', key, offset, string.sub(original, 1, 16) .. struct.pack('<dB', math.huge, 3)
      .. string.sub(original, 26, original_end) .. address)
    return
  end
  got = call('ZRANGEBYSCORE', p .. 'o:' .. user, '-inf', '+inf')
  for k = #got, 1, -1 do
    local at, outcome, is_old, user_length = struct.unpack('<dBBH', got[k], 2)
    local told = string.sub(got[k], 16 + user_length)
    local _, told_id, told_end = parts_of(told)
    if told_id == id then
      told = string.sub(told, 1, told_end) .. address
      put_event(p, 'D' .. struct.pack('<dBBHH', at, outcome, is_old, #user, #told)
        .. user .. told)
      return
    end
  end
end
"""

# ARGV: prefix, element. Adds an event to the outbox.
PUT_EVENT: Final = Script(VIEW + SETTLE + "put_event(ARGV[1], ARGV[2])\nreturn 1")

# ARGV: rules, session, how long the session may keep the events (ms), maximum of events of a tag
# and of bytes, key of the reports, the report (bridge_reports.py): how long something is not
# written, the server's time at least (may be empty), after how long another session counts as
# gone; then the prefix of each tag. Decides what was due before all reports. Returns the server's
# time, then for each tag the number of messages whose outcome is open, and of events; then
# element and number of the oldest events, at least one, unless another session has them.
POLL: Final = Script(
    VIEW
    + SETTLE
    + """
local PAGE, PAGES_MAX = 100, 20
local session, reports = ARGV[8], ARGV[12]
-- Returns the server's time, and for how long a bridge has not written what it knows.
local function report()
  local unwritten, gone, time = tonumber(ARGV[13]), tonumber(ARGV[15]), call('TIME')
  local now = time[1] + time[2] / 1000000
  call('ZADD', reports, (tonumber(ARGV[14]) or now) - unwritten, session)
  call('ZREMRANGEBYSCORE', reports, '-inf', now - gone)
  local got = call('ZRANGEBYSCORE', reports, '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, 2)
  local other = got[1] == session and 4 or 2
  if unwritten >= gone then unwritten = 0 end
  return now, math.max(unwritten, got[other] and now - got[other] or 0)
end
local server, behind = report()
local at = tonumber(ARGV[1])
local rules = rules_from(1, at, behind)
local max_bytes, size = tonumber(ARGV[11]), 0
local out = {string.format('%.6f', server)}
for i = 16, #ARGV do
  local p = ARGV[i]
  local due, pages = p .. 'd', 0
  -- After a jump of the clock, those that are not really due may be more than one poll looks at.
  local skipped = call('HMGET', p .. 'h', '\\1skipped')[1]
  local skip = tonumber(skipped or 0)
  repeat
    local found = call('ZRANGEBYSCORE', due, '-inf', rules.now, 'LIMIT', skip, PAGE)
    for _, member in ipairs(found) do
      local offset, user = string.match(member, '^(%d+) (.*)$')
      settle(p, user, rules, offset, offset)
      -- One without receipts is left over.
      if not call('ZRANGEBYSCORE', p .. 'w:' .. user, offset, offset)[1] then
        call('ZREM', due, member)
      elseif tonumber(call('ZSCORE', due, member)) <= rules.now then
        skip = skip + 1
      end
    end
    pages = pages + 1
  until #found < PAGE or pages == PAGES_MAX
  if pages == PAGES_MAX then
    call('HSET', p .. 'h', '\\1skipped', skip)
  elseif skipped then
    call('HDEL', p .. 'h', '\\1skipped')
  end
  local count, events = call('ZCARD', p .. 'e'), {}
  if count > 0 and size < max_bytes then
    local holder = call('GET', p .. 'x')
    if not holder or holder == session or not call('ZSCORE', reports, holder) then
      call('SET', p .. 'x', session, 'PX', ARGV[9])
      local found =
        call('ZRANGEBYSCORE', p .. 'e', '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[10])
      for k = 1, #found, 2 do
        size = size + #found[k]
        if k > 1 and size > max_bytes then break end
        events[k], events[k + 1] = found[k], found[k + 1]
      end
    end
  end
  out[#out + 1] = {call('ZCARD', due), count, events}
end
return out
"""
)
