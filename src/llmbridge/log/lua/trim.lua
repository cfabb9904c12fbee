-- Drops a stream's oldest entries; the last one always stays.
-- KEYS: log
-- ARGV: tokens to keep (0: not given), then incarnation and sequence of the last record to drop
-- Answers {} when absent, {'restarted', earliest} or {'lost', earliest} where the cursor is not of this log, else {'trimmed', first
-- sequence, entries dropped}; earliest is incarnation and sequence before the earliest record
local log = KEYS[1]
local keep_tokens, incarnation, through = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])

local function first_sequence()
  local earliest = decoded(redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1])
  return earliest.sequence - tonumber(earliest.fields.n) + 1
end

local last = last_entry(log)
if not last then
  return {}
end
local floor
if keep_tokens > 0 then
  local last_token = last.sequence - (last.fields.s and 1 or 0)
  floor = last_token - keep_tokens + 1
elseif incarnation ~= last.incarnation then
  return {'restarted', last.incarnation, whole(first_sequence() - 1)}
elseif through > last.sequence then
  return {'lost', last.incarnation, whole(first_sequence() - 1)}
else
  floor = through + 1
end
floor = math.min(floor, last.sequence)
local dropped = 0
if floor > 0 then
  dropped = redis.call('XTRIM', log, 'MINID', last.incarnation .. '-' .. whole(floor))
end
return {'trimmed', whole(first_sequence()), dropped}
