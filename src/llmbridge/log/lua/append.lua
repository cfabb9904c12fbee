-- Appends to many streams in one call, each with an outcome of its own. The rules are sequencing.py's decision table.
-- KEYS: for each append the log; and for one that may create or end its stream the open index, session index and lifecycle feed
-- ARGV: retention_ms, max_length, wake_bytes, max_stream_tokens, then for each append: first, stamp ('<checksum> <epoch> <id>'),
--       fragment, kind: '' for a single token, '<tokens> <last token's sequence>' for several; or '+' for one that may create or end its
--       stream, or be too long for it, followed by tokens, open member, session member, finish reason ('' for none), the completion's own
--       fragment
-- Answers for each: the cursor where it was stored, else {decision, …}
local call, sha1hex, sub, find, match = redis.call, redis.sha1hex, string.sub, string.find, string.match
local KEYS, ARGV = KEYS, ARGV
local defaults = {
  retention_ms = tonumber(ARGV[1]),
  max_length = tonumber(ARGV[2]),
  wake_bytes = tonumber(ARGV[3]),
}
local max_stream_tokens = tonumber(ARGV[4])
local retention_ms, wake_bytes, no_trimming = defaults.retention_ms, defaults.wake_bytes, defaults.max_length == 0
local now_ms = math.floor(now_us() / 1000)
local now_text = whole(now_ms)
local now_between = ' ' .. now_text .. ' '
-- Whoever was stored since then needs no renewal, see expire_log.
local renewed_from = retention_ms < LONG_MS and now_ms + 1 or now_ms - now_ms % RENEWAL_MS

local function stored(keys, last, request, first)
  local sequence = first + request.count - 1
  if first + request.tokens - 1 > max_stream_tokens and request.tokens > 0 then
    return {'too_long', whole(first + request.tokens - 1)}
  end
  local incarnation, checksum = store(keys, last, {
    count = request.count,
    fragment = request.fragment,
    checksum = request.checksum,
    sequence = sequence,
    epoch = whole(request.epoch),
    id = request.id,
    seal = request.finish_reason ~= '' and {
      by = 'producer', finish_reason = request.finish_reason, completion = request.completion,
    } or nil,
  }, defaults)
  return incarnation .. '-' .. whole(sequence) .. '-' .. checksum
end

-- The cursor of a record that is stored already needs the checksum of the entry that holds it; 00000000 where that entry
-- was trimmed away. Where the request covers exactly one entry, its content must be that entry's.
local function duplicate(keys, last, request, compare)
  local sequence = request.first + request.count - 1
  local found = redis.call('XRANGE', keys.log, last.incarnation .. '-' .. whole(sequence), '+', 'COUNT', 1)[1]
  local entry = decoded(found)
  local first = first_of(entry)
  local checksum = first <= sequence and entry.fields.c or NO_CHECKSUM
  if compare and first == request.first and entry.sequence == sequence and entry.fields.h ~= request.checksum then
    return {'conflict', whole(request.first)}
  end
  wake_readers_again(keys.log)
  return {'duplicate', last.incarnation .. '-' .. whole(sequence) .. '-' .. checksum}
end

local function sealed(keys, last, request, same_producer)
  local fields = last.fields
  local end_of_tokens = request.first + request.tokens
  local repeats = same_producer and request.first > 0 and end_of_tokens <= last.sequence
  if repeats and request.finish_reason ~= '' then
    repeats = end_of_tokens == last.sequence and fields.s == 'producer' and fields.f == request.finish_reason
  end
  if repeats then
    return duplicate(keys, last, request, false)
  end
  return {'completed', fields.f, fields.s}
end

local function append(keys, last, request)
  if not last then
    if request.first > 1 then
      return {'gap', '1'}
    end
    return stored(keys, nil, request, 1)
  end
  local fields = last.fields
  local last_epoch = fields.e and tonumber(fields.e)
  local same_producer = last_epoch == request.epoch and fields.p == request.id
  if fields.s then
    return sealed(keys, last, request, same_producer)
  end
  if last_epoch and not same_producer and request.epoch <= last_epoch then
    return {'fenced', fields.e}
  end
  local next_sequence = last.sequence + 1
  if request.first == 0 or request.first == next_sequence then
    local answer = stored(keys, last, request, next_sequence)
    if last_epoch and not same_producer and type(answer) == 'string' then
      tell_producers(keys.log, 'fenced', whole(request.epoch) .. ' ' .. request.id)
    end
    return answer
  end
  if not same_producer or request.first > last.sequence then
    return {'gap', whole(next_sequence)}
  end
  if request.first + request.count - 1 > last.sequence then
    return {'overlap', whole(last.sequence)}
  end
  if request.finish_reason ~= '' then
    return {'conflict', whole(request.first + request.count - 1)}
  end
  return duplicate(keys, last, request, true)
