-- Appends to many streams in one call, each with an outcome of its own. The rules are sequencing.py's decision table.
-- KEYS: for each append: log, open index, session index, lifecycle feed
-- ARGV: retention_ms, max_length, wake_bytes, max_stream_tokens, then for each append: open member, session member, first,
--       tokens, finish reason ('' for none), epoch, producer id, checksum, fragment, the completion's own fragment ('' for none)
-- Answers for each: {decision, …}
local defaults = {
  retention_ms = tonumber(ARGV[1]),
  max_length = tonumber(ARGV[2]),
  wake_bytes = tonumber(ARGV[3]),
}
local max_stream_tokens = tonumber(ARGV[4])
local KEYS_EACH, ARGS_COMMON, ARGS_EACH = 4, 4, 10

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
  return {'appended', incarnation, whole(sequence), checksum}
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
  return {'duplicate', last.incarnation, whole(sequence), checksum}
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

local function append(keys, request)
  local last = last_entry(keys.log)
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
    return stored(keys, last, request, next_sequence)
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

local outcomes = {}
for i = 1, #KEYS / KEYS_EACH do
  local key, arg = (i - 1) * KEYS_EACH, ARGS_COMMON + (i - 1) * ARGS_EACH
  local keys = {
    log = KEYS[key + 1], open_index = KEYS[key + 2], session_index = KEYS[key + 3], feed = KEYS[key + 4],
    open_member = ARGV[arg + 1], session_member = ARGV[arg + 2],
  }
  local tokens, finish_reason = tonumber(ARGV[arg + 4]), ARGV[arg + 5]
  local ok, outcome = pcall(append, keys, {
    first = tonumber(ARGV[arg + 3]),
    tokens = tokens,
    finish_reason = finish_reason,
    count = tokens + (finish_reason ~= '' and 1 or 0),
    epoch = tonumber(ARGV[arg + 6]),
    id = ARGV[arg + 7],
    checksum = ARGV[arg + 8],
    fragment = ARGV[arg + 9],
    completion = ARGV[arg + 10],
  })
  if not ok then
    outcome = {'failed', type(outcome) == 'table' and outcome.err or tostring(outcome)}
  end
  outcomes[i] = outcome
end
return outcomes
