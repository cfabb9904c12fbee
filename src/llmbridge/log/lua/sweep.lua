-- Walks through a partition's open streams, some at a time: tells which there are, drops those that are gone, and renews the expiry
-- of the indexes that name the others, so that no index expires before a stream it names.
-- KEYS: open index, kept-alive times
-- ARGV: the member after which to go on ('' at first), how many, prefix of log keys, prefix of session index keys
-- Answers {{{member, last id, heard ms}, …}, member after which to go on ('' when through), now in ms}
local open_index, kept_alive = KEYS[1], KEYS[2]
local after, at_most, log_prefix, session_prefix = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

local members = redis.call('ZRANGEBYLEX', open_index, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, at_most)
local found = {}
local longest_ttl = 0
for _, member in ipairs(members) do
  local log = log_prefix .. member
  local entry = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  local readable, last = pcall(function() return entry and decoded(entry) end)
  -- What the scripts did not write must not keep the others from being found.
  if readable and (not last or last.fields.s) then
    redis.call('ZREM', open_index, member)
    redis.call('HDEL', kept_alive, member)
  elseif readable then
    local kept_ms = tonumber(redis.call('HGET', kept_alive, member) or 0)
    local heard_ms = math.max(tonumber(last.fields.t), kept_ms)
    found[#found + 1] = {member, last.incarnation .. '-' .. whole(last.sequence), whole(heard_ms)}
    local ttl = redis.call('PTTL', log)
    longest_ttl = math.max(longest_ttl, ttl)
    expire_not_before(session_prefix .. string.match(member, '^[^:]*'), ttl)
  end
end
if longest_ttl > 0 then
  expire_not_before(open_index, longest_ttl)
end
return {found, #members == at_most and members[#members] or '', whole(math.floor(now_us() / 1000))}
