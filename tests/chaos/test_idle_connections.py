"""A bridge's idle connections to Redis, reset on the way as firewalls do: the next call finds out, and nobody is told.

In a process of its own, because the bridge's event loop is uvloop there, which meets a reset in its own way.
"""

import asyncio

from llmbridge.client import Client
from tests.support.bridge_process import BridgeProcess
from tests.support.proxy import proxy_to
from tests.support.redis_process import RedisProcess

RESETS = 5


async def test_idle_connections_that_were_reset(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with proxy_to(("127.0.0.1", shared_redis.port)) as proxy:
        settings = {"REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0", "LLMBRIDGE_KEY_PREFIX": key_prefix}
        process = await asyncio.to_thread(BridgeProcess(settings).start)
        try:
            async with Client(process.address) as client:
                for i in range(RESETS):
                    proxy.reset_all()
                    async with client.write("s", "m", f"{i}") as writer:
                        await writer.text("a")
                    proxy.reset_all()
                    assert [piece async for piece in client.subscribe("s", "m", f"{i}").texts()] == ["a"]
        finally:
            await asyncio.to_thread(process.close)
