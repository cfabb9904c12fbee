"""However the writer's block is left: the stream gets the end that it should."""

# ruff: noqa: PT012 - what raises is the end of a block, too

import asyncio
from collections.abc import AsyncGenerator

import pytest

from llmbridge.client import (
    Client,
    ClientClosed,
    Completion,
    FinishReason,
    RetryPolicy,
    StreamCompleted,
    Unavailable,
    Usage,
    Writer,
)
from llmbridge.v1 import token_pb2
from tests.support.fake_bridge import KEY, FakeBridge
from tests.support.faults import Fault

QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.02, attempt_timeout=5.0, give_up_after=20.0)
IMPATIENT = RetryPolicy(first_delay=0.001, longest_delay=0.02, attempt_timeout=1.0, give_up_after=1.0)

DOWN = Fault("REDIS_UNAVAILABLE")
LOST_REPLY = Fault("APPEND_OUTCOME_UNKNOWN", after_storing=True)


def finish_reason(bridge: FakeBridge) -> FinishReason | None:
    completion = bridge.log.completion
    return None if completion is None else FinishReason.of(completion)


async def test_an_explicit_end_is_the_end(bridge: FakeBridge, client: Client) -> None:
    async with client.write(*KEY) as writer:
        await writer.text("a")
        await writer.complete(FinishReason.LENGTH, usage=Usage(total_tokens=3), attributes={"k": "v"})
        with pytest.raises(RuntimeError, match="complete"):
            await writer.text("b")
        with pytest.raises(RuntimeError, match="complete"):
            await writer.complete()
        await writer.flush()
        assert writer.completed
    completion = bridge.log.completion
    assert completion is not None
    assert finish_reason(bridge) is FinishReason.LENGTH
    assert (completion.usage.total_tokens, dict(completion.attributes)) == (3, {"k": "v"})
    assert [request.HasField("completion") for request in bridge.produced][-1:] == [True]


async def test_a_completion_travels_with_the_last_tokens(bridge: FakeBridge, client: Client) -> None:
    completion = Completion(finish_reason=token_pb2.FINISH_REASON_TOOL_CALLS)
    async with client.write(*KEY) as writer:
        with pytest.raises(ValueError, match="completion"):
            await writer.write(completion, "too late")
        await writer.write("a", "b", completion)
    assert len(bridge.produced) == 1
    assert (bridge.log.text, bridge.log.completion, writer.last_sequence) == ("ab", completion, 3)


async def test_giving_up_is_final_and_told(bridge: FakeBridge) -> None:
    clock = asyncio.get_running_loop().time
    writer: Writer | None = None
    async with Client(bridge.address, retry=IMPATIENT) as client:
        began = clock()
        with pytest.raises(Unavailable) as caught:
            async with client.write(*KEY, close_timeout=0.2) as writer:
                await writer.text("a")
                await writer.flush()
                await bridge.stop()
                await writer.text("b")
                with pytest.raises(Unavailable) as first:
                    await writer.flush()
                assert first.value.attempts > 1
                assert first.value.outcome_unknown
                assert writer.stopped.is_set()
                await writer.text("c")
        assert clock() - began < 6
    assert caught.value is first.value
    assert any("the end of" in note for note in caught.value.__notes__)
    assert writer is not None
    assert not writer.completed
    await bridge.start()
    assert bridge.log.text == "a"


async def test_a_wait_beyond_the_deadline_is_not_begun(bridge: FakeBridge) -> None:
    async with Client(bridge.address, retry=IMPATIENT) as client:
        bridge.produce_faults.append(Fault("REDIS_UNAVAILABLE", retry_delay=60))
        with pytest.raises(Unavailable) as caught:
            async with client.write(*KEY) as writer:
                await writer.text("a")
                await writer.flush()
    assert (caught.value.attempts, caught.value.retry_delay) == (1, 60)
    # The end, and with it what was written, is tried once more.
    assert (bridge.log.text, finish_reason(bridge)) == ("a", FinishReason.ERROR)


async def test_after_giving_up_a_clean_exit_tries_again(bridge: FakeBridge) -> None:
    async with Client(bridge.address, retry=IMPATIENT) as client, client.write(*KEY) as writer:
        bridge.produce_faults.append(Fault("REDIS_UNAVAILABLE", retry_delay=60))
        await writer.text("a")
        with pytest.raises(Unavailable):
            await writer.flush()
        with pytest.raises(Unavailable):
            await writer.complete(FinishReason.LENGTH)
    assert bridge.log.text == "a"
    assert finish_reason(bridge) is FinishReason.STOP


async def test_a_clean_exit_tries_again_also_when_nobody_was_told(bridge: FakeBridge) -> None:
    async with Client(bridge.address, retry=IMPATIENT) as client, client.write(*KEY) as writer:
        bridge.produce_faults.append(Fault("REDIS_UNAVAILABLE", retry_delay=60))
        await writer.write("a", "b")
        await writer.stopped.wait()
    assert writer.completed
    assert (bridge.log.text, finish_reason(bridge)) == ("ab", FinishReason.STOP)


