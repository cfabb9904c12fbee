-- How a script wakes readers on Redis Cluster: on the nodes of the slot alone, where PUBLISH would go to all nodes.
local function wake_readers(channel, message)
  redis.pcall('SPUBLISH', channel, message)
end

local function wake_readers_again(channel)
end

