-- Counts one arrival of each prefix and returns the records from before it, one after another,
-- zeros for an unknown one.
-- KEYS: the prefixes. ARGV[1]: the packed child of each. ARGV[2]: the time, "" for the server's own.
local LIFE = "7200000" -- milliseconds; a string, which the server need not format
local UNKNOWN = string.rep("\0", SIZE)

local now = tonumber(ARGV[2])
if not now then
  local time = redis.call("TIME")
  now = time[1] + time[2] / 1000000
end

-- MGET says nothing, rather than an error, of a key of a wrong type: it is overwritten.
local records = redis.call("MGET", unpack(KEYS))
for i, key in ipairs(KEYS) do
  local child = struct.unpack("<I4", ARGV[1], 4 * i - 3)
  local record = records[i]
  local later = record and #record == SIZE and arrive(record, child, now)
  if not later then
    records[i] = UNKNOWN
    later = first(child, now)
  end
  redis.call("PSETEX", key, LIFE, later)
end
return table.concat(records)
