-- Counts one arrival of each prefix and returns the records from before it, one after another,
-- zeros for an unknown one.
-- KEYS: the prefixes. ARGV[1]: the packed child of each. ARGV[2]: the time, "" for the server's own.
local UNKNOWN = string.rep("\0", SIZE)

local now = tonumber(ARGV[2])
if not now then
  local time = redis.call("TIME")
  now = time[1] + time[2] / 1000000
end

-- MGET says nothing, rather than an error, of a key of a wrong type: it is overwritten.
local records = redis.call("MGET", unpack(KEYS))
for i = 1, #KEYS do
  local key = KEYS[i]
  local child = take("<I4", ARGV[1], 4 * i - 3)
  local record = records[i]
  local later, lasts
  if record and #record == SIZE then
    later, lasts = arrive(record, child, now)
  end
  if lasts then
    redis.call("SETRANGE", key, "0", later)
  else
    redis.call("PSETEX", key, LIFE, later or first(child, now))
  end
  if not later then
    records[i] = UNKNOWN
  end
end
return table.concat(records)
