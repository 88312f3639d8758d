-- Sets what the provider holds for each prefix: a later `expires` wins, 0 always wins, the last `pending`
-- wins. A prefix without a record keeps only its `pending`. SETRANGE keeps the key's time to live.
-- KEYS: the prefixes. ARGV: for each, its `expires`, `ttl`, `pending` packed as the record ends with them.
for i, key in ipairs(KEYS) do
  local record = redis.pcall("GET", key)
  local valid = type(record) == "string" and #record == SIZE
  local pending = string.sub(ARGV[i], PENDING - ENTRY + 1)
  if valid and take("<I4", record) > 0 then
    local expires = take("<d", ARGV[i])
    if expires == 0 or expires > take("<d", record, ENTRY + 1) then
      redis.call("SETRANGE", key, ENTRY, ARGV[i])
    else
      redis.call("SETRANGE", key, PENDING, pending)
    end
  elseif take("<d", pending) > 0 then
    redis.call("PSETEX", key, WAIT, announced(pending))
  elseif valid then
    redis.call("DEL", key)
  end
end
