-- look_up_job.lua: may a worker carry out the job it was given? Needs server_life.lua in front of it.
--
-- KEYS  1 acks  hash    of the job's transfer, as in finish_transfer.lua
--       2 head  hash    3 closed  string    as in commit.lua
--
-- ARGV  1 layout    2 rank    3 barrier_ms
--
-- Replies (arrays):
--   {"open", life, reported}     reported: "1" when this rank has reported, or the transfer is over
--   {"closed", milliseconds}     the server began a new life: blocks of this job may still be written for another one that
--                                the surviving log does not know
--   {"lost", commit}             somebody knew that commit and the log does not hold it: the job's source may hold other bytes
--                                than the log says. HistoryLost, which comes next, cancels its transfer
--   {"layout", found}

local known = redis.call('HMGET', KEYS[2], 'position', 'commit', 'layout', 'life', 'opening', 'lost', 'forgot')
if known[3] and known[3] ~= ARGV[1] then
  return {'layout', known[3]}
end
local life, refused = server_life()
if not life then
  return refused
end
local closed_ms = closed_for(KEYS[2], KEYS[3], known, life, ARGV[3])
if closed_ms then
  return {'closed', string.format('%.0f', closed_ms)}
end
local loss = loss_in_the_way(known)
if loss then
  return {'lost', loss}
end
local acks = redis.call('HMGET', KEYS[1], 'done', ARGV[2])
return {'open', life, (acks[1] or acks[2]) and '1' or '0'}
