-- commit.lua: append one commit to the log of one index, or refuse and say why. Checks everything, then writes.
--
-- KEYS  1 log    stream  entry id <position>-0
--       2 head   hash    position, commit (id of the last one), layout, and per scope the position that last touched it
--       3 fence  hash    engine -> lowest session that may append
--       4..      stream  of each job, in order: the jobs of its GPU pool
--
-- ARGV  1 layout           version of the key layout the caller speaks
--       2 engine           3 session
--       4 base position    5 base commit id       ("0" and "" at birth)
--       6 missed_max       entries a reply may carry
--       7 commit id        8 meta: "<commit id> <author> <at_ms> <schema> <checksum>"      9 body    10 hashes
--       11 number of checks, then that many scopes
--          number of touches, then that many scopes
--          number of fences, then that many pairs: engine, lowest session
--          per job: transfer id, body
--
-- Replies (arrays; numbers as strings, because Lua's are doubles):
--   {"appended", position, missed...}      missed: entries {id, {field, value, ...}} between base and this commit
--   {"conflicted", scope, missed...}       a checked scope was touched after the base; missed: everything after it
--   {"behind", head position}              more than missed_max entries lie between; read first
--   {"fenced", lowest session}             the caller's session is over
--   {"diverged", position, found}          the history after the base does not continue the one the caller knows
--   {"layout", found}                      the index is of another layout version
--
-- Refusals are replies, never error(): an error would leave it open whether something was written. Whatever can fail
-- (out of memory, a read-only replica, a missing right, a key of another type) fails before the entry is added.


local CHUNK = 4000 -- values of one call; even, because they come in pairs
local log, head, fence = KEYS[1], KEYS[2], KEYS[3]
local engine, session, base = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local known = redis.call('HMGET', head, 'position', 'commit', 'layout')
local position = tonumber(known[1] or '0')
if known[3] and known[3] ~= ARGV[1] then
  return {'layout', known[3]}
end

local lowest = redis.call('HGET', fence, engine)
if lowest and session < tonumber(lowest) then
  return {'fenced', lowest}
end

local function id(number)
  return string.format('%.0f-0', number)
end

-- Does the history after the base continue the one the caller knows? The last entry is named by the head, any other
-- by its successor: so the answer does not need the entry at the base, which may be trimmed.
local missed = {}
if base == position then
  if (known[2] or '') ~= ARGV[5] then
    return {'diverged', ARGV[4], known[2] or ''}
  end
elseif base > position then
  return {'diverged', ARGV[4], ''}
else
  local after = redis.call('XRANGE', log, id(base + 1), id(base + 1))
  if #after == 0 then
    return {'behind', known[1]}
  end
  local fields = after[1][2]
  for i = 1, #fields, 2 do
    if fields[i] == 'previous' and fields[i + 1] ~= ARGV[5] then
      return {'diverged', ARGV[4], fields[i + 1]}
    end
  end
  if position - base > tonumber(ARGV[6]) then
    return {'behind', known[1]}
  end
  missed = redis.call('XRANGE', log, id(base + 1), '+')
end

local cursor = 11
local function take_list(width)
  local count = tonumber(ARGV[cursor]) * width
  local list = {}
  for i = 1, count do
    list[i] = ARGV[cursor + i]
  end
  cursor = cursor + count + 1
  return list
end
local checks, touches, fences = take_list(1), take_list(1), take_list(2)

local function reply(tag, detail)
  local answer = {tag, detail}
  for i = 1, #missed do
    answer[i + 2] = missed[i]
  end
  return answer
end

if base < position then
  for from = 1, #checks, CHUNK do
    local versions = redis.call('HMGET', head, unpack(checks, from, math.min(from + CHUNK - 1, #checks)))
    for i = 1, #versions do
      if versions[i] and tonumber(versions[i]) > base then
        return reply('conflicted', checks[from + i - 1])
      end
    end
  end
end

-- From here on nothing may fail once something is written: first what could be refused without effect.
if position == 0 and redis.call('EXISTS', log) == 1 then
  return {'diverged', ARGV[4], ''} -- the head was deleted, the log was not
end
for i = 4, #KEYS do
  redis.call('XLEN', KEYS[i]) -- a key of another type stops the script here
end
redis.call('HSET', head, 'layout', ARGV[1]) -- so does a missing right to HSET, or memory that is out

local new = string.format('%.0f', position + 1)
local entry = {new .. '-0', 'previous', known[2] or '', 'meta', ARGV[8], 'body', ARGV[9], 'hashes', ARGV[10]}
local added
if position == 0 then
  added = redis.call('XADD', log, unpack(entry))
else
  added = redis.call('XADD', log, 'NOMKSTREAM', unpack(entry)) -- a log that was deleted must not begin in its middle
end
if not added then
  return {'diverged', ARGV[4], ''}
end

local updates = {'position', new, 'commit', ARGV[7]}
for i = 1, #touches do
  updates[#updates + 1] = touches[i]
  updates[#updates + 1] = new
end
for from = 1, #updates, CHUNK do
  redis.call('HSET', head, unpack(updates, from, math.min(from + CHUNK - 1, #updates)))
end
for from = 1, #fences, CHUNK do
  redis.call('HSET', fence, unpack(fences, from, math.min(from + CHUNK - 1, #fences)))
end
for i = 4, #KEYS do
  redis.call('XADD', KEYS[i], '*', 'transfer', ARGV[cursor], 'body', ARGV[cursor + 1])
  cursor = cursor + 2
end
return reply('appended', new)
