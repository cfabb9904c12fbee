"""Random chains of producers that seem dead: each goes on where the one before it ended, or notices that it did not."""

import asyncio
from dataclasses import dataclass

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmbridge.client import Client, FinishReason, GenerationOver, RetryPolicy, SequenceGap, Writer
from tests.support.fake_bridge import KEY, FakeBridge
from tests.support.faults import Fault
from tests.support.steady_loop import SteadyLoop
from tests.support.tasks import no_tasks_left

QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.01, attempt_timeout=0.5)


@dataclass(frozen=True)
class Life:
    """What a producer writes and stores, and what it is still writing when the next one takes over."""

    stored: list[str]
    left_over: list[str]


lives = st.builds(
    Life,
    stored=st.lists(st.text("abc", max_size=2), min_size=1, max_size=4),
    left_over=st.lists(st.text("xyz", max_size=2), max_size=3),
)
faults = st.builds(
    Fault,
    reason=st.sampled_from(["", "REDIS_UNAVAILABLE", "APPEND_OUTCOME_UNKNOWN", "DRAINING"]),
    code=st.just(grpc.StatusCode.UNAVAILABLE),
    after_storing=st.booleans(),
    after_records=st.integers(0, 3),
)


async def live(client: Client, bridge: FakeBridge, chain: list[Life], predecessor: Writer | None) -> None:
    """Be the first of the chain's producers, from its takeover to the end of all that come after it."""
    life, *others = chain
    if predecessor is None:
        return await produce(client.write(*KEY), client, bridge, life, others)
    while True:
        takeover = await client.takeover(*KEY)
        there = "".join(token.text for token in bridge.log.tokens[: len(takeover.tokens)])
        assert takeover.text == there
        try:
            return await produce(takeover.writer, client, bridge, life, others, predecessor)
        except SequenceGap:
            # The one before was not dead yet: it has stored more than was read.
            assert len(bridge.log.tokens) > len(takeover.tokens)


async def produce(
    writer: Writer,
    client: Client,
    bridge: FakeBridge,
    life: Life,
    others: list[Life],
    predecessor: Writer | None = None,
) -> None:
    async with writer:
        await writer.write(*life.stored)
        await writer.flush()
        assert bridge.log.text.endswith("".join(life.stored))
        if predecessor is not None:
            with pytest.raises(GenerationOver):
                await write_too_late(predecessor)
        begun = bridge.log.text
        await writer.write(*life.left_over)
        if others:
            await live(client, bridge, others, writer)
            assert bridge.log.text.startswith(begun)
    # Whoever was told that it is over leaves in peace.
    assert writer.completed == (not others)


async def write_too_late(writer: Writer) -> None:
    await writer.text("too late")
    await writer.flush()


async def run(chain: list[Life], produce_faults: list[Fault], read_faults: list[Fault]) -> None:
    before = asyncio.all_tasks()
    async with FakeBridge() as bridge, Client(bridge.address, retry=QUICK) as client:
        bridge.produce_faults.extend(produce_faults)
        bridge.subscribe_faults.extend(read_faults)
        await live(client, bridge, chain, None)
        log = bridge.log
        assert log.completion is not None
        assert FinishReason.of(log.completion) is FinishReason.STOP
        # Each has stored what it was told is stored, and of the rest a beginning; the last one all of it.
        epochs = [epoch for epoch, _ in log.producers]
        assert epochs == sorted(epochs)
        assert epochs[-1] == len(chain) - 1
        for epoch, life in enumerate(chain):
            texts = [token.text for token, by in zip(log.tokens, epochs, strict=False) if by == epoch]
            written = life.stored + life.left_over
            assert texts == written[: max(len(texts), len(life.stored))]
        assert texts == written
    await no_tasks_left(before)


def test_each_goes_on_where_the_one_before_it_ended() -> None:
    # One loop for all examples: grpc serves one loop of a thread at a time.
    with asyncio.Runner(loop_factory=SteadyLoop) as runner:

        @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(lives, min_size=1, max_size=4), st.lists(faults, max_size=8), st.lists(faults, max_size=4))
        def check(chain: list[Life], produce_faults: list[Fault], read_faults: list[Fault]) -> None:
            runner.run(asyncio.wait_for(run(chain, produce_faults, read_faults), 30))

        check()
