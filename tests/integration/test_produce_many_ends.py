"""A writer is told that its stream was cancelled, sealed or taken over as it happens, at whichever bridge."""

from typing import Any

import grpc
import pytest
import redis

from llmbridge.log.keys import Keys
from llmbridge.model.names import StreamName
from llmbridge.v1.bridge_service_pb2 import CancelRequest
from tests.support.bridge_process import BridgeProcess
from tests.support.calls import STOP, produce, ref, stub, until
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge
from tests.support.writers import Writers, append, id_of, refusal, start

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
BY_CANCEL = (PRECONDITION, "COMPLETED", {"finish_reason": "FINISH_REASON_CANCELLED", "sealer": "SEALER_CANCEL"})
LOST = (PRECONDITION, "COMPLETED", {"finish_reason": "FINISH_REASON_ERROR", "sealer": "SEALER_LOST"})
FENCED = (PRECONDITION, "FENCED", {"epoch": "2"})


def _listened(client: Any, prefix: str) -> int:
    """How many partitions are listened to."""
    if isinstance(client, redis.RedisCluster):
        cluster: Any = client
        found = cluster.execute_command("PUBSUB SHARDCHANNELS", f"{prefix}:ends:*", target_nodes="primaries")
        return sum(map(len, found.values())) if isinstance(found, dict) else len(found)
    return len(client.pubsub_channels(f"{prefix}:ends:*"))


async def _writing(bridge: Any, shared_redis: RedisProcess, key_prefix: str, *names: str) -> Writers:
    """Writers 1, 2, … of these streams that have appended, and are told of what happens from now on."""
    writers = Writers(bridge)
    numbered = list(enumerate(names, 1))
    sessions = {i: ref(name, session=name) for i, name in numbered}
    await writers.send(
        *(append(i, 1, "a") for i, _ in numbered), starts=tuple(start(i, sessions[i]) for i, _ in numbered)
    )
    await writers.settled()
    partitions = {Keys(key_prefix, 64).partition_of(name) for name in names}
    with shared_redis.client() as client:
        await until(lambda: _listened(client, key_prefix) >= len(partitions))
    return writers


async def test_a_cancelled_writer_is_told_without_an_append(
    bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str
) -> None:
    writers = await _writing(bridge.bridge, shared_redis, key_prefix, "r")
    await bridge.bridge.Cancel(CancelRequest(stream=ref("r", session="r")))
    assert await writers.told() == [(1, BY_CANCEL)]
    await writers.send(append(1, 2, "b"))
    receipts = await writers.settled()
    assert refusal(receipts[id_of(1, 2)].failure) == BY_CANCEL
    assert len(writers.ends) == 1, "it is told once"


async def test_a_writer_of_another_bridge_is_told(
    bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str
) -> None:
    other = BridgeProcess({"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": key_prefix}).start()
    try:
        async with grpc.aio.insecure_channel(other.address) as channel:
            writers = await _writing(stub(channel), shared_redis, key_prefix, "r")
            await bridge.bridge.Cancel(CancelRequest(stream=ref("r", session="r")))
            assert await writers.told() == [(1, BY_CANCEL)]
    finally:
        other.close()


@pytest.mark.parametrize("by_produce_many", [False, True])
async def test_a_writer_whose_stream_is_taken_over_is_told(
    bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str, by_produce_many: bool
) -> None:
    writers = await _writing(bridge.bridge, shared_redis, key_prefix, "r")
    stream = ref("r", session="r")
    if by_produce_many:
        rival = Writers(bridge.bridge)
        await rival.send(append(1, 2, "b"), starts=(start(1, stream, epoch=2, producer_id="rival 1 \0 é"),))
        await rival.settled()
        await rival.send(append(1, 3, "c"))
        receipts = await rival.settled()
        assert not rival.ends
        assert receipts[id_of(1, 3)].last_sequence == 3
    else:
        await produce(bridge.bridge, stream, "b", first=2, producer_epoch=2)
    assert await writers.told() == [(1, FENCED)]


async def test_only_those_concerned_are_told(
    bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str
) -> None:
    writers = await _writing(bridge.bridge, shared_redis, key_prefix, "r")
    stream = ref("r", session="r")
    # 2: about to take over. 3: of another stream of the same session. 4: stopped. 5: the rival that will have it.
    await writers.send(
        append(3, 1, "a"),
        starts=(start(2, stream, epoch=3), start(3, ref("x", session="r")), start(4, stream), start(5, stream, 2, "q")),
        stops=(4,),
    )
    await writers.settled()
    await writers.send(append(5, 2, "b"))
    assert await writers.told() == [(1, FENCED)]
    await bridge.bridge.Cancel(CancelRequest(stream=stream))
    ends = await writers.told(3)
    assert sorted(ends[1:]) == [(2, BY_CANCEL), (5, BY_CANCEL)]
    await writers.send(append(3, 2, "b"))
    assert (await writers.settled())[id_of(3, 2)].last_sequence == 2


@pytest.mark.parametrize("said", [b"", b"nonsense", b"fenced r:m:r 2", b"fenced r:m:r x y", b"fenced r:m:r 2 \xff"])
async def test_what_a_stranger_publishes_harms_nobody(
    bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str, said: bytes
) -> None:
    writers = await _writing(bridge.bridge, shared_redis, key_prefix, "r")
    keys = Keys(key_prefix, 64).stream(StreamName("r", "m", "r"))
    client: Any
    with shared_redis.client() as client:
        assert client.zrange(keys.open_index, 0, -1) == [b"r:m:r"]
        publish = client.spublish if isinstance(client, redis.RedisCluster) else client.publish
        assert publish(keys.ends, said) == 1
    await bridge.bridge.Cancel(CancelRequest(stream=ref("r", session="r")))
    assert await writers.told() == [(1, BY_CANCEL)]


async def test_a_producer_that_was_taken_for_lost_is_told(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, producer_lost_ms=3_000) as bridge:
        writers = await _writing(bridge.bridge, shared_redis, key_prefix, "r")
        assert await writers.told() == [(1, LOST)]


async def test_who_ends_a_stream_itself_is_not_told(
    bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str
) -> None:
    writers = await _writing(bridge.bridge, shared_redis, key_prefix, "r", "other")
    await writers.send(append(1, 2, "b", completion=STOP))
    await writers.settled()
    await bridge.bridge.Cancel(CancelRequest(stream=ref("r", session="r")))
    await bridge.bridge.Cancel(CancelRequest(stream=ref("other", session="other")))
    assert await writers.told() == [(2, BY_CANCEL)]


async def test_it_listens_only_while_it_has_writers(
    bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str
) -> None:
    writers = await _writing(bridge.bridge, shared_redis, key_prefix, "one", "two", "three")
    with shared_redis.client() as client:
        await writers.send(stops=(1, 2))
        await until(lambda: _listened(client, key_prefix) == 1)
        await bridge.bridge.Cancel(CancelRequest(stream=ref("three", session="three")))
        assert await writers.told() == [(3, BY_CANCEL)]
        writers.call.cancel()
        await until(lambda: _listened(client, key_prefix) == 0)
