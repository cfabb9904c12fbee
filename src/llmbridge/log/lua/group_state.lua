-- Tells the state of a group in one consistent view, as XINFO GROUPS, XINFO CONSUMERS and XPENDING would.
-- KEYS: log, the group's hash
-- ARGV: group, 'stream' or 'feed'
-- Answers {} where the log is absent, else {lag, {}} where it has no such group, else {lag, {pending, oldest pending in ms,
-- delivered sequence (0 for the feed), ack deadline in ms or false, max deliveries or false, {{consumer, pending, idle ms}, …}}}
local log, settings = KEYS[1], KEYS[2]
local group, is_stream = ARGV[1], ARGV[2] == 'stream'

local function number_of(id)
  return tonumber(string.match(id, '%-(%d+)$'))
end

-- A completion is no token.
local function stream_lag(delivered)
  local last = last_entry(log)
  return last.sequence - (last.fields.s and 1 or 0) - delivered
end

-- Events are numbered without holes. To a group that has got nothing, what was dropped before it came is no lag.
local function feed_lag(delivered)
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if not last then
    return 0
  end
  local before = delivered > 0 and delivered or number_of(redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1][1]) - 1
  return number_of(last[1]) - before
end

-- Each step jumps to the next entry that waits longer than all before it, so Redis walks through the pending entries once.
local function oldest_pending_ms()
  local oldest, from = -1, '-'
  while true do
    local found = redis.call('XPENDING', log, group, 'IDLE', whole(oldest + 1), from, '+', 1)[1]
    if not found then
      return math.max(oldest, 0)
    end
    oldest, from = found[3], '(' .. found[1]
  end
end

if redis.call('EXISTS', log) == 0 then
  return {}
end
local state = group_state(log, group)
local delivered = state and number_of(state['last-delivered-id']) or 0
local lag = whole(math.max(is_stream and stream_lag(delivered) or feed_lag(delivered), 0))
if not state then
  return {lag, {}}
end
local consumers = {}
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', log, group)) do
  local consumer = as_table(flat)
  consumers[#consumers + 1] = {consumer.name, consumer.pending, consumer.idle}
end
local known = redis.call('HMGET', settings, 'deadline_ms', 'max_deliveries')
return {lag, {
  state.pending, oldest_pending_ms(), is_stream and whole(delivered) or '0', known[1], known[2], consumers,
}}
