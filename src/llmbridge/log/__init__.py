"""The token log: everything that is stored in Redis, and the only place that talks to it.

The way of a token: `append` → lua/append.lua → Redis → `wakeups` and `reading`. `exchange` carries commands,
`connections` makes connections, `keys` names what is stored, `scripts` calls Lua.
"""
