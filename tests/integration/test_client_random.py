"""Random histories: whatever breaks, every reader gets exactly what the writer wrote, once, in order, with its end."""

import asyncio
import contextlib
from dataclasses import dataclass

import grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmbridge.client import Client, FinishReason, Message, RetryPolicy
from tests.support.fake_bridge import KEY, FakeBridge
from tests.support.faults import Fault
from tests.support.steady_loop import SteadyLoop
from tests.support.tasks import no_tasks_left

QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.02, attempt_timeout=0.3)

produce_faults = st.builds(
    Fault,
    reason=st.sampled_from(["", "REDIS_UNAVAILABLE", "APPEND_OUTCOME_UNKNOWN", "DRAINING"]),
    message=st.just("Stream removed"),
    code=st.sampled_from([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED]),
    retry_delay=st.none() | st.floats(0, 0.005),
    after_storing=st.booleans(),
    hang=st.integers(0, 24).map(lambda number: number == 0),
)
subscribe_faults = st.builds(
    Fault,
    reason=st.sampled_from(["", "DRAINING"]),
    message=st.just("RST_STREAM"),
    code=st.sampled_from([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL]),
    after_records=st.integers(0, 6),
    hang=st.integers(0, 24).map(lambda number: number == 0),
)


@dataclass(frozen=True)
class History:
    """What happens in one run."""

    batches: list[list[str]]
    produce_faults: list[Fault]
    subscribe_faults: list[Fault]
    patience: list[float | None]
    """How long the caller waits for room for each batch, or for each message, before it cancels the call."""
    readers: int
    restart_after: int | None
    """After how many requests all connections break."""
    seed: int


histories = st.builds(
    History,
    batches=st.lists(st.lists(st.text(max_size=3), min_size=1, max_size=4), max_size=12),
    produce_faults=st.lists(produce_faults, max_size=10),
    subscribe_faults=st.lists(subscribe_faults, max_size=10),
    patience=st.lists(st.none() | st.floats(0, 0.02), min_size=12, max_size=12),
    readers=st.integers(1, 3),
    restart_after=st.none() | st.integers(1, 10),
    seed=st.integers(0, 2**16),
)


async def read_with_patience(client: Client, patience: list[float | None]) -> list[Message]:
    """Read a stream to its end, calling `anext` again whenever patience was not long enough."""
    messages: list[Message] = []
    subscription = client.subscribe(*KEY, silence_timeout=0.4)
    for turn in range(10_000):
        wait = patience[turn] if turn < len(patience) else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                messages.append(await anext(subscription))
        if subscription.completion is not None:
            break
    assert [message async for message in subscription] == []
    return messages


async def write_with_patience(client: Client, history: History) -> list[str]:
    """Write, giving a batch up when there is no room for it for too long; returns what was written."""
    written: list[str] = []
    async with client.write(*KEY, max_unsent_tokens=6) as writer:
        for batch, wait in zip(history.batches, history.patience, strict=False):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await writer.write(*batch)
                    written += batch
                if wait is None:
                    await writer.flush()
    return written


async def restart(bridge: FakeBridge, after: int) -> None:
    await bridge.until(lambda: len(bridge.produced) >= after)
    await bridge.stop()
    await bridge.start()


async def run(history: History) -> None:
    before = asyncio.all_tasks()
    async with FakeBridge(seed=history.seed, heartbeat=0.1) as bridge, Client(bridge.address, retry=QUICK) as client:
        bridge.produce_faults.extend(history.produce_faults)
        bridge.subscribe_faults.extend(history.subscribe_faults)
        async with asyncio.TaskGroup() as tasks:
            breaking = None
            if history.restart_after is not None:
                breaking = tasks.create_task(restart(bridge, history.restart_after))
            readers = [tasks.create_task(read_with_patience(client, history.patience)) for _ in range(history.readers)]
            written = await write_with_patience(client, history)
            if breaking is not None and len(bridge.produced) < (history.restart_after or 0):
                breaking.cancel()
        assert [token.text for token in bridge.log.tokens] == written
        for reader in readers:
            messages = reader.result()
            assert [token.text for message in messages for token in message.tokens] == written
            assert [message.finish_reason for message in messages if message.completion is not None] == [
                FinishReason.STOP
            ]
            assert messages[-1].last_sequence == len(written) + 1
    await no_tasks_left(before)


def test_every_reader_gets_what_was_written() -> None:
    # One loop for all examples: grpc serves one loop of a process at a time.
    with asyncio.Runner(loop_factory=SteadyLoop) as runner:

        @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(histories)
        def check(history: History) -> None:
            runner.run(asyncio.wait_for(run(history), 30))

        check()
