"""
Receipts and the event outbox: what each change of an inbox means for tracked messages.

The rules are those of `decide` in core/receipts.py. redis/receipts.py packs and unpacks the
elements of the sorted sets; a receipt begins with: taken, deadline, late (inf = never), flags
(1 = a receipt is wanted, 2 = the message has an id), bytes of the id and of the origin.
"""

from typing import Final

from bridge.core.receipts import ADDRESSES_MAX
from bridge.inbox.redis.scripts.reading import VIEW
from bridge.inbox.redis.scripts.script import Script

# Needs VIEW. Rules are six arguments: now, steady, lowest, message limit, oldest time of
# messages, and how long outcomes are kept for duplicates (ms).
SETTLE: Final = """
-- Events that this call has added, and their bytes. Calls end early, because the server does
-- nothing else meanwhile.
local added, added_bytes = 0, 0
local function has_added_enough() return added >= 1000 or added_bytes >= 1048576 end
local DELIVERED, EXPIRED, TRIMMED, REPLACED, UNDELIVERED = 0, 1, 2, 3, 5
-- Time decides what was due `behind` seconds before `at`.
local function rules_from(i, at, behind)
  local now = at - behind
  return {
    at = at, now = now, steady = tonumber(ARGV[i + 1]),
    lowest = ARGV[i + 2] - ARGV[i] + now, most = tonumber(ARGV[i + 3]),
    oldest = tonumber(ARGV[i + 4]), kept_ms = tonumber(ARGV[i + 5]),
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
  added, added_bytes = added + 1, added_bytes + #element
  return number
end
-- A hash ends as a whole. So there are three, each for the outcomes of one span of time.
local function outcomes_key(p, user, span) return p .. 'o' .. span .. ':' .. user end
local function put_outcome(p, user, receipt, outcome, rules, data)
  local taken, _, _, flags, id_length = struct.unpack('<dddBH', receipt)
  local is_old = taken < rules.oldest and 1 or 0
  local element = 'D' .. struct.pack('<dBBHH', rules.at, outcome, is_old, #user, #receipt)
    .. user .. receipt .. data
  put_event(p, element)
  if outcome ~= UNDELIVERED and flags >= 2 then
    local key = outcomes_key(p, user, math.floor(rules.at * 1000 / rules.kept_ms) % 3)
    call('HSET', key, string.sub(receipt, 30, 29 + id_length), element)
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
-- Times that are equal are in the order of the offsets, so those have the same length.
local function due_member(user, offset) return string.format('%016.0f ', offset) .. user end
-- Decides about the receipts of a user from one offset to another; without a second one about
-- all that a mark or a deletion may have decided. Returns whether it has done so: with `may_end`,
-- it ends when the call has added enough.
local function settle(p, user, rules, low, high, may_end)
  local key, due = p .. 'w:' .. user, p .. 'd'
  if call('ZCARD', key) == 0 then return true end
  local _, first, _, delivered, _, base, _, upto, kept = view(p, user, rules.most, rules.oldest)
  if not high then high = math.max(delivered, first - 1) end
  local got = call('ZRANGEBYSCORE', key, low, high, 'WITHSCORES')
  for k = 1, #got, 2 do
    if may_end and has_added_enough() then return false end
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
      put_outcome(p, user, receipt, UNDELIVERED, rules, data)
    end
    local is_wanted = flags % 2 == 1
    if final and is_wanted then put_outcome(p, user, receipt, final, rules, '') end
    if final or is_late then
      call('ZREM', key, receipt)
      if is_wanted and not final then
        local rest = struct.pack('<d', math.huge) .. string.sub(receipt, 25)
        call('ZADD', key, offset, string.sub(receipt, 1, 16) .. rest)
      end
      if call('ZRANGEBYSCORE', key, offset, offset)[1] then
        call('ZADD', due, deadline, due_member(user, offset))
      else
        call('ZREM', due, due_member(user, offset))
      end
    end
  end
  return true
end
"""

# Needs SETTLE.
ADD: Final = (
    f"local ADDRESSES_MAX = {ADDRESSES_MAX}"
    + """
local function parts_of(receipt)
  local _, _, _, flags, id_length, origin_length = struct.unpack('<dddBHH', receipt)
  local id_end = 29 + id_length
  return flags, string.sub(receipt, 30, id_end), id_end + origin_length
end
local function add_receipt(p, user, offset, receipt)
  local _, deadline, late = struct.unpack('<ddd', receipt)
  call('ZADD', p .. 'w:' .. user, offset, receipt)
  call('ZADD', p .. 'd', math.min(deadline, late), due_member(user, offset))
end
-- Returns the receipts of a user, and their offsets, by the ids of the messages.
local function receipts_by_id(p, user)
  local found = {}
  local got = call('ZRANGEBYSCORE', p .. 'w:' .. user, '-inf', '+inf', 'WITHSCORES')
  for k = 1, #got, 2 do
    local flags, id = parts_of(got[k])
    if flags >= 2 then
      found[id] = found[id] or {offset = got[k + 1]}
      table.insert(found[id], got[k])
    end
  end
  return found
end
local function last_outcome(p, user, id)
  local last, last_at
  for span = 0, 2 do
    local element = call('HGET', outcomes_key(p, user, span), id)
    local at = element and struct.unpack('<d', element, 2)
    if at and not (last_at and last_at > at) then last, last_at = element, at end
  end
  return last
end
local function add_duplicate(p, user, receipt, known)
  local flags, id, head_end = parts_of(receipt)
  local address = string.sub(receipt, head_end + 1)
  if flags % 2 == 0 then return end
  local open = known[id]
  if open then
    for _, other in ipairs(open) do
      local other_flags, _, other_end = parts_of(other)
      if other_flags % 2 == 1 and string.sub(other, other_end + 1) == address then return end
    end
    if #open >= ADDRESSES_MAX then return end
    local _, _, original_end = parts_of(open[1])
    local more = string.sub(open[1], 1, 16) .. struct.pack('<dB', math.huge, 3)
      .. string.sub(open[1], 26, original_end) .. address
    call('ZADD', p .. 'w:' .. user, open.offset, more)
    table.insert(open, more)
    return
  end
  local element = last_outcome(p, user, id)
  if element then
    local at, outcome, is_old, user_length = struct.unpack('<dBBH', element, 2)
    local copy = string.sub(element, 16 + user_length)
    local _, _, copy_end = parts_of(copy)
    copy = string.sub(copy, 1, copy_end) .. address
    put_event(p, 'D' .. struct.pack('<dBBHH', at, outcome, is_old, #user, #copy)
      .. user .. copy)
  end
end
"""
)

