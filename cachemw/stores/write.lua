-- Sets what the provider holds for each prefix: a later `expires` wins, 0 always wins, and a prefix
-- without a record is left out. SETRANGE keeps the key's time to live.
-- KEYS: the prefixes. ARGV: for each, its `expires` and `ttl` packed as the record ends with them.
for i, key in ipairs(KEYS) do
  local record = redis.pcall("GET", key)
  if type(record) == "string" and #record == SIZE then
    local expires = take("<d", ARGV[i])
    if expires == 0 or expires > take("<d", record, ENTRY + 1) then
      redis.call("SETRANGE", key, ENTRY, ARGV[i])
    end
  end
end
