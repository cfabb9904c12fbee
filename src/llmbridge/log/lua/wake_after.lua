-- How a script wakes readers where replicas must have what it stored before anybody reads it: it hands the wake-ups over, to be
-- published later. scripts.py makes a function of the script proper; see wake_after_end.lua.
local wake_ups = {}

local function wake_readers(channel, message)
  wake_ups[#wake_ups + 1] = channel
  wake_ups[#wake_ups + 1] = message
end

-- Of what is found stored already, nobody may have been told: the replicas were too late the first time.
local function wake_readers_again(channel)
  wake_readers(channel, '')
end

-- WAIT waits for the replicas to have what this connection wrote. A call that finds everything stored already writes nothing, and it
-- may be another connection that did: writing something that changes nothing, behind it, makes WAIT wait for all of it.
local function write_something()
  for _, key in ipairs(KEYS) do
    local ttl_ms = redis.call('PTTL', key)
    if ttl_ms > 0 then
      redis.pcall('PEXPIRE', key, ttl_ms)
      return
    end
  end
  if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.pcall('SET', KEYS[1], '')
    redis.pcall('DEL', KEYS[1])
  end
end

local function answer()
