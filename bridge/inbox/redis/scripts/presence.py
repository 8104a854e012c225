"""
The script that notes who has windows on a bridge, and decides who is online.

Keys with a time to live measure all times, so only the clock of the server counts. If it jumps,
all of them end at once, and the tag looks like one that was not polled.
"""

from typing import Final

from bridge.inbox.redis.scripts.reading import VIEW
from bridge.inbox.redis.scripts.receipts import SETTLE
from bridge.inbox.redis.scripts.script import Script

_FORGET_PUBLISHED: Final = """
local function forget_published(p)
  local first = call('ZRANGEBYSCORE', p .. 'e', '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  call('ZREMRANGEBYSCORE', p .. 'f', '-inf', first and '(' .. first or '+inf')
end
"""

# ARGV: now (ms), debounce (ms), lease of a session (ms), how long a poll of the tag counts (ms),
# how long data stay that no bridge uses (ms); then for each tag: prefix, session (empty = none),
# number of its last call (0 = none), the last `seq` that the bridge knows, the epoch of its last
# call, number of users, and for each its name and how many windows the session has (-1 = it left
# before the session; if the epoch shows that the server may have lost that, it stays online until
# all bridges have polled the tag). Returns for each tag how many events it has added, its epoch and
# its last `seq`. Instead of the events -1 if the session is not as its last call has left it: its
# lease is over, or the server has lost writes. Then nothing was done, and another session must note
# all of its users.
NOTE_PRESENCE: Final = Script(
    VIEW
    + SETTLE
    + _FORGET_PUBLISHED
    + """
local OFFLINE_MAX = 500
local now, debounce_ms, lease_ms, poll_ms, unused_ms = unpack(ARGV, 1, 5)
local function note(p, session, known, seen, seen_epoch, i, count)
  local holders, leaving, sessions = p .. 'p', p .. 'q', p .. 'l'
  local added, has_left, wait_ms = 0, false, debounce_ms
  local got = call('HMGET', p .. 'h', '\\1presence', '')
  local last, epoch = tonumber(got[1] or 0), got[2] or ''
  local has_lost = epoch == '' or epoch ~= seen_epoch
  local seq = string.format('%.0f', math.max(last + 1, seen + 1, tonumber(now)))
  local function add_event(user, windows)
    local number = put_event(p, 'P' .. windows .. ' ' .. now .. ' ' .. seq .. ' ' .. user)
    call('ZADD', p .. 'f', number, number)
    added = added + 1
  end
  local function leave(user, from)
    local held = call('HGET', holders, user) or ''
    local at = string.find(held, from .. ' ', 1, true)
    if not at then return end
    held = string.sub(held, 1, at - 1) .. string.sub(held, at + #from + 1)
    if held ~= '' then
      call('HSET', holders, user, held)
    else
      call('HDEL', holders, user)
      call('ZADD', leaving, seq, user)
      has_left = true
    end
  end
  if session ~= '' then
    local lease = p .. 'l:' .. session
    if (call('GET', lease) or '0') ~= known then return {-1, epoch, last} end
    call('SET', lease, known + 1, 'PX', lease_ms)
    call('ZADD', sessions, 0, session)
  end
  for k = i, i + 2 * count - 1, 2 do
    local user, windows = ARGV[k], tonumber(ARGV[k + 1])
    local held = call('HGET', holders, user) or ''
    local is_noted = string.find(held, session .. ' ', 1, true)
    if windows > 0 and not is_noted then
      call('HSET', holders, user, held .. session .. ' ')
      call('ZADD', p .. 'p:' .. session, 0, user)
      if held == '' and call('ZREM', leaving, user) == 0 then add_event(user, windows) end
    elseif windows == 0 and is_noted then
      call('ZREM', p .. 'p:' .. session, user)
      leave(user, session)
    elseif windows < 0 and has_lost and held == ''
      and call('ZADD', leaving, 'NX', seq, user) == 1 then
      has_left, wait_ms = true, math.max(debounce_ms, poll_ms)
    end
  end
  local open, was_polled = call('ZRANGEBYLEX', sessions, '-', '+'), call('GET', p .. 'y')
  if #open > 0 or call('ZCARD', leaving) > 0 then
    call('SET', p .. 'y', 1, 'PX', poll_ms)
    for _, other in ipairs(open) do
      local lease = p .. 'l:' .. other
      if not call('GET', lease) then
        if was_polled then
          for _, user in ipairs(call('ZRANGEBYLEX', p .. 'p:' .. other, '-', '+')) do
            leave(user, other)
          end
          call('DEL', p .. 'p:' .. other)
          call('ZREM', sessions, other)
        else
          call('SET', lease, '-', 'PX', lease_ms)
        end
      end
      call('PEXPIRE', p .. 'p:' .. other, unused_ms)
    end
    for _, key in ipairs({holders, leaving, sessions}) do call('PEXPIRE', key, unused_ms) end
  end
  if has_left then call('SET', p .. 'q:' .. seq, 1, 'PX', wait_ms) end
  local found =
    call('ZRANGEBYSCORE', leaving, '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, OFFLINE_MAX)
  -- While no bridge could poll the tag, none could renew its lease, or note who has returned.
  if found[1] and not was_polled then
    call('SET', p .. 'q:' .. found[2], 1, 'PX', wait_ms)
  end
  for k = 1, #found, 2 do
    if call('GET', p .. 'q:' .. found[k + 1]) then break end
    call('ZREM', leaving, found[k])
    add_event(found[k], 0)
  end
  if added > 0 then
    forget_published(p)
    call('PEXPIRE', p .. 'f', unused_ms)
  end
  if added > 0 or has_left then
    call('HSET', p .. 'h', '\\1presence', seq)
    last = tonumber(seq)
  end
  return {added, epoch, last}
end
local out, i = {}, 6
while i <= #ARGV do
  local p, session, known, seen, seen_epoch, count = unpack(ARGV, i, i + 5)
  out[#out + 1] = note(p, session, known, seen, seen_epoch, i + 6, tonumber(count))
  i = i + 6 + 2 * count
end
return out
"""
)

# ARGV: prefix, limit. Deletes the oldest events about presence from the outbox of the tag.
# Returns how many there were.
DROP_PRESENCE_EVENTS: Final = Script(
    "local call = redis.call"
    + _FORGET_PUBLISHED
    + """
local p, dropped = ARGV[1], 0
forget_published(p)
local found = call('ZRANGEBYSCORE', p .. 'f', '-inf', '+inf', 'LIMIT', 0, ARGV[2])
for _, number in ipairs(found) do
  dropped = dropped + call('ZREMRANGEBYSCORE', p .. 'e', number, number)
  call('ZREM', p .. 'f', number)
end
return dropped
"""
)
