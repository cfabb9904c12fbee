"""The token log: everything that is stored in Redis, and the only place that talks to it.

The way of a token: `appending` → lua/append.lua → Redis → `wakeups` and `reading`. `keys` names what is stored,
`scripts` calls Lua. On the way to Redis, `lanes` bring each item to the server that has its key (`servers`, `cluster`),
`calls` wait for replicas, `exchange` carries commands over a connection, `connections` and `sentinels` make it.
"""
