-- Counts arrivals of each prefix and returns the time and the records from before them, one after
-- another, zeros for an unknown one.
-- KEYS: the prefixes. ARGV[1]: the time, "" for the server's own, below zero for the age of the arrival. ARGV[2]: 1 if the request ends with the
-- last key. ARGV[3]: the packed number of arrivals of each; "" where it is one of each.
local UNKNOWN = string.rep("\0", SIZE)

local now, server = clock(ARGV[1])
local last = #KEYS
local counts = ARGV[3] ~= "" and ARGV[3]
-- MGET says nothing, rather than an error, of a key of a wrong type: it is overwritten.
local records = redis.call("MGET", unpack(KEYS))
for i = 1, last do
  local record, held = records[i], 0
  if not known(record, now) then
    held = record and #record == SIZE and take("<d", record, PENDING + 1) or 0
    record = nil
  end
  local count = counts and take("<I4", counts, 4 * i - 3) or 1
  local later, lasts = arrive(record, i == last and ARGV[2] == "1" and 1 or 0, now, count, held)
  if lasts then
    redis.call("SETRANGE", KEYS[i], "0", later)
  else
    redis.call("PSETEX", KEYS[i], (record or count > 1) and LIFE or BRIEF, later)
  end
  records[i] = record or UNKNOWN
end
return pack("<d", server) .. table.concat(records)
