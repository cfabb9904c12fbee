-- Gives a member the next entries of a stream, as many as fit, where a number of entries is a poor bound because one of them was
-- large. The first always fits if nothing else is outstanding.
-- KEYS: log, the group's hash
-- ARGV: group, consumer, most entries, most records, most bytes, 1 if the first must be given whatever its size
-- Answers {gap, XINFO GROUPS' answer, XREADGROUP's answer or false}, as the transaction in groups.py
local log, settings = KEYS[1], KEYS[2]
local group, consumer = ARGV[1], ARGV[2]
local entries_left, records_left, bytes_left, at_least_one = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
local LONGEST_STEP = 16

local gap, groups = redis.call('HGET', settings, 'gap'), redis.call('XINFO', 'GROUPS', log)
local state = group_state(log, group)
if not state or entries_left < 1 then
  return {gap, groups, false}
end
local fitting, from, step = 0, '(' .. state['last-delivered-id'], 1
repeat
  local entries = redis.call('XRANGE', log, from, '+', 'COUNT', math.min(step, entries_left - fitting))
  local more = #entries == step
  for _, entry in ipairs(entries) do
    local fields = as_table(entry[2])
    records_left = records_left - (tonumber(fields.n) or 1)
    bytes_left = bytes_left - #(fields.b or '')
    if (records_left < 0 or bytes_left < 0) and not (at_least_one and fitting == 0) then
      more = false
      break
    end
    fitting = fitting + 1
    from = '(' .. entry[1]
  end
  step = math.min(2 * step, LONGEST_STEP)
until not more or fitting >= entries_left
return {gap, groups, fitting > 0
  and redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', fitting, 'STREAMS', log, '>')}
