-- What every script knows of a stream's log. scripts.py puts it before each of them, and before it one of wake_*.lua.
--
-- An entry's id is <incarnation>-<sequence of its last record>. Its fields:
--   n number of records   b the fragment, never opened here   i what only scripts and the last entry of a read need, in one field,
--   since every field costs each reader: '<t append time, ms by Redis> <c checksum of the log up to here> <m largest b so far> <k largest n
--   so far> <h checksum of b>', from the first token on with ' <e producer's epoch> <p its id>'
--   s sealer, f finish reason (last entry of a sealed stream)   r retention in ms, l length limit in tokens (where CreateStream set them)
-- What concerns the whole stream (c, m, k, e, p, r, l) is carried from entry to entry, so that the last one tells everything.

-- Stands for an entry without records (the header), or one that is no longer there.
local NO_CHECKSUM = '00000000'

-- Lua's tostring turns large numbers into 1.7e+15.
local function whole(number)
  return string.format('%.0f', number)
end

-- One time for all that a script does.
local began_us
local function now_us()
  if not began_us then
    local time = redis.call('TIME')
    began_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
  end
  return began_us
end

local function decoded(entry)
  local incarnation, sequence = string.match(entry[1], '^(%d+)%-(%d+)$')
  local fields = {}
  for i = 1, #entry[2], 2 do
    fields[entry[2][i]] = entry[2][i + 1]
  end
  local producer
  fields.t, fields.c, fields.m, fields.k, fields.h, producer = string.match(fields.i, '^(%d+) (%x+) (%d+) (%d+) (%x+)(.*)$')
  fields.e, fields.p = string.match(producer, '^ (%d+) (.*)$')
  return {incarnation = incarnation, sequence = tonumber(sequence), fields = fields}
end

-- The sequence of an entry's first record; the header, which has none, stands before record 1.
local function first_of(entry)
  return entry.sequence - tonumber(entry.fields.n) + 1
end

local function last_entry(log)
  local found = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  return found and decoded(found)
end

-- An index must live as long as the longest-lived stream it names. Appends renew the stream's expiry only; the sweeps
-- renew the indexes', every 10 s at the latest, and this bridges the time between two of them and some that fail.
local INDEX_OUTLIVES_MS = 600000

local function expire_not_before(key, ttl_ms)
  if redis.call('PTTL', key) < ttl_ms + INDEX_OUTLIVES_MS then
    redis.call('PEXPIRE', key, whole(ttl_ms + INDEX_OUTLIVES_MS))
  end
end

-- A stream lives for its retention after its last entry; where that is long, up to a minute longer, so that it need be renewed
-- only by the first append of each minute. What is renewed in a minute lasts for all that is appended in it.
local LONG_MS, RENEWAL_MS = 3600000, 60000

local function expire_log(log, retention_ms, now_ms, last_ms)
  if retention_ms < LONG_MS then
    redis.call('PEXPIRE', log, whole(retention_ms))
  elseif not last_ms or math.floor(now_ms / RENEWAL_MS) ~= math.floor(last_ms / RENEWAL_MS) then
    redis.call('PEXPIRE', log, whole(retention_ms + RENEWAL_MS))
  end
end

