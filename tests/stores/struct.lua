-- The part of Redis's struct library that the scripts use (little-endian I4 and d), for fakeredis,
-- which has none of it.
local struct = {}

local function pack_integer(number)
  local bytes = {}
  for i = 1, 4 do
    bytes[i] = number % 256
    number = math.floor(number / 256)
  end
  return string.char(unpack(bytes))
end

local function take_integer(text, at)
  local a, b, c, d = text:byte(at, at + 3)
  return a + b * 2 ^ 8 + c * 2 ^ 16 + d * 2 ^ 24
end

local function pack_double(number)
  if number == 0 then
    return string.rep("\0", 8)
  end
  local sign = number < 0 and 2 ^ 31 or 0
  local fraction, exponent = math.frexp(math.abs(number))
  local bits = (fraction * 2 - 1) * 2 ^ 52
  return pack_integer(bits % 2 ^ 32)
    .. pack_integer(sign + (exponent + 1022) * 2 ^ 20 + math.floor(bits / 2 ^ 32))
end

local function take_double(text, at)
  local low, high = take_integer(text, at), take_integer(text, at + 4)
  local sign = high >= 2 ^ 31 and -1 or 1
  high = high % 2 ^ 31
  local exponent, bits = math.floor(high / 2 ^ 20), high % 2 ^ 20 * 2 ^ 32 + low
  if exponent == 0 then
    return 0
  elseif exponent == 2047 then
    return bits == 0 and sign * math.huge or 0 / 0
  end
  return sign * math.ldexp(1 + bits / 2 ^ 52, exponent - 1023)
end

function struct.pack(format, ...)
  local parts = {}
  for kind in format:gmatch("[Id]") do
    local value = select(#parts + 1, ...)
    parts[#parts + 1] = kind == "d" and pack_double(value) or pack_integer(value)
  end
  return table.concat(parts)
end

function struct.unpack(format, text, at)
  at = at or 1
  local values = {}
  for kind in format:gmatch("[Id]") do
    values[#values + 1] = kind == "d" and take_double(text, at) or take_integer(text, at)
    at = at + (kind == "d" and 8 or 4)
  end
  return unpack(values)
end

function struct.size(format)
  local size = 0
  for kind in format:gmatch("[Id]") do
    size = size + (kind == "d" and 8 or 4)
  end
  return size
end

return struct
