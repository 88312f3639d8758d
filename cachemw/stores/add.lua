-- Adds to the sums of a table; one that can't take its amount is reported once the others have theirs.
-- KEYS[1]: the table. ARGV[1]: milliseconds to keep it. ARGV[2...]: name, amount, name, amount...
local key = KEYS[1]
if redis.call("TYPE", key).ok ~= "hash" then
  redis.call("DEL", key)
end
local failure
for i = 2, #ARGV, 2 do
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