-- Each creation looks at the session's oldest stream, the likeliest to be gone, and at two others, since the oldest may be
-- kept for long: so the index of a session that never rests names at most about as many dead streams as living ones.
local function forget_expired(keys)
  local log_prefix = string.sub(keys.log, 1, #keys.log - #keys.session_member)
  local members = redis.call('ZRANDMEMBER', keys.session_index, 2)
  members[#members + 1] = redis.call('ZRANGE', keys.session_index, 0, 0)[1]
  for _, member in ipairs(members) do
    -- While Redis Cluster moves the slot it does not say; then it is left for another time.
    if redis.pcall('EXISTS', log_prefix .. member) == 0 then
      redis.call('ZREM', keys.session_index, member)
    end
  end
end

-- Beyond its age an event goes, but not all at once after a long rest.
local OLD_EVENTS_AT_ONCE = 16

-- Records what happened to a stream in its partition's part of the lifecycle feed (see feed.py for the events' fields).
-- An event's id is <ms>-<n>: n numbers the partition's events without holes, so that whoever was away too long can count what
-- is gone. The ms never fall, though Redis' clock may, so that ids only grow and the age of what comes first is the largest.
local function record(keys, now_ms, keep_ms, expire_ms, events)
  local feed, last_ms, n, first_ms = keys.feed, 0, 0, nil
  if redis.call('EXISTS', feed) == 1 then
    local info = redis.call('XINFO', 'STREAM', feed)
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then
        last_ms, n = string.match(info[i + 1], '^(%d+)%-(%d+)$')
        last_ms, n = tonumber(last_ms), tonumber(n)
      elseif info[i] == 'first-entry' and info[i + 1] then
        first_ms = tonumber(string.match(info[i + 1][1], '^%d+'))
      end
    end
  end
  local ms = whole(math.max(tonumber(now_ms), last_ms))
  for i, event in ipairs(events) do
    redis.call('XADD', feed, ms .. '-' .. whole(n + i), unpack(event))
  end
  expire_not_before(feed, expire_ms)
  local keep_from = tonumber(now_ms) - keep_ms
  if first_ms and first_ms < keep_from then
    local old = redis.call('XRANGE', feed, '-', '(' .. whole(keep_from) .. '-0', 'COUNT', OLD_EVENTS_AT_ONCE + 1)
    redis.call('XTRIM', feed, 'MINID', #old > OLD_EVENTS_AT_ONCE and old[#old][1] or whole(keep_from) .. '-0')
  end
  wake_readers(feed, '')
end

-- Tells producers that their stream was sealed or taken over, see ends.py: 'completed <open member> <finish reason> <sealer>' or
-- 'fenced <open member> <epoch> <producer id>'.
local function tell_producers(log, what, how)
  local prefix, tag, open_member = string.match(log, '^(.*):stream:({%d+}):(.*)$')
  wake_readers(prefix .. ':ends:' .. tag, what .. ' ' .. open_member .. ' ' .. how)
end

-- Stores one entry with all that must happen with it; `last` is the stream's last entry, nil to create the stream.
--   entry: count, fragment, checksum, sequence (of its last record), epoch and id (nil: as before), and where it ends the stream
--   seal: by, finish_reason, completion (the fragment of it alone, for the lifecycle feed)
--   defaults: retention_ms, max_length (0: unlimited), wake_bytes (the largest fragment that a wake-up carries)
-- The XADD is the first write: where Redis refuses it (memory, read-only replica), nothing else has happened.
local function store(keys, last, entry, defaults)
  local time_us = now_us()
  local seal = entry.seal
  local before = last and last.fields or {}
  local incarnation = last and last.incarnation or whole(time_us)
  local retention_ms = entry.retention_ms or before.r
  local max_length = entry.max_length or before.l
  local epoch, id = entry.epoch or before.e, entry.id or before.p
  local now_ms = whole(math.floor(time_us / 1000))
  local largest = math.max(#entry.fragment, tonumber(before.m or 0))
  local most = math.max(entry.count, tonumber(before.k or 0))

  -- Chained, so that a cursor vouches for all that its reader saw: the entry that it names may be alike in a log that was lost
  -- and written anew.
  local checksum = entry.count > 0 and string.sub(redis.sha1hex((before.c or NO_CHECKSUM) .. entry.checksum), 1, 8) or NO_CHECKSUM
  local info = table.concat({now_ms, checksum, whole(largest), whole(most), entry.checksum}, ' ')
    .. (epoch and ' ' .. epoch .. ' ' .. id or '')
  local fields = {'n', whole(entry.count), 'b', entry.fragment, 'i', info}
  local function also(name, value)
    if value then
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  also('r', retention_ms)
  also('l', max_length)
  if seal then
    also('s', seal.by)
    also('f', seal.finish_reason)
  end
  redis.call('XADD', keys.log, incarnation .. '-' .. whole(entry.sequence), unpack(fields))

  retention_ms = tonumber(retention_ms or defaults.retention_ms)
  expire_log(keys.log, retention_ms, tonumber(now_ms), tonumber(before.t))
  if not last then
    redis.call('ZADD', keys.session_index, incarnation, keys.session_member)
    expire_not_before(keys.session_index, retention_ms)
    forget_expired(keys)
    if not seal then
      redis.call('ZADD', keys.open_index, 0, keys.open_member)
      expire_not_before(keys.open_index, retention_ms)
    end
  elseif seal then
    redis.call('ZREM', keys.open_index, keys.open_member)
    expire_not_before(keys.session_index, retention_ms)
  end

  if not last or seal then
    local events = {}
    if not last then
      events[1] = {'k', 'created ' .. incarnation, 's', keys.open_member}
    end
    if seal then
      local how = {'completed', incarnation, whole(entry.sequence), checksum, seal.by}
      events[#events + 1] = {'k', table.concat(how, ' '), 's', keys.open_member, 'b', seal.completion}
    end
    local keep_ms = tonumber(defaults.retention_ms)
    record(keys, now_ms, keep_ms, math.max(keep_ms, retention_ms), events)
  end

  max_length = tonumber(max_length or defaults.max_length)
  if max_length > 0 then
    local last_token = entry.sequence - (seal and 1 or 0)
    -- The last entry always stays, also when a completion alone would push out the last token.
    local floor = math.min(last_token - max_length + 1, entry.sequence)
    if floor > 1 then
      redis.call('XTRIM', keys.log, 'MINID', incarnation .. '-' .. whole(floor))
    end
  end

  local wake = incarnation .. ' ' .. whole(entry.sequence - entry.count + 1) .. ' ' .. whole(entry.sequence)
    .. ' ' .. now_ms .. ' ' .. checksum .. ' ' .. (before.c or '-') .. ' ' .. (seal and 1 or 0)
  if #entry.fragment <= defaults.wake_bytes then
    wake = wake .. '\n' .. entry.fragment
  end
  wake_readers(keys.log, wake)
  return incarnation, checksum
end
