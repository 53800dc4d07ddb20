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
-- Refusals are replies, never error(): an error would leave it open whether something was written. The only write that
-- can fail is the first, XADD (out of memory, read-only replica, wrong type), and then nothing is written.

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
  local versions = redis.call('HMGET', head, unpack(checks))
  for i = 1, #checks do
    if versions[i] and tonumber(versions[i]) > base then
      return reply('conflicted', checks[i])
    end
  end
end

for i = 4, #KEYS do
  redis.call('XLEN', KEYS[i]) -- a key of another type stops the script here, before the first write
end

local new = string.format('%.0f', position + 1)
redis.call('XADD', log, new .. '-0',
  'previous', known[2] or '', 'meta', ARGV[8], 'body', ARGV[9], 'hashes', ARGV[10])

local updates = {'position', new, 'commit', ARGV[7], 'layout', ARGV[1]}
for i = 1, #touches do
  updates[#updates + 1] = touches[i]
  updates[#updates + 1] = new
end
redis.call('HSET', head, unpack(updates))
if #fences > 0 then
  redis.call('HSET', fence, unpack(fences))
end
for i = 4, #KEYS do
  redis.call('XADD', KEYS[i], '*', 'transfer', ARGV[cursor], 'body', ARGV[cursor + 1])
  cursor = cursor + 2
end
return reply('appended', new)
