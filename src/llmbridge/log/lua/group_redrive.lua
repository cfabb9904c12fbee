-- Gives a dead letter back to its group, as an entry whose deadline has passed and that was never delivered.
-- KEYS: log, the group's hash, dead letters
-- ARGV: the letter's id, group, the entry's id, the default ack deadline in ms
-- Answers 1; or 0, with the letter left where it is, where the letter, the entry or the group is gone. A group that was deleted
-- and made anew is another one: where it has the entry pending, or has yet to read it, that is its own affair.
local log, settings, letters = KEYS[1], KEYS[2], KEYS[3]
local letter, group, id, default_deadline_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local found = redis.call('XRANGE', letters, letter, letter)[1]
local state = group_state(log, group)
-- Claiming by force what is no longer in the log makes Redis 6.2 keep a pending entry that is nothing.
if not found or not state or not exists(log, id) or pending_entry(log, group, id) then
  return 0
end
if #redis.call('XRANGE', log, id, state['last-delivered-id'], 'COUNT', 1) == 0 then
  return 0
end
local fields = as_table(found[2])
local deadline_ms = redis.call('HGET', settings, 'deadline_ms') or default_deadline_ms
redis.call('XCLAIM', log, group, fields.consumer, 0, id, 'IDLE', deadline_ms, 'RETRYCOUNT', 0, 'FORCE', 'JUSTID')
redis.call('HSET', settings, 'd:' .. id, fields.first, 'l:' .. id, fields.last)
renew(settings, log)
redis.call('XDEL', letters, letter)
tell_members(settings, 'requeued', {id})
return 1
