-- Notes that members of a group must be told of lost history, until one accepts it.
-- KEYS: log, the group's hash
-- ARGV: group
local log, settings, group = KEYS[1], KEYS[2], ARGV[1]

if group_state(log, group) then
  redis.call('HSET', settings, 'gap', 1)
  renew(settings, log)
end
return 1
