-- server_life.lua: which life of the server this is, and whether the log is open in it. Stands in front of scripts that
-- append, or that vouch for what a log says.
--
-- A server that begins a new life (restart, failover, restored backup) may have lost the end of the log, and those who
-- knew that end may still be writing to blocks that the surviving log gives to others. So the first who meets a new life
-- closes the log for as long as it takes until everybody has either asked this server or stopped by itself (decision 0016).

local function server_life()
  local info = redis.pcall('INFO', 'server')
  if type(info) == 'table' then
    if string.find(string.lower(tostring(info.err)), 'unknown command', 1, true) then
      return '' -- fakeredis: it has one life
    end
    return nil, info
  end
  local at = string.find(info, 'run_id:', 1, true) -- a plain search: a pattern costs every commit some µs more
  return at and string.match(info, '%w+', at + 7) or ''
end

-- Milliseconds until the log opens; nil when it is open. `known`: position, commit, layout, life, opening, lost of the head.
local function closed_for(head, closed, known, life, barrier_ms)
  if life == '' then
    return nil -- a server of one life
  end
  local last = known[5] or known[4] -- the last life that anybody met here
  if not (known[1] or known[6]) or (known[4] == life and last == life) then
    return nil -- nothing is in it and nobody has told of what was, or this life has been let in
  end
  if last ~= life then
    redis.call('HSET', head, 'opening', life, 'life', '') -- also one that was let in before, and comes back after another
    redis.call('SET', closed, life, 'PX', barrier_ms)
    return tonumber(barrier_ms)
  end
  local left = redis.call('PTTL', closed)
  if left > 0 then
    return left
  end
  return nil
end

-- The commit of a lost end of the history that nobody has dealt with yet (see note_loss in continuity.lua); nil when there
-- is none. `known`: position, commit, layout, life, opening, lost, forgot of the head.
local function loss_in_the_way(known)
  if known[6] and known[6] ~= '' and known[6] ~= known[7] then
    return known[6]
  end
  return nil
end