end

-- What nearly every append is: the next tokens of an open stream, by its producer, with nothing about the stream that is not as usual.
-- Stores it as `store` does, with as few operations as there can be, or does nothing and answers nil. `last` is the entry as Redis gives it.
local function append_next(log, last, first, stamp, fragment, kind)
  local last_id, fields = last[1], last[2]
  -- n, b and i alone: not sealed, no retention or limit of its own.
  if #fields ~= 6 then
    return nil
  end
  local dash = find(last_id, '-', 1, true)
  local t, before, largest, most, by = match(fields[6], '^(%d+) (%x+) (%d+) (%d+) %x+(.*)$')
  if by ~= sub(stamp, 9) or sub(last_id, dash + 1) + 1 ~= first + 0 then
    return nil
  end
  local tokens, last_token = '1', first
  if kind ~= '' then
    tokens, last_token = match(kind, '^(%d+) (%d+)$')
    if tokens + 0 > most + 0 then
      most = tokens
    end
  end
  if #fragment > largest + 0 then
    largest = #fragment
  end
  local chained = sub(sha1hex(before .. sub(stamp, 1, 8)), 1, 8)
  local id = sub(last_id, 1, dash) .. last_token
  call(
    'XADD', log, id, 'n', tokens, 'b', fragment,
    'i', now_text .. ' ' .. chained .. ' ' .. largest .. ' ' .. most .. ' ' .. stamp
  )
  if t + 0 < renewed_from or t + 0 > now_ms then
    expire_log(log, retention_ms, now_ms, t + 0)
  end
  wake_readers(
    log,
    sub(last_id, 1, dash - 1) .. ' ' .. first .. ' ' .. last_token .. now_between .. chained .. ' ' .. before .. ' 0'
      .. (#fragment > wake_bytes and '' or '\n' .. fragment)
  )
  return id .. '-' .. chained
end

local function append_any(key, arg)
  local log, first, stamp, fragment, kind = KEYS[key], ARGV[arg], ARGV[arg + 1], ARGV[arg + 2], ARGV[arg + 3]
  local found = call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if found and kind ~= '+' and no_trimming then
    local answer = append_next(log, found, first, stamp, fragment, kind)
    if answer then
      return answer
    end
  end
  local keys, tokens, finish_reason, completion = {log = log}, 1, '', ''
  if kind == '+' then
    keys.open_index, keys.session_index, keys.feed = KEYS[key + 1], KEYS[key + 2], KEYS[key + 3]
    tokens, keys.open_member, keys.session_member = tonumber(ARGV[arg + 4]), ARGV[arg + 5], ARGV[arg + 6]
    finish_reason, completion = ARGV[arg + 7], ARGV[arg + 8]
  elseif kind ~= '' then
    tokens = tonumber(match(kind, '^%d+'))
  end
  local checksum, epoch, id = match(stamp, '^(%x+) (%d+) (.*)$')
  return append(keys, found and decoded(found), {
    first = tonumber(first), tokens = tokens, count = tokens + (finish_reason ~= '' and 1 or 0), epoch = tonumber(epoch), id = id,
    checksum = checksum, fragment = fragment, finish_reason = finish_reason, completion = completion,
  })
end

local outcomes = {}
local key, arg, all, i = 1, 5, #KEYS, 0
while key <= all do
  local ok, outcome = pcall(append_any, key, arg)
  if not ok then
    outcome = {'failed', type(outcome) == 'table' and outcome.err or tostring(outcome)}
  end
  i = i + 1
  outcomes[i] = outcome
  if ARGV[arg + 3] == '+' then
    key, arg = key + 4, arg + 9
  else
    key, arg = key + 1, arg + 4
  end
end
return outcomes
