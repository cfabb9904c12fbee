-- Notes that a silent producer is alive, and renews its stream's expiry.
-- KEYS: log, kept-alive times, open index
-- ARGV: open member, epoch, producer id, default retention_ms
-- Answers {'kept'}, {'absent'}, {'fenced', epoch} or {'completed', finish reason, sealer}
local log, kept_alive, open_index = KEYS[1], KEYS[2], KEYS[3]
local open_member, epoch, id, retention_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

local last = last_entry(log)
if not last then
  return {'absent'}
end
local fields = last.fields
if fields.s then
  return {'completed', fields.f, fields.s}
end
if fields.e then
  local last_epoch = tonumber(fields.e)
  -- A higher epoch is one that is about to take over.
  if epoch < last_epoch or (epoch == last_epoch and id ~= fields.p) then
    return {'fenced', fields.e}
  end
end
-- Nobody tells this hash when a stream is sealed: each call looks at two others, so that it stays as long as what is open.
for _, member in ipairs(redis.call('HRANDFIELD', kept_alive, 2)) do
  if not redis.call('ZSCORE', open_index, member) then
    redis.call('HDEL', kept_alive, member)
  end
end
local ttl_ms = tonumber(fields.r or retention_ms)
redis.call('HSET', kept_alive, open_member, whole(math.floor(now_us() / 1000)))
expire_not_before(kept_alive, ttl_ms)
expire_log(log, ttl_ms, now_us() / 1000)
return {'kept'}
