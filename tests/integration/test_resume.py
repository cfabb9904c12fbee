"""Whatever the producer's batches and wherever readers are cut: each sees exactly the sealed text, on any bridge."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmbridge.v1.bridge_service_pb2 import ProduceRequest, SubscribeRequest
from llmbridge.v1.token_pb2 import Token
from tests.support.calls import PATIENCE_SECONDS, STOP, Received, produce, read_all, ref
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

Pair = tuple[RunningBridge, RunningBridge]


@dataclass(frozen=True)
class Batch:
    """One request of the producer: its texts' sizes, to which bridge, sent how often, after what pause."""

    sizes: tuple[int, ...]
    bridge: int
    times: int
    pause_ms: int


@dataclass(frozen=True)
class Part:
    """One call of a reader: at which bridge, and after how many messages it is cut."""

    bridge: int
    messages: int


batches = st.builds(
    Batch,
    # Wake-ups carry up to 4 KiB.
    sizes=st.lists(st.sampled_from((0, 1, 5, 5, 30, 5_000)), min_size=1, max_size=6).map(tuple),
    bridge=st.integers(0, 1),
    times=st.sampled_from((1, 1, 1, 2)),
    pause_ms=st.sampled_from((0, 0, 0, 1, 5)),
)
readers = st.lists(st.builds(Part, bridge=st.integers(0, 1), messages=st.integers(0, 4)), max_size=8)


@pytest.fixture
async def pair(shared_redis: RedisProcess, key_prefix: str) -> AsyncIterator[Pair]:
    """Two bridges on one Redis."""
    async with (
        running_bridge(shared_redis.url, key_prefix=key_prefix) as one,
        running_bridge(shared_redis.url, beside=True, key_prefix=key_prefix) as two,
    ):
        yield one, two


async def write(pair: Pair, stream_id: str, plan: list[Batch], seal_alone: bool) -> list[str]:
    """Carry the producer's plan out; returns the texts of the sealed stream."""
    texts: list[str] = []
    for i, batch in enumerate(plan):
        end = i == len(plan) - 1 and not seal_alone
        new = [chr(97 + (len(texts) + j) % 26) * size for j, size in enumerate(batch.sizes)]
        request = ProduceRequest(
            stream=ref(stream_id),
            tokens=[Token(text=text) for text in new],
            first_sequence=len(texts) + 1,
            completion=STOP if end else None,
        )
        for time in range(batch.times):
            answer = await pair[(batch.bridge + time) % 2].bridge.Produce(request, timeout=PATIENCE_SECONDS)
            assert answer.duplicate == (time > 0)
        texts += new
        await asyncio.sleep(batch.pause_ms / 1000)
    if seal_alone:
        await produce(pair[0].bridge, ref(stream_id), first=len(texts) + 1, completion=STOP)
    return texts


async def read_in_parts(pair: Pair, stream_id: str, parts: list[Part]) -> Received:
    """Read with cuts as planned, then to the end."""
    received = Received()
    for part in parts:
        call = pair[part.bridge].bridge.Subscribe(
            SubscribeRequest(stream=ref(stream_id), after_cursor=received.cursor), timeout=PATIENCE_SECONDS
        )
        for _ in range(part.messages):
            if received.completion is not None:
                return received
            received.take(await call.read())
        call.cancel()
    if received.completion is None:
        await received.read(
            pair[0].bridge.Subscribe(SubscribeRequest(stream=ref(stream_id), after_cursor=received.cursor))
        )
    return received


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    plan=st.lists(batches, min_size=1, max_size=20),
    seal_alone=st.booleans(),
    reading=st.lists(readers, min_size=1, max_size=4),
)
async def test_every_reader_sees_exactly_the_sealed_text(
    pair: Pair, plan: list[Batch], seal_alone: bool, reading: list[list[Part]]
) -> None:
    stream_id = secrets.token_hex(8)
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(write(pair, stream_id, plan, seal_alone))
        tasks = [group.create_task(read_in_parts(pair, stream_id, parts)) for parts in reading]
    texts = writing.result()
    for received in (*(task.result() for task in tasks), await read_all(pair[1].bridge, ref(stream_id))):
        # That sequences are dense and in order was checked message by message.
        assert received.texts == texts
        assert received.completion == STOP


async def test_a_crowd_that_is_cut_all_the_time(pair: Pair) -> None:
    """More readers than messages in a round trip, at different places, each cut after every few messages."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    plan = [
        Batch(tuple(dice.choice((0, 3, 20, 5_000)) for _ in range(dice.randint(1, 8))), dice.randint(0, 1), 1, 0)
        for _ in range(150)
    ]
    crowd = [[Part(dice.randint(0, 1), dice.randint(0, 5)) for _ in range(30)] for _ in range(40)]
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(write(pair, "crowd", plan, seal_alone=True))
        tasks = [group.create_task(read_in_parts(pair, "crowd", parts)) for parts in crowd]
    assert all(task.result().texts == writing.result() for task in tasks)
