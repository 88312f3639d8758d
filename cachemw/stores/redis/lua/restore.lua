-- Gives records back that the server lost, or that went on elsewhere while it was away: one with more
-- arrivals wins, and of its entry the later end, unless ours was found to be dead. What is pending is the
-- server's.
-- KEYS: the prefixes. ARGV: the packed record of each.
for i, key in ipairs(KEYS) do
  local ours, record = ARGV[i], redis.pcall("GET", key)
  local entry, pending = string.sub(ours, ENTRY + 1, PENDING), string.sub(ours, PENDING + 1)
  if type(record) == "string" and #record == SIZE then
    local expires, ttl = take("<dI4", ours, ENTRY + 1)
    if take("<d", record, ENTRY + 1) > expires and not (expires == 0 and ttl > 0) then
      entry = string.sub(record, ENTRY + 1, PENDING)
    end
    pending = string.sub(record, PENDING + 1)
    if take("<I4", record) > take("<I4", ours) then
      ours = record
    end
  end
  redis.call("PSETEX", key, LIFE, string.sub(ours, 1, ENTRY) .. entry .. pending)
end
