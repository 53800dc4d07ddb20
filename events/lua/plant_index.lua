-- plant_index.lua: begin an empty index at a snapshot that is already stored, instead of at its birth.
-- Needs server_life.lua in front of it.
--
-- KEYS  1 log  2 head  3 fence, as in commit.lua    4 snapshot  5 blob, as in publish_snapshot.lua
--
-- ARGV  1 layout
--       2 position    3 commit    4 digest    5 schema    6 blob    7 bytes    8 at_ms
--       9.. pairs: engine, lowest session that may append
--
-- Replies (arrays):
--   {"planted"}
--   {"taken", position}       the index is not empty
--   {"incomplete", bytes}     the blob is not there, or shorter
--
-- No scope has a version: whatever is decided later was decided on this snapshot, or on what came after it.

local log, head = KEYS[1], KEYS[2]
local life, refused = server_life()
if not life then
  return refused
end
local position = redis.call('HGET', head, 'position')
if position or redis.call('EXISTS', log) == 1 then
  return {'taken', position or '0'}
end
local stored = redis.call('STRLEN', KEYS[5])
if stored ~= tonumber(ARGV[7]) then
  return {'incomplete', string.format('%.0f', stored)}
end
local fields = {'position', 'commit', 'digest', 'schema', 'blob', 'bytes', 'at_ms'}
for i = 1, #fields do
  redis.call('HSET', KEYS[4], fields[i], ARGV[i + 1])
end
redis.call('PERSIST', KEYS[5])
redis.call('XADD', log, ARGV[2] .. '-0', 'planted', '') -- an empty stream that goes on after this position
redis.call('XDEL', log, ARGV[2] .. '-0')
for i = 9, #ARGV, 2 do
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
end
redis.call('HSET', head, 'layout', ARGV[1], 'life', life, 'position', ARGV[2], 'commit', ARGV[3])
return {'planted'}
