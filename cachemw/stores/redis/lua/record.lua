-- The packed record of one prefix: the fields of Prefix (core/reuse.py) in their order, and what
-- arrivals do to them. The only Lua that knows the fields; it is put in front of the scripts.
-- Python's half of the format is RECORD in commands.py, and the contract tests hold the two together.
local pack, take = struct.pack, struct.unpack
local FORMAT = "<I4ddddddI4dI4d"
local SIZE = struct.size(FORMAT)
local ENTRY = SIZE - struct.size("<dI4d") -- where the last fields, `expires`, `ttl`, `pending`, begin
local PENDING = SIZE - struct.size("<d")

local SHORT, LONG, KEEP = 300, 3600, 31 / 32
local FORGET = 7200
-- A key's time to live is set anew by the first arrival in every ten minutes, which is cheaper than by
-- each, and outlasts the record by as much. Milliseconds; a string, which the server need not format.
local TERM = 600
local LIFE = "7800000"
-- What was seen once is most of all there is, and seldom comes back after an hour: the second arrival sets it anew.
local BRIEF = "4200000"

-- A prefix that no arrival counted keeps only its `pending`, for as long as an answer may take to begin.
local WAIT = "60000"

-- Returns the time of an event, and the time now: both are the given one, or the server's own. A given time below
-- zero is the age of the event by the server's clock.
local function clock(given)
  local now = tonumber(given)
  if now and now >= 0 then
    return now, now
  end
  local time = redis.call("TIME")
  local server = time[1] + time[2] / 1000000
  return server + (now or 0), server
end

-- Returns the record of a prefix without arrivals that a request is about to write: its last field.
local function announced(pending)
  return string.rep("\0", PENDING) .. pending
end

-- Returns the record after so many arrivals at once, and whether its key's time to live still lasts. `held` is the
-- `pending` of a prefix whose record is unknown.
local function arrive(record, whole, now, count, held)
  local seen, last, gap, trials, hits, late_trials, late_hits, _, expires, ttl, pending
  local lasts = false
  if record then
    seen, last, _, trials, hits, late_trials, late_hits, _, expires, ttl, pending = take(FORMAT, record)
    gap = now > last and now - last or 0
    seen, trials, hits = seen + 1, trials * KEEP + 1, hits * KEEP
    if gap <= SHORT then
      hits = hits + 1
    else
      late_trials = late_trials * KEEP + 1
      late_hits = late_hits * KEEP + (gap <= LONG and 1 or 0)
    end
    lasts = seen > 2 and last % TERM + gap < TERM
    last = last + gap
  else
    seen, last, gap, trials, hits, late_trials, late_hits = 1, now, 0, 0, 0, 0, 0
    expires, ttl, pending = 0, 0, held
  end
  if count > 1 then
    local keep = KEEP ^ (count - 1)
    local more = (1 - keep) / (1 - KEEP)
    seen, gap, trials, hits = seen + count - 1, 0, trials * keep + more, hits * keep + more
  end
  return pack(FORMAT, seen, last, gap, trials, hits, late_trials, late_hits, whole, expires, ttl, pending),
    lasts
end

-- Returns true if a value is a record of arrivals that are not forgotten; false where its `last` is no number.
local function known(record, now)
  if not record or #record ~= SIZE then
    return false
  end
  local seen, last = take("<I4d", record)
  return seen > 0 and now - last <= FORGET
end
