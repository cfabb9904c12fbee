"""A reader that attaches while wake-ups are interrupted: the safety poll may see the stream before they are back."""

import asyncio

from tests.support.calls import STOP, produce, read_all, ref
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import running_bridge


def _cut_wake_ups(server: RedisProcess) -> None:
    with server.client() as client:
        for connection in client.client_list():
            if connection["name"] == "llmbridge-wakeups":
                client.client_kill_filter(_id=connection["id"])


async def test_readers_attach_as_soon_as_wake_ups_are_back(own_redis: RedisProcess) -> None:
    # Polls much faster than the pause before wake-ups reconnect.
    async with running_bridge(own_redis.url, redis_poll_delay=10) as bridge:
        for i in range(5):
            await produce(bridge.bridge, ref(str(i)), "a", first=1, completion=STOP)
            _cut_wake_ups(own_redis)
            # Let the bridge notice, so that the reader's channel is subscribed on the next connection.
            await asyncio.sleep(0.01)
            assert (await read_all(bridge.bridge, ref(str(i)))).text == "a"
