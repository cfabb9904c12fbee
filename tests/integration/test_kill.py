"""kill -9 of a bridge in mid-stream: producer and readers go on at another one, and the text is what it is."""

import asyncio
import random
import secrets
from typing import Any

import grpc
import pytest

from llmbridge.v1.bridge_service_pb2 import ProduceRequest, SubscribeRequest
from llmbridge.v1.token_pb2 import Token
from tests.support.bridge_process import BridgeProcess
from tests.support.calls import PATIENCE_SECONDS, STOP, Received, read_all, ref, stub
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge

STREAM = ref("r")
TEXTS = [f"{i} " for i in range(1, 1_501)]


class Elsewhere:
    """Where clients go: to the first bridge until a call there breaks, then to the second."""

    def __init__(self, first: grpc.aio.Channel, second: grpc.aio.Channel) -> None:
        self.first, self.second = stub(first), stub(second)
        self.broken = asyncio.Event()

    def bridge(self) -> Any:
        return self.second if self.broken.is_set() else self.first

    def note(self, error: grpc.aio.AioRpcError) -> None:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        self.broken.set()


async def write(bridges: Elsewhere, dice: random.Random, killed: asyncio.Event) -> None:
    """Produce all texts in batches, repeating what broke with the same numbers; the end after the kill."""
    sent = 0
    while sent < len(TEXTS):
        count = min(dice.randint(1, 5), len(TEXTS) - sent)
        end = sent + count == len(TEXTS)
        request = ProduceRequest(
            stream=STREAM,
            tokens=[Token(text=text) for text in TEXTS[sent : sent + count]],
            first_sequence=sent + 1,
            producer_id="one",
            completion=STOP if end else None,
        )
        if end:
            await killed.wait()
        while True:
            try:
                answer = await bridges.bridge().Produce(request, timeout=PATIENCE_SECONDS)
                break
            except grpc.aio.AioRpcError as error:
                bridges.note(error)
        sent += count
        assert answer.last_sequence == sent + end


async def read(bridges: Elsewhere) -> Received:
    """Read to the end, going on elsewhere from the cursor of the last message."""
    received = Received()
    while received.completion is None:
        request = SubscribeRequest(stream=STREAM, after_cursor=received.cursor)
        try:
            await received.read(bridges.bridge().Subscribe(request))
        except grpc.aio.AioRpcError as error:
            bridges.note(error)
    return received


@pytest.mark.parametrize("producers_bridge_dies", [True, False], ids=["the producer's bridge", "the readers' bridge"])
async def test_kill_in_mid_stream(
    bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str, producers_bridge_dies: bool
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    process = BridgeProcess({"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": key_prefix}).start()
    try:
        async with grpc.aio.insecure_channel(process.address) as mortal:
            readers = Elsewhere(mortal, bridge.channel)
            producer = readers if producers_bridge_dies else Elsewhere(bridge.channel, bridge.channel)
            async with asyncio.TaskGroup() as group:
                killed = asyncio.Event()
                writing = group.create_task(write(producer, dice, killed))
                reading = [group.create_task(read(readers)) for _ in range(3)]
                far = Received()
                call = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM))
                await far.read(call, through=dice.randint(100, 700))
                call.cancel()
                assert not writing.done()
                process.kill()
                killed.set()
        assert readers.broken.is_set()
        for task in reading:
            assert task.result().texts == TEXTS
            assert task.result().completion == STOP
        assert (await read_all(bridge.bridge, STREAM)).texts == TEXTS
    finally:
        process.close()
