-- Settles deliveries: acknowledges, extends, requeues or buries them, or takes them back as never delivered.
-- KEYS: log, the group's hash, dead letters
-- ARGV: verb (acknowledge, extend, requeue, undeliver, bury), group, reason; of the dead letters: stream name, retention in ms, at
--       most how many; the default ack deadline in ms; then for each an id and its delivery attempt
-- Answers {'absent'} where there is no such group, else for each 1, or 0 where that delivery is not pending any more
local log, settings = KEYS[1], KEYS[2]
local verb, group, reason = ARGV[1], ARGV[2], ARGV[3]
local letters = {key = KEYS[3], name = ARGV[4], retention_ms = ARGV[5], at_most = ARGV[6]}
local FIRST_ID = 8

if not group_state(log, group) then
  return {'absent'}
end
local deadline_ms = redis.call('HGET', settings, 'deadline_ms') or ARGV[7]
local results, settled, requeued = {}, {}, {}

local function work_on(entry)
  local id = entry[1]
  if verb == 'bury' then
    bury(log, settings, group, entry, letters, reason)
  elseif not exists(log, id) then
    -- Redis 6.2 keeps entries pending that were trimmed away; claiming them drops or keeps them, by version.
    bury(log, settings, group, entry, letters, 'trimmed')
    settled[#settled + 1] = id
    return 0
  elseif verb == 'extend' then
    note_deliveries(settings, entry)
    redis.call('XCLAIM', log, group, entry[2], 0, id, 'IDLE', 0, 'RETRYCOUNT', entry[4], 'JUSTID')
    return 1
  elseif verb == 'requeue' then
    requeue(log, settings, group, entry, deadline_ms, entry[4])
  else
    requeue(log, settings, group, entry, deadline_ms, entry[4] - 1)
  end
  local told = verb == 'bury' and settled or requeued
  told[#told + 1] = id
  return 1
end

for i = FIRST_ID, #ARGV, 2 do
  local id, attempt = ARGV[i], tonumber(ARGV[i + 1])
  local done = 0
  if verb == 'acknowledge' then
    done = settle(log, settings, group, id)
    if done == 1 then
      settled[#settled + 1] = id
    end
  else
    local entry = pending_entry(log, group, id)
    -- Delivered again since, it is somebody else's.
    if entry and entry[4] == attempt then
      done = work_on(entry)
    end
  end
  results[#results + 1] = done
end
tell_members(settings, 'settled', settled)
tell_members(settings, 'requeued', requeued)
renew(settings, log)
return results
