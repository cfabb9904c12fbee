-- Deletes a stream and every mention of it, and wakes its readers so that they see it gone.
-- KEYS: log, open index, session index, kept-alive times
-- ARGV: open member, session member
-- Answers how many streams were deleted, 0 or 1
local deleted = redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('HDEL', KEYS[4], ARGV[1])
wake_readers(KEYS[1], '')
return deleted
