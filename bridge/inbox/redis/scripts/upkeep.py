"""Scripts that write something besides messages: marks, trials, tokens, epochs, deletions."""

from typing import Final

from bridge.core.replay import FORGOTTEN_STEP
from bridge.inbox.redis.scripts.heads import IS_OVER, TRIM
from bridge.inbox.redis.scripts.reading import VIEW
from bridge.inbox.redis.scripts.receipts import SETTLE
from bridge.inbox.redis.scripts.script import Script

# ARGV: rules (receipts.py), then for each mark prefix, user, epoch of the mark, offset, and how
# long ago it moved (s). A mark of another epoch is ignored. Returns for each mark that is done how
# many receipts of the user are open.
MARK: Final = Script(
    VIEW
    + SETTLE
    + """
local out = {}
for i = 7, #ARGV, 5 do
  local p, user, offset = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 3])
  local epoch, last, delivered, reason, forgotten, upto, gone = head_of(p, user)
  offset = math.min(offset, last)
  if epoch == ARGV[i + 2] and offset > delivered then
    set_head(p, user, last, offset, reason, forgotten, upto, gone)
    delivered = offset
  end
  local open = call('ZCARD', p .. 'w:' .. user)
  if open > 0 then
    settle(p, user, rules_from(1, ARGV[1] - ARGV[i + 4], 0), '-inf', delivered)
    open = call('ZCARD', p .. 'w:' .. user)
  end
  out[#out + 1] = open
  if has_added_enough() then break end
end
return out
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

# ARGV: prefix, revocation, publish command. A script with an error in its middle keeps what it
# wrote. So the write comes first: without it no window is closed.
REVOKE: Final = Script(
    """
redis.call('ZADD', ARGV[1] .. 'r', 0, ARGV[2])
redis.call(ARGV[3], ARGV[1] .. 'revoked', ARGV[2])
return 1
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

# ARGV: prefix, bound of users to continue from (empty = from the start), message limit, oldest time, now,
# steady, lowest, number of users, oldest time of ids, subcommand that counts subscribers, rules
# (receipts.py). Removes what is too old, retained keys whose message is past its deadline, the
# times to live that earlier versions set, and users who have no messages, retained keys, ids
# and windows. Returns where to continue; empty if no more follow.
SWEEP: Final = Script(
    VIEW
    + TRIM
    + SETTLE
    + IS_OVER
    + f"local STEP = {FORGOTTEN_STEP}"
    + """
-- Time decides nothing here, because other bridges may have marks that are not written.
local rules = rules_from(11, tonumber(ARGV[11]), math.huge)
local p, count, most, oldest = ARGV[1], tonumber(ARGV[8]), tonumber(ARGV[3]), tonumber(ARGV[4])
local function drop_expired(user)
  local retained, elements = p .. 'v:' .. user, p .. 'k:' .. user
  for _, place in ipairs(call('ZRANGEBYSCORE', retained, '-inf', '+inf')) do
    if is_over(struct.unpack('<dd', call('HGET', elements, place))) then
      call('ZREM', retained, place)
      if not call('ZSCORE', p .. 's:' .. user, place) then call('HDEL', elements, place) end
    end
  end
end
local low, unsettled = ARGV[2] == '' and '-' or ARGV[2], nil
local users = call('ZRANGEBYLEX', p .. 'u', low, '+', 'LIMIT', 0, count)
local done = 0
for _, user in ipairs(users) do
  local list, ids = p .. 'm:' .. user, p .. 'i:' .. user
  local epoch, last, delivered, reason, forgotten, upto, gone = head_of(p, user)
  call('PERSIST', list)
  call('PERSIST', ids)
  call('ZREMRANGEBYSCORE', ids, '-inf', '(' .. ARGV[9])
  if not settle(p, user, rules, '-inf', upto and '+inf', true) then
    unsettled = user  -- what is not decided is not deleted
    break
  end
  local length = call('LLEN', list)
  if upto then drop_expired(user) end
  if upto and length + call('ZCARD', p .. 's:' .. user) > 0 then
    local now_for, now_gone =
      trim_sparse(p, user, most, oldest, reason, gone)
    if now_for ~= reason or now_gone ~= gone then
      set_head(p, user, last, delivered, now_for, forgotten, upto, now_gone)
    end
    reason = now_for
  elseif length > 0 then
    local now_for = trim(p, user, length, most, oldest, reason)
    if now_for ~= reason then set_head(p, user, last, delivered, now_for, forgotten) end
    reason = now_for
  end
  if reason == 4 and call('ZCARD', ids) + call('ZCARD', p .. 'v:' .. user) == 0
    and call('PUBSUB', ARGV[10], p .. 'c:' .. user)[2] == 0 then
    call('HDEL', p .. 'h', user)
    call('ZREM', p .. 'u', user)
    local above = (math.floor(last / STEP) + 1) * STEP
    local known = tonumber(call('HMGET', p .. 'h', '\\1forgotten')[1] or 0)
    if above > known then call('HSET', p .. 'h', '\\1forgotten', above) end
  end
  done = done + 1
  if has_added_enough() then break end
end
local lost = call('HMGET', p .. 'h', '\\1lost')[1]
if lost and lost ~= '' and tonumber(lost) < oldest then
  call('HSET', p .. 'h', '\\1lost', '')
end
if unsettled then return '[' .. unsettled end
return (done == count or done < #users) and '(' .. users[done] or ''
"""
)
