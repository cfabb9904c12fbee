-- Seals an open stream on behalf of the bridge; the producer is carried forward.
-- KEYS: log, open index, session index, kept-alive times, lifecycle feed
-- ARGV: open member, session member, retention_ms, max_length, wake_bytes, sealer, finish reason, checksum, fragment,
--       expected last id ('' for any), silence in ms that must have passed (0 for none)
-- Answers {'sealed_now' or 'sealed', incarnation, sequence, checksum, finish reason, sealer}, or {'alive'} where the stream is
-- not as expected, or was appended to or kept alive within that silence.
local keys = {
  log = KEYS[1], open_index = KEYS[2], session_index = KEYS[3], feed = KEYS[5],
  open_member = ARGV[1], session_member = ARGV[2],
}
local kept_alive = KEYS[4]
local sealer, finish_reason, checksum, fragment = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local expected_id, silence_ms = ARGV[10], tonumber(ARGV[11])

local last = last_entry(keys.log)
if last and last.fields.s then
  wake_readers_again(keys.log)
  return {'sealed', last.incarnation, whole(last.sequence), last.fields.c, last.fields.f, last.fields.s}
end
if expected_id ~= '' then
  if not last or last.incarnation .. '-' .. whole(last.sequence) ~= expected_id then
    return {'alive'}
  end
  local heard_ms = math.max(tonumber(last.fields.t), tonumber(redis.call('HGET', kept_alive, keys.open_member) or 0))
  if now_us() / 1000 - heard_ms < silence_ms then
    return {'alive'}
  end
end
local sequence = (last and last.sequence or 0) + 1
local incarnation, log_checksum = store(keys, last, {
  count = 1, fragment = fragment, checksum = checksum, sequence = sequence,
  seal = {by = sealer, finish_reason = finish_reason, completion = fragment},
}, {retention_ms = ARGV[3], max_length = ARGV[4], wake_bytes = tonumber(ARGV[5])})
redis.call('HDEL', kept_alive, keys.open_member)
tell_producers(keys.log, 'completed', finish_reason .. ' ' .. sealer)
return {'sealed_now', incarnation, whole(sequence), log_checksum, finish_reason, sealer}
