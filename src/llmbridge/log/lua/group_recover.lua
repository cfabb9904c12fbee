-- Gives a member entries whose deadline has passed. Those delivered too often, or gone from the log, become dead letters.
-- KEYS: log, the group's hash, dead letters
-- ARGV: group, consumer, most entries, most records, most bytes, 1 if the first must be given whatever its size; of the dead
--       letters: stream name, retention in ms, at most how many; the default ack deadline in ms and max deliveries
-- Answers {{id, {field, value, …}, delivery attempt}, …}
local log, settings = KEYS[1], KEYS[2]
local group, consumer = ARGV[1], ARGV[2]
local entries_left, records_left, bytes_left, at_least_one = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
local letters = {key = KEYS[3], name = ARGV[7], retention_ms = ARGV[8], at_most = ARGV[9]}
-- Looking at more than can be given lets hopeless ones not block the others.
local HOPELESS_AT_ONCE = 64

if not group_state(log, group) then
  return redis.error_reply('NOGROUP no such group')
end
local known = redis.call('HMGET', settings, 'deadline_ms', 'max_deliveries')
local deadline_ms, max_deliveries = known[1] or ARGV[10], tonumber(known[2] or ARGV[11])
local given, buried = {}, {}
for _, entry in ipairs(redis.call('XPENDING', log, group, 'IDLE', deadline_ms, '-', '+', entries_left + HOPELESS_AT_ONCE)) do
  local id, deliveries = entry[1], entry[4]
  local found = redis.call('XRANGE', log, id, id)[1]
  if not found or deliveries >= max_deliveries then
    bury(log, settings, group, entry, letters, found and 'max_deliveries' or 'trimmed')
    buried[#buried + 1] = id
  elseif #given < entries_left then
    local fields = as_table(found[2])
    local records, size = tonumber(fields.n) or 1, #(fields.b or '')
    if (records <= records_left and size <= bytes_left) or (at_least_one and #given == 0) then
      note_deliveries(settings, entry)
      redis.call('HDEL', settings, 'l:' .. id)
      redis.call('XCLAIM', log, group, consumer, 0, id, 'RETRYCOUNT', deliveries + 1, 'JUSTID')
      given[#given + 1] = {id, found[2], deliveries + 1}
      records_left, bytes_left = records_left - records, bytes_left - size
    else
      -- In order: a large one must not be passed over for ever.
      entries_left = #given
    end
  end
end
tell_members(settings, 'settled', buried)
renew(settings, log)
return given
