-- What the scripts of consumer groups share; scripts.py puts it between stream.lua and them. A group's log is a stream's, or a
-- partition of the lifecycle feed: nothing here looks into entries, but for the checksum in a dead letter's cursor.
--
-- A group's own hash holds deadline_ms, max_deliveries, gap (set while members must be told of lost history), and of entries that
-- were or will be delivered again, d:<id> and l:<id>: when they were delivered first, and last where Redis' idle time no longer
-- tells that, ms by Redis. It is also the name of the members' channel:
-- 'settled <id> …' and 'requeued <id> …' tell them what happened.

local function now_ms()
  return math.floor(now_us() / 1000)
end

local function as_table(flat)
  local fields = {}
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
  return fields
end

-- Redis' own view of a group, nil where there is none.
local function group_state(log, group)
  if redis.call('EXISTS', log) == 0 then
    return nil
  end
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', log)) do
    local state = as_table(flat)
    if state.name == group then
      return state
    end
  end
  return nil
end

local function renew(settings, log)
  expire_not_before(settings, math.max(redis.call('PTTL', log), 1))
end

-- An entry that is pending: {id, consumer, idle ms, deliveries}; nil where it is not.
local function pending_entry(log, group, id)
  return redis.call('XPENDING', log, group, id, id, 1)[1]
end

local function exists(log, id)
  return #redis.call('XRANGE', log, id, id) == 1
end

-- Redis tells how long ago a delivery was, and its clock is read a moment later: the time may come out a ms late.
local function last_delivery(settings, entry)
  return redis.call('HGET', settings, 'l:' .. entry[1]) or whole(now_ms() - entry[3])
end

-- Before Redis' idle time of an entry is set to something else than the time since its last delivery.
local function note_deliveries(settings, entry)
  local last = last_delivery(settings, entry)
  redis.call('HSETNX', settings, 'd:' .. entry[1], last)
  redis.call('HSET', settings, 'l:' .. entry[1], last)
end

local function settle(log, settings, group, id)
  redis.call('HDEL', settings, 'd:' .. id, 'l:' .. id)
  return redis.call('XACK', log, group, id)
end

-- Makes a pending entry one whose deadline has just passed, so that the next member that looks gets it.
local function requeue(log, settings, group, entry, deadline_ms, deliveries)
  note_deliveries(settings, entry)
  redis.call('XCLAIM', log, group, entry[2], 0, entry[1], 'IDLE', deadline_ms, 'RETRYCOUNT', deliveries, 'JUSTID')
end

-- Moves a pending entry to the dead letters, together with its acknowledgement.
--   letters: key, name (of the stream; '' for the feed), retention_ms, at_most
local function bury(log, settings, group, entry, letters, reason)
  local id = entry[1]
  local last = last_delivery(settings, entry)
  local found = redis.call('XRANGE', log, id, id)[1]
  local checksum = found and string.match(as_table(found[2]).i or '', '^%d+ (%x+) ') or NO_CHECKSUM
  local first = redis.call('HGET', settings, 'd:' .. id) or last
  redis.call('XADD', letters.key, 'MAXLEN', '~', letters.at_most, '*',
    'stream', letters.name, 'id', id, 'checksum', checksum, 'group', group, 'consumer', entry[2],
    'attempts', entry[4], 'reason', reason,
    'first', first, 'last', tonumber(last) < tonumber(first) and first or last)
  expire_not_before(letters.key, tonumber(letters.retention_ms))
  settle(log, settings, group, id)
end

local function tell_members(settings, what, ids)
  if #ids > 0 then
    wake_readers(settings, what .. ' ' .. table.concat(ids, ' '))
  end
end
