-- Deletes a group with all it remembers, and tells its members.
-- KEYS: log, the group's hash
-- ARGV: group
-- Answers how many groups were deleted, 0 or 1
local log, settings = KEYS[1], KEYS[2]
local group = ARGV[1]

local deleted = redis.call('EXISTS', log) == 1 and redis.call('XGROUP', 'DESTROY', log, group) or 0
redis.call('DEL', settings)
wake_readers(settings, 'deleted')
return deleted
