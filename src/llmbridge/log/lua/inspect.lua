-- Tells a stream's state in one consistent view.
-- KEYS: log
-- Answers {} when absent, else {incarnation, first sequence, last sequence, checksum, append time in ms, epoch, finish reason, sealer,
-- entries, bytes, time to live in ms}
local log = KEYS[1]
local last = last_entry(log)
if not last then
  return {}
end
local earliest = decoded(redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1])
local fields = last.fields
return {
  last.incarnation, whole(earliest.sequence - tonumber(earliest.fields.n) + 1), whole(last.sequence), fields.h, fields.t,
  fields.e or '0', fields.f or '', fields.s or '',
  redis.call('XLEN', log), redis.call('MEMORY', 'USAGE', log), redis.call('PTTL', log),
}
