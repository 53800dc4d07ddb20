-- renew_lease.lua: an engine says that it is alive, and hears whether its life and its history still stand.
-- Needs server_life.lua, continuity.lua and stored_number.lua in front of it.
--
-- KEYS  1 log    2 head    3 fence    4 closed, as in commit.lua    5 lease  string, runs out
--
-- ARGV  1 layout    2 engine    3 session    4 position and 5 commit id the engine has come to
--       6 barrier_ms    7 lease_ms
--
-- Replies (arrays):
--   {"renewed", life, milliseconds until the log opens or "0", "continued"}   or "trimmed": what it knows is so old that
--                                                                             nobody can say whether history continues it
--   {"fenced", lowest session}, {"diverged", position, found}, {"layout", found}   as in commit.lua; nothing is renewed

local known = redis.call('HMGET', KEYS[2], 'position', 'commit', 'layout', 'life', 'opening', 'lost', 'forgot')
if known[3] and known[3] ~= ARGV[1] then
  return {'layout', known[3]}
end
local position, damage = stored_number(known[1] or '0', KEYS[2], 'position')
if not position then
  return damage
end
local life, refused = server_life()
if not life then
  return refused
end
local closed_ms = closed_for(KEYS[2], KEYS[4], known, life, ARGV[6])
local stored = redis.call('HGET', KEYS[3], ARGV[2])
local lowest, garbled = stored_number(stored or ARGV[3], KEYS[3], ARGV[2])
if not lowest then
  return garbled
end
if tonumber(ARGV[3]) < lowest then
  return {'fenced', stored}
end
local standing, found = continuity(KEYS[1], known, tonumber(ARGV[4]), ARGV[5])
if standing ~= 'diverged' and tonumber(ARGV[3]) > lowest then
  standing, found = 'diverged', '' -- a life that began in a history that is gone; its base may be too old to tell
end
if standing == 'diverged' then
  note_loss(KEYS[1], KEYS[2], known, ARGV[5])
  return {'diverged', ARGV[4], found}
end
redis.call('SET', KEYS[5], ARGV[3], 'PX', ARGV[7])
return {
  'renewed',
  life,
  string.format('%.0f', closed_ms or 0),
  standing == 'trimmed' and 'trimmed' or 'continued',
}
