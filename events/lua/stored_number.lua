-- stored_number.lua: numbers as the head, the fence and the snapshot pointer hold them. Stands in front of scripts that count
-- with them.

-- A position or session of ours, or nil and the refusal that says where what none of us wrote stands.
local function stored_number(value, key, field)
  local number = tonumber(value)
  if number and number >= 0 and number < 2 ^ 53 and number % 1 == 0 then
    return number
  end
  local shown = string.gsub(string.sub(value, 1, 80), '[^ -~]', '?')
  return nil, {err = 'DAMAGED ' .. key .. ', ' .. field .. ': "' .. shown .. '" is no number'}
end

