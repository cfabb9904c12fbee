-- Has Redis forget a member that left, if it has nothing pending.
-- KEYS: log
-- ARGV: group, consumer
-- Answers 1 if it is forgotten
local log, group, consumer = KEYS[1], ARGV[1], ARGV[2]

if group_state(log, group) and #redis.call('XPENDING', log, group, '-', '+', 1, consumer) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', log, group, consumer)
  return 1
end
return 0
