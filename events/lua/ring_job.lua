-- ring_job.lua: put the job of a transfer into its stream again, unless it is finished or rung already.
-- Needs continuity.lua and stored_number.lua in front of it.
--
-- KEYS  1 acks   hash    of this transfer, as in finish_transfer.lua; "rung" -> entry id of the last job put in here
--       2 jobs   stream  of its GPU pool
--       3 log    4 head  as in commit.lua
--
-- ARGV  1 transfer id   2 body   3 position and 4 commit id of the state the job was made from
--
-- Replies: 1 rung, 0 not needed, -1 the log does not continue that state: the transfer may not be of this history. That
-- there is at most one entry of a transfer matters: the finish takes it away with itself, so no worker ever finds the job
-- of a transfer that is over, and whose blocks belong to somebody else.

local acks, jobs = KEYS[1], KEYS[2]
local head = redis.call('HMGET', KEYS[4], 'position', 'commit')
local position, damage = stored_number(head[1] or '0', KEYS[4], 'position')
if not position then
  return damage
end
local standing = continuity(KEYS[3], head, tonumber(ARGV[3]), ARGV[4])
if standing == 'diverged' or standing == 'trimmed' then
  return -1
end
local known = redis.call('HMGET', acks, 'done', 'rung')
redis.call('XLEN', jobs) -- a key of another type stops the script here, before the first write
if known[1] then
  return 0
end
if known[2] and #redis.call('XRANGE', jobs, known[2], known[2]) > 0 then
  return 0
end
local entry = redis.call('XADD', jobs, '*', 'transfer', ARGV[1], 'body', ARGV[2])
redis.call('HSET', acks, 'rung', entry)
return 1
