-- keep.lua: be the keeper that acts, or go on being it.
--
-- KEYS  1 keeper  string  token of the keeper that acts; runs out
--
-- ARGV  1 token    2 milliseconds
--
-- Replies: 1 it is you, 0 somebody else

local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
