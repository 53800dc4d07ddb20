-- publish_snapshot.lua: let replicas start from a snapshot that is already stored, and trim what no one needs any more.
-- Needs continuity.lua and stored_number.lua in front of it.
--
-- KEYS  1 log    2 head, as in commit.lua
--       3 snapshot  hash    the pointer: position, commit, digest, schema, blob, bytes, at_ms of the newest, and the same
--                           with "previous_" of the one before
--       4 blob      string  the new one
--       5 blob      string  the one before the previous, which goes; the new one again where there is none
--
-- ARGV  1 layout
--       2 position    3 commit    4 digest    5 schema    6 blob    7 bytes    8 at_ms    of the new one
--       9 blob and 10 previous blob of the pointer as the caller saw it; "" for none
--       11 margin    entries to keep below the new snapshot, at least
--
-- Replies (arrays):
--   {"published", first position the log is to keep}
--   {"moved", blob}               the pointer is not what the caller saw, or not older: somebody else was faster
--   {"incomplete", bytes}         the blob is not there, or shorter
--   {"diverged", position, found} the log does not hold that commit at that position: the snapshot is of another history
--   {"layout", found}
--
-- The first entry kept is never above the previous snapshot's position + 1: if the new one turns out unreadable, the
-- previous one and the log still give the state. So nothing is trimmed before there are two.

local log, head, pointer = KEYS[1], KEYS[2], KEYS[3]
local known = redis.call('HMGET', head, 'position', 'commit', 'layout')
if known[3] and known[3] ~= ARGV[1] then
  return {'layout', known[3]}
end
local ends_at, damage = stored_number(known[1] or '0', head, 'position')
if not ends_at then
  return damage
end
local position = tonumber(ARGV[2])
local standing, found = continuity(log, known, position, ARGV[3])
if standing == 'diverged' or not known[1] then
  return {'diverged', ARGV[2], found or ''}
end
local current = redis.call('HMGET', pointer, 'blob', 'previous_blob', 'position')
local newest, garbled = stored_number(current[3] or '0', pointer, 'position')
if not newest then
  return garbled
end
if (current[1] or '') ~= ARGV[9] or (current[2] or '') ~= ARGV[10] or (current[3] and newest >= position) then
  return {'moved', current[1] or ''}
end
local stored = redis.call('STRLEN', KEYS[4])
if stored ~= tonumber(ARGV[7]) then
  return {'incomplete', string.format('%.0f', stored)}
end

local fields = {'position', 'commit', 'digest', 'schema', 'blob', 'bytes', 'at_ms'}
local updates = {}
if current[1] then
  local old = redis.call('HMGET', pointer, unpack(fields))
  for i = 1, #fields do
    updates[#updates + 1] = 'previous_' .. fields[i]
    updates[#updates + 1] = old[i] or ''
  end
end
for i = 1, #fields do
  updates[#updates + 1] = fields[i]
  updates[#updates + 1] = ARGV[i + 1]
end
redis.call('HSET', pointer, unpack(updates))
redis.call('PERSIST', KEYS[4])
if ARGV[10] ~= '' and KEYS[5] ~= KEYS[4] then
  redis.call('DEL', KEYS[5])
end
if not current[3] then
  return {'published', '1'}
end
local keep = math.max(1, math.min(newest + 1, position - tonumber(ARGV[11]) + 1))
redis.call('XTRIM', log, 'MINID', id(keep))
return {'published', string.format('%.0f', keep)}
