-- commit.lua: append one commit to the log of one index, or refuse and say why. Checks everything, then writes.
-- Needs server_life.lua, continuity.lua and stored_number.lua in front of it.
--
-- KEYS  1 log     stream  entry id <position>-0
--       2 head    hash    position, commit (id of the last one), layout, life and opening (see server_life.lua), lost and
--                         forgot (commit ids: of the last one that somebody knew and the log does not hold; the same
--                         once that loss is dealt with), and per scope the position that last touched it
--       3 fence   hash    engine -> lowest session that may append
--       4 closed  string  is there while the log is closed
--       5..       string  the lease of the engine of each fence, then of each that must have lapsed, in order
--       then      stream  of each job, in order: the jobs of its GPU pool
--
-- ARGV  1 layout           version of the key layout the caller speaks
--       2 engine           3 session
--       4 base position    5 base commit id       ("0" and "" at birth)
--       6 missed_max       entries a reply may carry
--       7 commit id        8 meta: "<commit id> <author> <at_ms> <schema> <checksum>"      9 body    10 hashes
--       11 barrier_ms      12 lease_ms       13 "1": this commit deals with a lost end of the history (HistoryLost)
--       14 number of checks, then that many scopes
--          number of touches, then that many scopes
--          number of fences, then that many pairs: engine, lowest session
--          number of engines whose lease must have lapsed, then their names
--          per job: transfer id, body
--
-- Replies (arrays; numbers as strings, because Lua's are doubles):
--   {"appended", position, missed...}      missed: entries {id, {field, value, ...}} between base and this commit
--   {"conflicted", scope, missed...}       a checked scope was touched after the base; missed: everything after it
--   {"behind", head position}              more than missed_max entries lie between; read first
--   {"trimmed", head position}             the log does not hold what comes after the base: restore from a snapshot
--   {"fenced", lowest session}             the caller's session is over
--   {"diverged", position, found}          the history after the base does not continue the one the caller knows
--   {"closed", milliseconds}               the server began a new life; the log opens in so long
--   {"lost", commit}                       somebody knew that commit and the log does not hold it: HistoryLost must come first
--   {"alive", engine}                      an engine this commit declares lost holds its lease
--   {"layout", found}                      the index is of another layout version
--
-- A fence that begins the caller's own session gives its engine the lease; any other fence takes it.
--
-- Refusals are replies, never error(): an error would leave it open whether something was written. Whatever can fail
-- (out of memory, a read-only replica, a missing right, a key of another type) fails before the entry is added.

local CHUNK = 4000 -- values of one call; even, because they come in pairs
local log, head, fence, closed = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local engine, session, base = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local known = redis.call('HMGET', head, 'position', 'commit', 'layout', 'life', 'opening', 'lost', 'forgot')
if known[3] and known[3] ~= ARGV[1] then
  return {'layout', known[3]}
end
local position, damage = stored_number(known[1] or '0', head, 'position')
if not position then
  return damage
end
local life, refused = server_life()
if not life then
  return refused
end
local closed_ms = closed_for(head, closed, known, life, ARGV[11])

local stored = redis.call('HGET', fence, engine)
local lowest, garbled = stored_number(stored or '0', fence, engine)
if not lowest then
  return garbled
end
if session < lowest then
  return {'fenced', stored}
end

local standing, found = continuity(log, known, base, ARGV[5])
if standing == 'diverged' then
  note_loss(log, head, known, ARGV[5])
  return {'diverged', ARGV[4], found}
end
if closed_ms then
  return {'closed', string.format('%.0f', closed_ms)}
end
if standing == 'trimmed' then
  return {'trimmed', known[1]}
end
local loss = loss_in_the_way(known)
if loss and ARGV[13] ~= '1' then
  return {'lost', loss}
end
local missed = {}
if standing == 'continued' then
  if position - base > tonumber(ARGV[6]) then
    return {'behind', known[1]}
  end
  missed = redis.call('XRANGE', log, id(base + 1), '+')
end

local cursor = 14
local function take_list(width)
  local count = tonumber(ARGV[cursor]) * width
  local list = {}
  for i = 1, count do
    list[i] = ARGV[cursor + i]
  end
  cursor = cursor + count + 1
  return list
end
local checks, touches, fences, lapsed = take_list(1), take_list(1), take_list(2), take_list(1)
local first_lapsed = 4 + #fences / 2
local first_job = first_lapsed + #lapsed + 1

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
      local version, unreadable = stored_number(versions[i] or '0', head, checks[from + i - 1])
      if not version then
        return unreadable
      end
      if version > base then
        return reply('conflicted', checks[from + i - 1])
      end
    end
  end
end
for i = 1, #lapsed do
  if redis.call('EXISTS', KEYS[first_lapsed + i]) == 1 then
    return {'alive', lapsed[i]}
  end
end

-- From here on nothing may fail once something is written: first what could be refused without effect.
if position == 0 and redis.call('EXISTS', log) == 1 then
  return {'diverged', ARGV[4], ''} -- the head was deleted, the log was not
end
for i = first_job, #KEYS do
  redis.call('XLEN', KEYS[i]) -- a key of another type stops the script here
end
redis.call('HSET', head, 'layout', ARGV[1], 'life', life) -- so does a missing right to HSET, or memory that is out

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
if ARGV[13] == '1' and known[6] then
  updates = {'position', new, 'commit', ARGV[7], 'forgot', known[6]}
end
for i = 1, #touches do
  updates[#updates + 1] = touches[i]
  updates[#updates + 1] = new
end
for from = 1, #updates, CHUNK do
  redis.call('HSET', head, unpack(updates, from, math.min(from + CHUNK - 1, #updates)))
end
for i = 1, #fences, 2 do
  local lease = KEYS[4 + (i + 1) / 2]
  redis.call('HSET', fence, fences[i], fences[i + 1])
  if fences[i] == engine and fences[i + 1] == ARGV[3] then
    redis.call('SET', lease, ARGV[3], 'PX', ARGV[12])
  else
    redis.call('DEL', lease)
  end
end
for i = first_job, #KEYS do
  redis.call('XADD', KEYS[i], '*', 'transfer', ARGV[cursor], 'body', ARGV[cursor + 1])
  cursor = cursor + 2
end
return reply('appended', new)
