-- Adds to the sums of a table, once for each batch; an amount that can't be added is reported once the
-- others are.
-- KEYS[1]: the table, KEYS[2]: the last batch of each sender. ARGV[1]: milliseconds to keep both.
-- ARGV[2]: the sender, ARGV[3]: the batch's number, which rises. ARGV[4...]: name, amount, name, amount...
if tonumber(redis.call("HGET", KEYS[2], ARGV[2]) or 0) >= tonumber(ARGV[3]) then
  return
end
redis.call("HSET", KEYS[2], ARGV[2], ARGV[3])
redis.call("PEXPIRE", KEYS[2], ARGV[1])
local key = KEYS[1]
if redis.call("TYPE", key).ok ~= "hash" then
  redis.call("DEL", key)
end
local failure
for i = 4, #ARGV, 2 do
  local reply = redis.pcall("HINCRBY", key, ARGV[i], ARGV[i + 1])
  if type(reply) == "table" and reply.err then
    if reply.err:find("hash value is not an integer", 1, true) then
      redis.call("HSET", key, ARGV[i], ARGV[i + 1])
    else
      failure = reply
    end
  end
end
redis.call("PEXPIRE", key, ARGV[1])
return failure
