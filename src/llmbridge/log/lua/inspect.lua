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
-- The header is no entry that anybody made.
local header = earliest.fields.n == '0' and 1 or 0
return {
  last.incarnation, whole(first_of(earliest)), whole(last.sequence), fields.c, fields.t,
  fields.e or '0', fields.f or '', fields.s or '',
  redis.call('XLEN', log) - header, redis.call('MEMORY', 'USAGE', log), redis.call('PTTL', log),
}
