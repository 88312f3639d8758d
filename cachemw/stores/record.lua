-- The packed record of one prefix: the fields of Prefix (core/reuse.py) in their order, and what an
-- arrival does to them. The only Lua that knows the fields; it is put in front of the scripts.
-- Python's half of the format is RECORD in commands.py, and the contract tests hold the two together.
local pack, take = struct.pack, struct.unpack
local FORMAT = "<I4ddddddI4ddI4d"
local SIZE = struct.size(FORMAT)
local ENTRY = SIZE - struct.size("<dI4d") -- where the last fields, `expires`, `ttl`, `pending`, begin
local PENDING = SIZE - struct.size("<d")

local SHORT, LONG, KEEP = 300, 3600, 31 / 32
local FORGET = 7200
-- A key's time to live is set anew by the first arrival in every ten minutes, which is cheaper than by
-- each, and outlasts the record by as much. Milliseconds; a string, which the server need not format.
local TERM = 600
local LIFE = "7800000"

local function first(child, now)
  return pack(FORMAT, 1, now, 0, 0, 0, 0, 0, child, 0, 0, 0, 0)
end

-- Returns the record after one more arrival, and whether its key's time to live still lasts; nil for
-- a record that is as good as unknown, which one is whose `last` is no number.
local function arrive(record, child, now)
  local seen, last, _, trials, hits, late_trials, late_hits, old_child, left, expires, ttl, pending =
    take(FORMAT, record)
  if not (now - last <= FORGET) then
    return nil
  end
  local gap = now > last and now - last or 0
  hits = hits * KEEP
  if gap <= SHORT then
    hits = hits + 1
  else
    late_trials = late_trials * KEEP + 1
    late_hits = late_hits * KEEP + (gap <= LONG and 1 or 0)
  end
  left = left * KEEP + (child == old_child and 0 or 1)
  local later = pack(FORMAT, seen + 1, last + gap, gap, trials * KEEP + 1, hits,
    late_trials, late_hits, child, left, expires, ttl, pending)
  return later, last % TERM + gap < TERM
end
