-- move_layout.lua: one move of an index towards another layout of its keys; see migrations/layouts.py.
--
-- KEYS  1 head    hash    layout, as in commit.lua
--       2..       string  leases to give, to engines that have none
--
-- ARGV  1 start and 2 end   layout before and after
--       3 lease_ms          how long such a lease lasts
--       4..                 session of each, in the order of the keys
--
-- Replies (arrays):
--   {"moved", end}
--   {"elsewhere", found}   the index is not where this move starts; nothing changed. "" if there is no such index

local found = redis.call('HGET', KEYS[1], 'layout')
if found ~= ARGV[1] then
  return {'elsewhere', found or ''}
end
for i = 2, #KEYS do
  redis.call('SET', KEYS[i], ARGV[i + 2], 'PX', ARGV[3], 'NX')
end
redis.call('HSET', KEYS[1], 'layout', ARGV[2])
return {'moved', ARGV[2]}
