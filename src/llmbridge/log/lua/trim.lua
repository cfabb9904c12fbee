-- Drops a stream's oldest entries; the last one always stays.
-- KEYS: log
-- ARGV: tokens to keep (0: not given), then the cursor of the last record to drop: incarnation, sequence, checksum
-- Answers {} when absent, {'restarted', earliest}, {'lost', earliest} or {'rewritten', earliest} where the cursor is not of this log,
-- else {'trimmed', first sequence, entries dropped}; earliest is incarnation and sequence before the earliest record
local log = KEYS[1]
local keep_tokens, incarnation, through, checksum = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4]

local function entry_from(id)
  return decoded(redis.call('XRANGE', log, id, '+', 'COUNT', 1)[1])
end

local last = last_entry(log)
if not last then
  return {}
end

local function not_of_this_log(why)
  return {why, last.incarnation, whole(first_of(entry_from('-')) - 1)}
end

local floor
if keep_tokens > 0 then
  local last_token = last.sequence - (last.fields.s and 1 or 0)
  floor = last_token - keep_tokens + 1
elseif incarnation ~= last.incarnation then
  return not_of_this_log('restarted')
elseif through > last.sequence then
  return not_of_this_log('lost')
else
  local holder = entry_from(last.incarnation .. '-' .. whole(through))
  -- 00000000 is the checksum of a cursor whose entry was trimmed away, or that stands before the earliest record.
  if first_of(holder) <= through and checksum ~= holder.fields.c and checksum ~= NO_CHECKSUM then
    return not_of_this_log('rewritten')
  end
  floor = through + 1
end
floor = math.min(floor, last.sequence)
local dropped = 0
if floor > 0 then
  -- The header goes too, but is no entry that anybody made.
  local header = entry_from('-').fields.n == '0' and 1 or 0
  dropped = redis.call('XTRIM', log, 'MINID', last.incarnation .. '-' .. whole(floor)) - header
end
return {'trimmed', whole(first_of(entry_from('-'))), dropped}
