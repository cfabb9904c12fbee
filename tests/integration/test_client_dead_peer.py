"""A bridge that is gone without a word, as when its machine loses power: clients notice within seconds and go on."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from llmbridge.client import Client
from tests.support.bridge_process import BridgeProcess
from tests.support.redis_process import RedisProcess

# Ping after 6 s, no answer for 3 s, and time to connect to the other bridge. Without pings it would take 45 s.
SECONDS = 20.0


@pytest.fixture
def bridges(shared_redis: RedisProcess, key_prefix: str) -> Iterator[tuple[BridgeProcess, BridgeProcess]]:
    environment = {"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": key_prefix}
    first, second = BridgeProcess(environment).start(), BridgeProcess(environment).start()
    yield first, second
    first.process.send_signal(signal.SIGCONT)
    first.close()
    second.close()


async def test_a_frozen_bridge_is_left_for_another(bridges: tuple[BridgeProcess, BridgeProcess]) -> None:
    first, second = bridges
    async with (
        Client(f"{first.address},{second.address}") as client,
        Client(second.address) as elsewhere,
        elsewhere.write("s", "m", "r") as writer,
    ):
        await writer.text("a")
        pieces = client.subscribe("s", "m", "r").texts()
        assert await asyncio.wait_for(anext(pieces), SECONDS) == "a"
        # Its connections stay, but nothing answers on them any more.
        os.kill(first.process.pid, signal.SIGSTOP)
        await writer.text("b")
        assert await asyncio.wait_for(anext(pieces), SECONDS) == "b"