async def test_a_caller_that_was_told_may_leave_in_peace(bridge: FakeBridge, client: Client) -> None:
    async with client.write(*KEY) as writer:
        bridge.seal(token_pb2.FINISH_REASON_CANCELLED)
        await writer.text("a")
        with pytest.raises(StreamCompleted):
            await writer.flush()
        with pytest.raises(StreamCompleted):
            await writer.text("b")
    assert len(bridge.produced) == 1


async def test_an_end_that_could_not_be_stored_is_told(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(StreamCompleted):
        async with client.write(*KEY) as writer:
            await writer.text("a")
            await writer.flush()
            bridge.seal(token_pb2.FINISH_REASON_CANCELLED)


async def test_an_exception_becomes_the_end(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(ZeroDivisionError):
        async with client.write(*KEY) as writer:
            await writer.text("a")
            await writer.flush()
            bridge.produce_faults.append(DOWN)
            raise ZeroDivisionError("by 0" + "é" * 2000)
    completion = bridge.log.completion
    assert completion is not None
    assert FinishReason.of(completion) is FinishReason.ERROR
    assert completion.error_message.startswith("ZeroDivisionError: by 0é")
    assert len(completion.error_message.encode()) in (1023, 1024)


async def test_an_exception_goes_on_when_the_end_can_not_be_stored(bridge: FakeBridge) -> None:
    async with Client(bridge.address, retry=IMPATIENT) as client:
        with pytest.raises(ZeroDivisionError) as caught:
            async with client.write(*KEY) as writer:
                await writer.text("a")
                await writer.flush()
                await bridge.stop()
                raise ZeroDivisionError
    assert "Unavailable" in caught.value.__notes__[0]


async def cancelled_in_the_block(client: Client, bridge: FakeBridge, close_timeout: float = 10.0) -> asyncio.Task[None]:
    """Run a writer up to the middle of its block, in a task."""

    async def run() -> None:
        async with client.write(*KEY, close_timeout=close_timeout) as writer:
            await writer.text("a")
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await bridge.until(lambda: KEY in bridge.logs and bridge.log.text == "a")
    # The answer has to arrive, too; whether it has makes no difference to what is stored.
    await asyncio.sleep(0.02)
    return task


async def test_cancellation_becomes_the_end(bridge: FakeBridge, client: Client) -> None:
    task = await cancelled_in_the_block(client, bridge)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    completion = bridge.log.completion
    assert completion is not None
    assert (FinishReason.of(completion), completion.error_message) == (FinishReason.ERROR, "producer cancelled")


async def test_repeated_cancellation_does_not_prevent_the_end(bridge: FakeBridge, client: Client) -> None:
    task = await cancelled_in_the_block(client, bridge)
    bridge.produce_faults.extend([LOST_REPLY, DOWN])
    for _ in range(1000):
        task.cancel()
        await asyncio.sleep(0)
        if task.done():
            break
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finish_reason(bridge) is FinishReason.ERROR


async def test_cancellation_is_bounded(bridge: FakeBridge, client: Client) -> None:
    task = await cancelled_in_the_block(client, bridge, close_timeout=0.1)
    bridge.produce_faults.extend([Fault(hang=True)] * 20)
    clock = asyncio.get_running_loop().time
    began = clock()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert clock() - began < 2
    assert any("the end of" in note for note in caught.value.__notes__)
    assert bridge.log.completion is None


async def test_a_timeout_around_the_block_is_a_timeout(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            async with client.write(*KEY) as writer:
                await writer.text("a")
                await asyncio.Event().wait()
    assert finish_reason(bridge) is FinishReason.ERROR


@pytest.mark.parametrize("stored", [True, False])
async def test_cancelled_while_completing_the_good_end_is_stored(
    bridge: FakeBridge, client: Client, stored: bool
) -> None:
    async def run() -> None:
        async with client.write(*KEY) as writer:
            await writer.text("a")
            await writer.flush()
            bridge.produce_faults.append(Fault(hang=True, after_storing=stored))

    task = asyncio.create_task(run())
    await bridge.until(lambda: len(bridge.produced) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finish_reason(bridge) is FinishReason.STOP


async def test_leaving_a_generator_is_an_end(bridge: FakeBridge, client: Client) -> None:
    async def generate() -> AsyncGenerator[str]:
        async with client.write(*KEY) as writer:
            await writer.text("a")
            yield "a"

    pieces = generate()
    assert await anext(pieces) == "a"
    await pieces.aclose()
    assert finish_reason(bridge) is FinishReason.ERROR


async def test_closing_the_client_ends_its_writers(bridge: FakeBridge) -> None:
    bridge.produce_faults.append(Fault(hang=True))

    async def run(client: Client) -> None:
        async with client.write(*KEY) as writer:
            await writer.text("a")

    async with Client(bridge.address, retry=QUICK) as client:
        task = asyncio.create_task(run(client))
        await bridge.until(lambda: len(bridge.produced) == 1)
    with pytest.raises(ClientClosed):
        await task
    with pytest.raises(ClientClosed):
        await client.cancel(*KEY)
