"""What the Redis event log has Redis do in one step: Lua, run by EVAL.

A script is one command: nothing comes between its steps, and with ``appendfsync always`` all that it wrote is on disk
when its answer leaves. Scripts are sent whole each time (Redis recognises them by their hash): a restart or a failover
cannot make one unknown.
"""

from __future__ import annotations

from typing import Final

__all__ = ["APPEND", "CLAIM", "FULL", "KEEP", "LOOK", "READ", "RELEASE", "SEEK", "SWEEP"]

#: What `APPEND` answers instead of a position where the log has its largest permitted size.
FULL: Final = -1

#: KEYS: seq, wake, bytes, ids, causes, brokers, event streams… · ARGV: the newest position known, the largest size,
#: then for each stream its Broker, then for each event the number of its stream among KEYS and its bytes. Answers the
#: last event's position. Names the Brokers each time: a Redis that lost its newest writes may know one no more, and
#: nobody reads a stream whose Broker it does not know.
APPEND: Final = """
if tonumber(redis.call('GET', KEYS[3]) or '0') >= tonumber(ARGV[2]) then return -1 end
local seq = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1]))
local bytes = 0
local events = #KEYS - 3
redis.call('SADD', KEYS[6], unpack(ARGV, 3, events - 1))
for i = events, #ARGV, 2 do
  seq = seq + 1
  local entry = ARGV[i + 1]
  local position = string.format('%.0f', seq)
  local _, hash, _, cause = struct.unpack('<I4I4i8i8', entry)
  redis.call('XADD', KEYS[tonumber(ARGV[i])], '0-' .. position, 'e', entry)
  redis.call('ZADD', KEYS[4], hash, position)
  if cause > 0 then redis.call('ZADD', KEYS[5], cause, position) end
  bytes = bytes + #entry
end
local last = string.format('%.0f', seq)
redis.call('SET', KEYS[1], last)
redis.call('INCRBY', KEYS[3], bytes)
redis.call('XADD', KEYS[2], 'MAXLEN', 1, '0-' .. last, 'n', '')
return seq
"""

#: KEYS: an event stream · ARGV: after, limit, bytes. Answers ids and entries by turns, and ends early with `bytes`.
READ: Final = """
local found, count, size = {}, 0, 0
local after, limit = ARGV[1], tonumber(ARGV[2])
while count < limit and size < tonumber(ARGV[3]) do
  local part = math.min(16, limit - count)
  local entries = redis.call('XRANGE', KEYS[1], '(0-' .. after, '+', 'COUNT', part)
  for _, entry in ipairs(entries) do
    found[#found + 1] = entry[1]
    found[#found + 1] = entry[2][2]
    count = count + 1
    size = size + #entry[2][2]
    after = string.sub(entry[1], 3)
    if size >= tonumber(ARGV[3]) then break end
  end
  if #entries < part then break end
end
return found
"""

#: KEYS: an event stream · ARGV: a time in microseconds. Answers the newest position that arrived before it, by halving:
#: arrival times grow with positions, but for what a stepped clock shuffles.
SEEK: Final = """
local function newest(through)
  local found = redis.call('XREVRANGE', KEYS[1], through, '-', 'COUNT', 1)[1]
  if not found then return nil end
  local _, _, at = struct.unpack('<I4I4i8', found[2][2])
  return tonumber(string.sub(found[1], 3)), at
end
local low, high = 0, newest('+') or 0
while low < high do
  local middle = math.floor((low + high + 1) / 2)
  local seq, at = newest('0-' .. string.format('%.0f', middle))
  if not seq or at < tonumber(ARGV[1]) then low = middle else high = seq - 1 end
end
return newest('0-' .. string.format('%.0f', low)) or 0
"""

#: Runs without room as well: what it keeps lets retention make some.
#: KEYS: positions, fences, names · ARGV: for each subscription its uid, its lease's token ("0" without one), its name
#: and its position. Answers the uids whose lease another process has by now.
KEEP: Final = """#!lua flags=allow-oom
local lost = {}
for i = 1, #ARGV, 4 do
  if (redis.call('HGET', KEYS[2], ARGV[i]) or '0') == ARGV[i + 1] then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 3])
    redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 2])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
"""

