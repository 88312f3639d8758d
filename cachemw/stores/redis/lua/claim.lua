-- Sets the `pending` of each prefix and says 1; where the provider holds one of them, or a request is just
-- writing one, changes nothing and says 0. A prefix without a record keeps only its `pending`.
-- KEYS: the prefixes. ARGV[1]: the time. ARGV[2...]: for each, its packed `pending`.
local now = tonumber(ARGV[1])
local records = redis.call("MGET", unpack(KEYS))
for i = 1, #KEYS do
  local record = records[i]
  if record and #record == SIZE then
    if take("<d", record, ENTRY + 1) > now or take("<d", record, PENDING + 1) > now then
      return 0
    end
  else
    records[i] = false
  end
end
for i, key in ipairs(KEYS) do
  if records[i] then
    redis.call("SETRANGE", key, PENDING, ARGV[i + 1])
  else
    redis.call("PSETEX", key, WAIT, announced(ARGV[i + 1]))
  end
end
return 1
