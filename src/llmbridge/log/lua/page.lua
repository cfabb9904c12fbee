-- Reads entries up to a number of bytes, for logs with an entry so large that a number of entries is a poor bound.
-- KEYS: log
-- ARGV: first id, last id, most entries, most bytes of fragments (the first entry and the one after it always fit)
-- Answers as XRANGE
local log, to = KEYS[1], ARGV[2]
local most_entries, bytes_left = tonumber(ARGV[3]), tonumber(ARGV[4])
local LONGEST_STEP = 16

local page, from, step = {}, ARGV[1], 2
repeat
  local entries = redis.call('XRANGE', log, from, to, 'COUNT', step)
  for _, entry in ipairs(entries) do
    bytes_left = bytes_left - #decoded(entry).fields.b
    if #page >= 2 and bytes_left < 0 then
      return page
    end
    page[#page + 1] = entry
    from = '(' .. entry[1]
  end
  local more = #entries == step
  step = math.min(2 * step, LONGEST_STEP)
until not more or bytes_left < 0 or #page >= most_entries
return page