# ARGV: prefix, element. Adds an event to the outbox.
PUT_EVENT: Final = Script(VIEW + SETTLE + "put_event(ARGV[1], ARGV[2])\nreturn 1")

# ARGV: rules, session, how long the session may keep the events (ms), maximum of events of a tag
# and of bytes, key of the reports, the report (bridge_reports.py): how long something is not
# written, the server's time at least (may be empty), after how long another session counts as
# gone; then the prefix of each tag. Decides what was due before all reports, unless the server has
# no memory left: publishing events frees some. Returns the server's time, empty in that case, then
# for each tag the number of messages whose outcome is open, and of events; then element and number
# of the oldest events, at least one, unless another session has them.
POLL: Final = Script(
    VIEW
    + SETTLE
    + """
local PAGE, LOOKS_MAX, READ = 100, 1000, 50
local session, reports = ARGV[7], ARGV[11]
-- Returns the server's time, for how long a bridge has not written what it knows, and whether the
-- server has no memory left.
local function report()
  local unwritten, gone, time = tonumber(ARGV[12]), tonumber(ARGV[14]), call('TIME')
  local now = time[1] + time[2] / 1000000
  local score = (tonumber(ARGV[13]) or now) - unwritten
  local noted = redis.pcall('ZADD', reports, score, session)
  local is_full = type(noted) == 'table' and string.find(noted.err, 'OOM', 1, true)
  if type(noted) == 'table' and not is_full then error(noted.err) end
  -- Without memory, the first write of a script must be one that frees some. Others may follow.
  call('ZREMRANGEBYSCORE', reports, '-inf', now - gone)
  if is_full then call('ZADD', reports, score, session) end
  local got = call('ZRANGEBYSCORE', reports, '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, 2)
  local other = got[1] == session and 4 or 2
  if unwritten >= gone then unwritten = 0 end
  return now, math.max(unwritten, got[other] and now - got[other] or 0), is_full
end
local server, behind, is_full = report()
local at = tonumber(ARGV[1])
local rules = rules_from(1, at, behind)
local most, max_bytes, size = tonumber(ARGV[9]), tonumber(ARGV[10]), 0
local looks = is_full and 0 or LOOKS_MAX
-- Returns the oldest events, each followed by its number.
local function read_events(p)
  local events, after, is_full = {}, '-inf', false
  repeat
    local count = math.min(READ, most - #events / 2)
    local found =
      call('ZRANGEBYSCORE', p .. 'e', after, '+inf', 'WITHSCORES', 'LIMIT', 0, count)
    for k = 1, #found, 2 do
      size = size + #found[k]
      is_full = #events > 0 and size > max_bytes
      if is_full then break end
      table.insert(events, found[k])
      table.insert(events, found[k + 1])
      after = '(' .. found[k + 1]
    end
  until is_full or #found < 2 * READ
  return events
end
local out = {is_full and '' or string.format('%.6f', server)}
for i = 15, #ARGV do
  local p = ARGV[i]
  local due, is_done = p .. 'd', false
  -- After a jump of the clock more receipts may seem due than one poll looks at.
  local skipped = call('HMGET', p .. 'h', '\\1skipped')[1]
  local skip = tonumber(skipped or 0)
  while not is_done and looks > 0 and not has_added_enough() do
    local found = call('ZRANGEBYSCORE', due, '-inf', rules.now, 'LIMIT', skip, PAGE)
    is_done = #found < PAGE
    for _, member in ipairs(found) do
      if has_added_enough() then
        is_done = false
        break
      end
      looks = looks - 1
      local offset, user = string.match(member, '^(%d+) (.*)$')
      settle(p, user, rules, offset, offset)
      -- A member without receipts is obsolete.
      if not call('ZRANGEBYSCORE', p .. 'w:' .. user, offset, offset)[1] then
        call('ZREM', due, member)
      elseif tonumber(call('ZSCORE', due, member)) <= rules.now then
        skip = skip + 1
      end
    end
  end
  if is_done and skipped then
    call('HDEL', p .. 'h', '\\1skipped')
  elseif not is_done and skip > 0 then
    call('HSET', p .. 'h', '\\1skipped', skip)
  end
  local count, events = call('ZCARD', p .. 'e'), {}
  if count > 0 and size < max_bytes then
    local holder = call('GET', p .. 'x')
    if not holder or holder == session or not call('ZSCORE', reports, holder) then
      call('SET', p .. 'x', session, 'PX', ARGV[8])
      events = read_events(p)
    end
  end
  out[#out + 1] = {call('ZCARD', due), count, events}
end
return out
"""
)
