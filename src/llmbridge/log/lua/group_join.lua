-- Makes sure that a consumer group exists, from the beginning of its log, and that its settings are those asked for.
-- KEYS: log, the group's hash
-- ARGV: group, ack deadline in ms, max deliveries (0: as it is, or the default), defaults of both, how to treat history that no
--       member ever got and that is gone ('refuse', 'accept', or 'ignore' for the feed, where gaps are counted instead), ms after
--       which idle consumers with nothing pending are forgotten; the incarnation that the log must have (0: any)
-- Answers {'absent'}; {'restarted', incarnation, sequence before the earliest record} where it has another one;
-- {'differs', ack deadline, max deliveries}; {'trimmed', incarnation, sequence before the earliest record};
-- or {'joined', ack deadline, max deliveries, incarnation ('' for the feed), how many entries are pending}
local log, settings = KEYS[1], KEYS[2]
local group, history, forget_ms, known_incarnation = ARGV[1], ARGV[6], tonumber(ARGV[7]), ARGV[8]
local wanted = {deadline_ms = tonumber(ARGV[2]), max_deliveries = tonumber(ARGV[3])}
local default = {deadline_ms = tonumber(ARGV[4]), max_deliveries = tonumber(ARGV[5])}

if redis.call('EXISTS', log) == 0 then
  return {'absent'}
end
if known_incarnation ~= '0' then
  local last = last_entry(log)
  if last.incarnation ~= known_incarnation then
    return {'restarted', last.incarnation, whole(first_of(decoded(redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1])) - 1)}
  end
end
local state = group_state(log, group)
if not state then
  -- What is left of a group that went with an earlier stream of this name is not this one's.
  redis.call('DEL', settings)
end
local known = {}
for name, value in pairs(wanted) do
  local stored = tonumber(redis.call('HGET', settings, name) or 0)
  known[name] = stored > 0 and stored or value > 0 and value or default[name]
end
if (wanted.deadline_ms > 0 and wanted.deadline_ms ~= known.deadline_ms)
  or (wanted.max_deliveries > 0 and wanted.max_deliveries ~= known.max_deliveries) then
  return {'differs', whole(known.deadline_ms), whole(known.max_deliveries)}
end

local incarnation = ''
local from = '0'
if history ~= 'ignore' then
  local last, oldest = last_entry(log), decoded(redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1])
  local before_earliest = first_of(oldest) - 1
  local delivered = state and tonumber(string.match(state['last-delivered-id'], '%-(%d+)$')) or 0
  incarnation = last.incarnation
  if redis.call('HEXISTS', settings, 'gap') == 1 or before_earliest > delivered then
    if history == 'refuse' then
      return {'trimmed', incarnation, whole(before_earliest)}
    end
    redis.call('HDEL', settings, 'gap')
  end
  from = incarnation .. '-' .. whole(math.max(before_earliest, delivered))
  if state and before_earliest > delivered then
    redis.call('XGROUP', 'SETID', log, group, from)
  end
elseif not state then
  -- Just before the oldest event, so that what is dropped from now on can be counted, and nothing that went before.
  local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  local ms, n = string.match(oldest and oldest[1] or '0-0', '^(%d+)%-(%d+)$')
  from = not oldest and '$' or n ~= '0' and ms .. '-' .. whole(tonumber(n) - 1) or from
end
if not state then
  redis.call('XGROUP', 'CREATE', log, group, from)
end
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', log, group)) do
  local consumer = as_table(flat)
  if consumer.pending == 0 and consumer.idle >= forget_ms then
    redis.call('XGROUP', 'DELCONSUMER', log, group, consumer.name)
  end
end
redis.call('HSET', settings, 'deadline_ms', whole(known.deadline_ms), 'max_deliveries', whole(known.max_deliveries))
renew(settings, log)
return {'joined', whole(known.deadline_ms), whole(known.max_deliveries), incarnation, state and state.pending or 0}
