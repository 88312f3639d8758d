-- Gives records back that the server lost, or that went on elsewhere while it was away: one with more
-- arrivals wins, and of its entry the later end.
-- KEYS: the prefixes. ARGV: the packed record of each.
for i, key in ipairs(KEYS) do
  local ours, record = ARGV[i], redis.pcall("GET", key)
  local entry = string.sub(ours, ENTRY + 1)
  if type(record) == "string" and #record == SIZE then
    if take("<d", record, ENTRY + 1) > take("<d", ours, ENTRY + 1) then
      entry = string.sub(record, ENTRY + 1)
    end
    if take("<I4", record) > take("<I4", ours) then
      ours = record
    end
  end
  redis.call("PSETEX", key, LIFE, string.sub(ours, 1, ENTRY) .. entry)
end
