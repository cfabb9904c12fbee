"""A cluster's primary is killed under load and a replica takes its slots over; what a replica acknowledged is there."""

import asyncio
import time

import grpc
import pytest

from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from llmbridge.v1.stream_pb2 import StreamRef
from tests.support.calls import PATIENCE_SECONDS, STOP, Received, attached, failure_of, produce, ref
from tests.support.cluster import running_cluster
from tests.support.running_bridge import RunningBridge, running_bridge
from tests.support.sentinels import wait_until

SESSIONS = [f"s{i}" for i in range(24)]
SECONDS = 6.0


async def produce_for(bridge: RunningBridge, stream: StreamRef, until: float) -> int:
    """Produce until then, retrying what is UNAVAILABLE, and complete; tells how many tokens that were."""
    number = 0
    done = False
    while not done:
        number += 1
        done = time.monotonic() >= until
        while True:
            texts = () if done else (f"{number} ",)
            try:
                await produce(bridge.bridge, stream, *texts, first=number, completion=STOP if done else None)
            except grpc.aio.AioRpcError as error:
                failed = failure_of(error)
                assert failed.code is grpc.StatusCode.UNAVAILABLE, failed
                assert failed.retry_ms
                await asyncio.sleep(failed.retry_ms / 1000)
            else:
                break
        await asyncio.sleep(0.02)
    return number - 1


@pytest.mark.timeout(120)
async def test_a_primary_is_killed_under_load(key_prefix: str) -> None:
    with running_cluster(primaries=3, replicas=3) as cluster:
        async with running_bridge(
            cluster.url, key_prefix=key_prefix, redis_timeout_ms=1_000, replica_acks=1, replica_ack_timeout_ms=300
        ) as bridge:
            streams = [ref("r", session) for session in SESSIONS]
            calls = [await attached(bridge.bridge, SubscribeRequest(stream=stream)) for stream in streams]
            until = time.monotonic() + SECONDS
            async with asyncio.TaskGroup() as tasks, asyncio.timeout(SECONDS + 2 * PATIENCE_SECONDS):
                reading = [tasks.create_task(Received().read(call)) for call in calls]
                producing = [tasks.create_task(produce_for(bridge, stream, until)) for stream in streams]
                await asyncio.sleep(1)
                killed = cluster.nodes[0]
                killed.kill()
                # Its replica has the slots soon, and no replica until it comes back as one: then all is served again.
                await asyncio.to_thread(wait_until, lambda: cluster.node_of(0) is not killed)
                await asyncio.to_thread(killed.start)
            for read, produced in zip(reading, producing, strict=True):
                assert read.result().text == "".join(f"{i} " for i in range(1, produced.result() + 1))
        assert cluster.node_of(0) is not killed
