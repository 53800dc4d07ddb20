-- ring_job.lua: put the job of a transfer into its stream again, unless it is finished or rung already.
--
-- KEYS  1 acks   hash    of this transfer, as in finish_transfer.lua; "rung" -> entry id of the last job put in here
--       2 jobs   stream  of its GPU pool
--
-- ARGV  1 transfer id   2 body
--
-- Replies: 1 rung, 0 not needed. That there is at most one entry of a transfer matters: the finish takes it away with
-- itself, so no worker ever finds the job of a transfer that is over, and whose blocks belong to somebody else.

local acks, jobs = KEYS[1], KEYS[2]
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
