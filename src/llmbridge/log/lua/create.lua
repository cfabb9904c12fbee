-- Creates an empty stream: its header entry, with sequence 0 and no records.
-- KEYS: log, open index, session index, lifecycle feed
-- ARGV: open member, session member, retention_ms, max_length (both '' for the defaults), default retention_ms
-- Answers {'created', incarnation} or {'exists'}
local keys = {
  log = KEYS[1], open_index = KEYS[2], session_index = KEYS[3], feed = KEYS[4],
  open_member = ARGV[1], session_member = ARGV[2],
}
if redis.call('EXISTS', keys.log) == 1 then
  return {'exists'}
end
local incarnation = store(keys, nil, {
  count = 0,
  fragment = '',
  checksum = NO_CHECKSUM,
  sequence = 0,
  retention_ms = ARGV[3] ~= '' and ARGV[3] or nil,
  max_length = ARGV[4] ~= '' and ARGV[4] or nil,
}, {retention_ms = ARGV[5], max_length = 0, wake_bytes = 0})
return {'created', incarnation}
