-- finish_transfer.lua: one rank reports a transfer. The last rank's report appends TransferFinished at whatever the head
-- is and takes the job off the stream, in one step. Says what is missing otherwise. Checks everything, then writes.
-- Needs server_life.lua and stored_number.lua in front of it.
--
-- KEYS  1 log    stream  entry id <position>-0
--       2 head   hash    as in commit.lua
--       3 acks   hash    of this transfer: rank -> "" (copied) or why it was not; "done" -> position of its finish;
--                        "rung" -> entry id of the job that ring_job.lua put in
--       4 jobs   stream  the job came from
--       5 seats  hash    "<rank>:<pool>" -> token of the worker that sits there
--
-- ARGV  1 layout     version of the key layout the caller speaks
--       2 group      3 entry id      of the job
--       4 rank       5 ranks         of the transfer
--       6 reason     "" when this rank has copied; else why not
--       7 ttl        milliseconds that the acks stay once the transfer is finished
--       8 outcome    what the record below says: "ok" or "failed"
--       9 commit id, 10 meta, 11 body, 12 hashes of that record, as in commit.lua
--       13 seat      14 token        of the worker
--       15 life      of the server when the job was taken
--       16.. scopes that it touches
--
-- Replies (arrays). `acked` is 1 when the job was still on this rank's list, 0 when somebody took it off before.
--   {"reported", ranks that have, acked}   the others are still copying
--   {"finished", position, acked}          this was the last one; the record is in the log
--   {"duplicate", position, acked}         it was finished before; nothing appended
--   {"outcome", rank, reason, ...}         all have reported, and the record says something else than they did: nothing
--                                          written, nothing acknowledged. Make the record for these failures (none: ok)
--                                          and call again
--   {"unseated"}                           another worker sits there and may be copying the same job: nothing written
--   {"interrupted"}                        the server began a new life since the job was taken, and may not know of it any
--                                          more; or it lost what somebody knew, and HistoryLost must come first: nothing
--                                          written. Look at the list again
--   {"gone", "", acked}                    there is no such index any more; the job is off the stream
--   {"layout", found}                      the index is of another layout version
--
-- A rank's first report counts: an outcome never turns round, however often a job is carried out. Whatever can fail (out
-- of memory, a read-only replica, a key of another type) fails before the entry is added, as in commit.lua.

local log, head, acks, jobs = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

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
if life ~= ARGV[15] or loss_in_the_way(known) then
  return {'interrupted'}
end
if redis.call('HGET', KEYS[5], ARGV[13]) ~= ARGV[14] then
  return {'unseated'}
end
local done = redis.call('HGET', acks, 'done')
redis.call('XLEN', log) -- a key of another type stops the script here, before the first write
redis.call('XLEN', jobs)

local function dismiss()
  return redis.call('XACK', jobs, ARGV[2], ARGV[3])
end

if done then
  redis.call('XDEL', jobs, ARGV[3])
  return {'duplicate', done, dismiss()}
end
if not known[1] then
  redis.call('XDEL', jobs, ARGV[3]) -- nobody will ever finish it
  return {'gone', '', dismiss()}
end

local ranks = tonumber(ARGV[5])
local reports = {}
local stored = redis.call('HGETALL', acks)
for i = 1, #stored, 2 do
  reports[stored[i]] = stored[i + 1]
end
if not reports[ARGV[4]] then
  reports[ARGV[4]] = ARGV[6]
end
local count, outcome, failures = 0, 'ok', {'outcome'}
for number = 0, ranks - 1 do
  local rank = string.format('%.0f', number)
  local reason = reports[rank]
  if reason then
    count = count + 1
    if reason ~= '' then
      outcome = 'failed'
      failures[#failures + 1] = rank
      failures[#failures + 1] = reason
    end
  end
end

if count < ranks then
  redis.call('HSETNX', acks, ARGV[4], ARGV[6])
  return {'reported', count, dismiss()}
end
if outcome ~= ARGV[8] then
  return failures
end

redis.call('HSET', head, 'layout', ARGV[1]) -- whether the log is open in this life, commits say
local new = string.format('%.0f', position + 1)
if not redis.call('XADD', log, 'NOMKSTREAM', new .. '-0',
    'previous', known[2] or '', 'meta', ARGV[10], 'body', ARGV[11], 'hashes', ARGV[12]) then
  redis.call('XDEL', jobs, ARGV[3])
  return {'gone', '', dismiss()} -- a log that was deleted must not begin again in its middle
end
local updates = {'position', new, 'commit', ARGV[9]}
for i = 16, #ARGV do
  updates[#updates + 1] = ARGV[i]
  updates[#updates + 1] = new
end
redis.call('HSET', head, unpack(updates))
redis.call('HSET', acks, 'done', new)
redis.call('PEXPIRE', acks, ARGV[7])
redis.call('XDEL', jobs, ARGV[3])
if reports.rung then
  redis.call('XDEL', jobs, reports.rung) -- rung again while this worker had the lost one in its hands
end
return {'finished', new, dismiss()}
