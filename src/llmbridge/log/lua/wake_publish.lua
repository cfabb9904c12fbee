-- How a script wakes readers: by publishing, while it runs.
-- Where the Redis user may not publish, what is stored is stored all the same.
local function wake_readers(channel, message)
  redis.pcall('PUBLISH', channel, message)
end

local function wake_readers_again(channel)
end