#: KEYS: an event stream, bytes, ids, causes, attempts, undelivered · ARGV: the position to begin at, the position up to
#: which all subscriptions are done, the arrival before which events go, the same for undelivered ones, the largest
#: size, and how many to look at. Answers how many went, and where to go on ("" at the end).
SWEEP: Final = """#!lua flags=allow-oom
local entries = redis.call('XRANGE', KEYS[1], '0-' .. ARGV[1], '0-' .. ARGV[2], 'COUNT', ARGV[6])
local size, largest = tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(ARGV[5])
local removed, freed, go_on = 0, 0, ''
for _, entry in ipairs(entries) do
  local position, stored = string.sub(entry[1], 3), entry[2][2]
  local at, cause = 0, 0
  if #stored >= 24 then _, _, at, cause = struct.unpack('<I4I4i8i8', stored) end
  local undelivered = redis.call('ZSCORE', KEYS[6], position)
  local cutoff = tonumber(undelivered and ARGV[4] or ARGV[3])
  if at < cutoff or (size - freed > largest and not undelivered) then
    redis.call('XDEL', KEYS[1], entry[1])
    redis.call('ZREM', KEYS[3], position)
    redis.call('ZREM', KEYS[4], position)
    redis.call('ZREMRANGEBYSCORE', KEYS[5], position, position)
    redis.call('ZREM', KEYS[6], position)
    removed, freed = removed + 1, freed + #stored
  elseif not undelivered then
    go_on = ''
    entries = {}
    break
  end
  go_on = string.format('%.0f', tonumber(position) + 1)
end
if freed > 0 then redis.call('DECRBY', KEYS[2], freed) end
if #entries < tonumber(ARGV[6]) then go_on = '' end
return {removed, go_on}
"""

#: KEYS: members, moved, fences, leases… · ARGV: owner, milliseconds, how many leases it wants, then for each lease its
#: subscription's uid and the token held, or "0". Tells that the owner is there, which wakes the others where that is
#: news, and lets a lease that it holds go on. Answers who is there, how many each wants and for how many milliseconds
#: it counts without another word, and for each lease the token ("0" where it is not held) and its holder ("" where it
#: is free). Runs without room as well: without leases nothing is delivered, and nothing could be removed.
LOOK: Final = """#!lua flags=allow-oom
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local known = redis.call('HGET', KEYS[1], ARGV[1])
local news = (known and string.match(known, ' (.*)$') or '0') ~= ARGV[3]
if ARGV[3] == '0' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now) .. ' ' .. ARGV[3])
end
local members, seen = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #seen, 2 do
  local at, wants = string.match(seen[i + 1], '^(%d+) (%d+)$')
  if at and tonumber(at) > now - tonumber(ARGV[2]) then
    members[#members + 1] = seen[i]
    members[#members + 1] = wants
    members[#members + 1] = tonumber(at) + tonumber(ARGV[2]) - now
  else
    redis.call('HDEL', KEYS[1], seen[i])
    news = true
  end
end
if news then redis.call('XADD', KEYS[2], 'MAXLEN', 1, '*', 'n', '') end
local answer = {members}
for i = 4, #KEYS do
  local uid, held = ARGV[2 * i - 4], ARGV[2 * i - 3]
  local token, lease = '0', redis.call('GET', KEYS[i])
  if held ~= '0' and (lease == held .. ' ' .. ARGV[1] or (not lease and redis.call('HGET', KEYS[3], uid) == held)) then
    token, lease = held, held .. ' ' .. ARGV[1]
    redis.call('SET', KEYS[i], lease, 'PX', ARGV[2])
  end
  answer[#answer + 1] = token
  answer[#answer + 1] = lease and string.match(lease, '^%d+ (.*)$') or ''
end
return answer
"""

#: KEYS: fence, fences, positions, leases… · ARGV: owner, milliseconds, then each lease's subscription's uid. A free
#: lease, and one of an earlier process of the same owner, is granted with a new token. Answers for each the token ("0"
#: where another has it) and the kept position.
CLAIM: Final = """#!lua flags=allow-oom
local answer = {}
local owner = ARGV[1]
for i = 4, #KEYS do
  local uid = ARGV[i - 1]
  local token, kept = '0', ''
  local lease = redis.call('GET', KEYS[i])
  if not lease or string.match(lease, '^%d+ (.*)$') == owner then
    token = string.format('%.0f', redis.call('INCR', KEYS[1]))
    redis.call('HSET', KEYS[2], uid, token)
    kept = redis.call('HGET', KEYS[3], uid) or ''
    redis.call('SET', KEYS[i], token .. ' ' .. owner, 'PX', ARGV[2])
  end
  answer[#answer + 1] = token
  answer[#answer + 1] = kept
end
return answer
"""

#: KEYS: moved, leases… · ARGV: for each lease what it holds if it is ours. Wakes those who wait for one.
RELEASE: Final = """#!lua flags=allow-oom
for i = 2, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[i - 1] then redis.call('DEL', KEYS[i]) end
end
redis.call('XADD', KEYS[1], 'MAXLEN', 1, '*', 'n', '')
return 0
"""
