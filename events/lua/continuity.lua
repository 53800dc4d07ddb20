-- continuity.lua: does the history after a base continue the one the caller knows? Stands in front of scripts that ask.
--
-- The last entry is named by the head, any other by its successor: so the answer does not need the entry at the base,
-- which may be trimmed.

local function id(number)
  return string.format('%.0f-0', number)
end

-- Somebody knew an end of this history that is gone. Until a commit has given up what its writers may have overwritten
-- (decision 0016), no other commit is taken. A log that lost everything is closed from here on, too: its server may be a new
-- one, and no position in it says so. `known`: position, commit, layout, life, opening, lost, forgot of the head.
local function note_loss(log, head, known, commit)
  if commit == '' or known[6] == commit then
    return
  end
  if known[1] or redis.call('EXISTS', log) == 0 then -- a head that was deleted is no loss: nothing is begun over its log
    redis.call('HSET', head, 'lost', commit)
  end
end

-- 'same' (nothing lies after the base), 'continued', 'diverged' and the commit found there, 'trimmed' (the log does not
-- hold what comes next, so it cannot be told).
local function continuity(log, known, base, commit)
  local position = tonumber(known[1] or '0')
  if base > position then
    return 'diverged', ''
  end
  if base == position then
    if (known[2] or '') ~= commit then
      return 'diverged', known[2] or ''
    end
    return 'same'
  end
  local after = redis.call('XRANGE', log, id(base + 1), id(base + 1))
  if #after == 0 then
    return 'trimmed'
  end
  local fields = after[1][2]
  for i = 1, #fields, 2 do
    if fields[i] == 'previous' and fields[i + 1] ~= commit then
      return 'diverged', fields[i + 1]
    end
  end
  return 'continued'
end

