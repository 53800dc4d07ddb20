-- take_seat.lua: a worker sits down on a rank of a GPU pool. From here on no other worker's report counts there.
--
-- KEYS  1 worker  string  the seat's heartbeat, runs out
--       2 seats   hash    as in finish_transfer.lua
--
-- ARGV  1 seat    2 token    3 heartbeat    4 its milliseconds    5 "1": only if nobody sits there
--
-- Replies: 1 seated, 0 somebody sits there

if ARGV[5] == '1' and redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
return 1
