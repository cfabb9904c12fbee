"""Writers on a real bridge and a real Redis: logs that lose what was stored, producers that die, streams cancelled."""

# ruff: noqa: PT012 - what raises is the end of a block, too

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from llmbridge.client import (
    Client,
    DataLost,
    FinishReason,
    Message,
    ProducerFenced,
    RetryPolicy,
    Sealer,
    SequenceGap,
    StreamCompleted,
    StreamNotFound,
    Takeover,
)
from llmbridge.v1.stream_pb2 import StreamRef
from tests.support.calls import failure, produce, ref
from tests.support.log_surgery import LogSurgery
from tests.support.producer_process import ProducerProcess
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge

KEY = ("s", "m", "r")
QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.02, attempt_timeout=5.0, give_up_after=20.0)


@pytest.fixture
async def client(bridge: RunningBridge) -> AsyncIterator[Client]:
    async with Client(bridge.address, retry=QUICK) as client:
        yield client


@pytest.fixture
def surgery(shared_redis: RedisProcess, key_prefix: str) -> Iterator[LogSurgery]:
    with redis.Redis.from_url(shared_redis.url) as server:
        yield LogSurgery(server, key_prefix, StreamRef(session_id="s", model_id="m", response_id="r"))


async def read(client: Client, after_cursor: str = "") -> list[Message]:
    async with asyncio.timeout(20):
        return [message async for message in client.subscribe(*KEY, after_cursor=after_cursor)]


def text(messages: list[Message]) -> str:
    return "".join(message.text for message in messages)


@pytest.mark.parametrize("keep", range(4))
async def test_a_lost_tail_is_filled_again(client: Client, surgery: LogSurgery, keep: int) -> None:
    """With the same entries, so that readers' cursors stay what they were unless nothing at all was left."""
    cursors = []
    async with client.write(*KEY) as writer:
        for words in ("ab", "cde", "fg", "h"):
            await writer.write(*words)
            await writer.flush()
            cursors.append(writer.cursor)
        if keep:
            surgery.lose_tail(keep)
        else:
            await client.streams.delete(*KEY)
        await writer.text("i")
        await writer.flush()
        assert writer.last_sequence == 9
    messages = await read(client)
    assert text(messages) == "abcdefghi"
    assert messages[-1].finish_reason is FinishReason.STOP
    if keep:
        for number, cursor in zip((2, 5, 7, 8), cursors, strict=True):
            assert text(await read(client, cursor)) == "abcdefghi"[number:]


async def test_a_tail_lost_before_the_completion_is_filled_again(client: Client, surgery: LogSurgery) -> None:
    async with client.write(*KEY) as writer:
        for word in "abc":
            await writer.text(word)
            await writer.flush()
        surgery.lose_tail(1)
    messages = await read(client)
    assert text(messages) == "abc"
    assert messages[-1].finish_reason is FinishReason.STOP


async def test_what_is_not_kept_is_told_to_everybody(client: Client, surgery: LogSurgery) -> None:
    with pytest.raises(DataLost) as caught:
        async with client.write(*KEY, keep_bytes=0) as writer:
            for word in "abc":
                await writer.text(word)
                await writer.flush()
            surgery.lose_tail(1)
            await writer.text("d")
            await asyncio.wait_for(writer.stopped.wait(), 15)
            await writer.text("e")
    assert caught.value.expected == 2
    assert not hasattr(caught.value, "__notes__")
    messages = await read(client)
    assert text(messages) == "a"
    completion = messages[-1].completion
    assert completion is not None
    assert FinishReason.of(completion) is FinishReason.ERROR
    assert completion.error_message.startswith("DATA_LOST: ")


async def test_a_producer_that_was_forgotten_and_went_on_is_not_overwritten(
    bridge: RunningBridge, client: Client, surgery: LogSurgery
) -> None:
    """A failover forgets the takeover too, so that the old producer's next record is taken."""
    # It does not hear that it was fenced off.
    old = ref("r")
    await produce(bridge.bridge, old, "a", first=1)
    takeover = await client.takeover(*KEY)
    with pytest.raises(DataLost):
        async with takeover.writer as new:
            await new.write("b", "c")
            await new.flush()
            surgery.lose_tail(1)
            await produce(bridge.bridge, old, "B", first=2)
            await new.text("d")
    assert (await failure(produce(bridge.bridge, old, "C", first=3))).reason == "COMPLETED"
    messages = await read(client)
    assert text(messages) == "aB"
    assert messages[-1].finish_reason is FinishReason.ERROR


async def test_a_killed_producers_text_is_taken_over(bridge: RunningBridge, client: Client) -> None:
    producer = ProducerProcess(bridge.address, KEY, ("every ", "token, "))
    await asyncio.to_thread(producer.start)
    reading = asyncio.create_task(read(client))
    await asyncio.to_thread(producer.kill)
    takeover = await client.takeover(*KEY)
    assert takeover.text == "every token, "
    assert [token.text for token in takeover.tokens] == ["every ", "token, "]
    async with takeover.writer as writer:
        await writer.text("once")
    messages = await reading
    assert text(messages) == "every token, once"
    assert messages[-1].finish_reason is FinishReason.STOP
    assert (await client.streams.get(*KEY)).producer_epoch == 1


async def test_an_interrupted_producer_ends_its_stream(bridge: RunningBridge, client: Client) -> None:
    producer = ProducerProcess(bridge.address, KEY, ("every ", "token"))
    await asyncio.to_thread(producer.start)
    code, errors = await asyncio.to_thread(producer.interrupt)
    assert "KeyboardInterrupt" in errors
    assert code != 0
    messages = await read(client)
    assert text(messages) == "every token"
    assert messages[-1].finish_reason is FinishReason.ERROR


async def test_of_two_takeovers_one_wins(client: Client) -> None:
    async with client.write(*KEY, close_timeout=0.1) as dead:
        await dead.text("a")
        await dead.flush()
        first, second = await asyncio.gather(client.takeover(*KEY), client.takeover(*KEY))

        both_tried = asyncio.Barrier(2)

        async def go_on(takeover: Takeover, word: str) -> str:
            try:
                async with takeover.writer as writer:
                    try:
                        await writer.text(word)
                        await writer.flush()
                    finally:
                        await both_tried.wait()
            except ProducerFenced:
                return ""
            return word

        words = await asyncio.gather(go_on(first, "b"), go_on(second, "c"))
        assert sorted(map(len, words)) == [0, 1]
        with pytest.raises(ProducerFenced):
            await dead.text("d")
            await dead.flush()
    messages = await read(client)
    assert text(messages) == "a" + "".join(words)
    assert messages[-1].finish_reason is FinishReason.STOP


async def test_a_producer_that_lives_after_all_is_not_cut_off(client: Client) -> None:
    async with client.write(*KEY) as alive:
        await alive.text("a")
        await alive.flush()
        takeover = await client.takeover(*KEY)
        await alive.text("b")
        await alive.flush()
        with pytest.raises(SequenceGap):
            async with takeover.writer as writer:
                await writer.text("x")
        await alive.text("c")
    assert text(await read(client)) == "abc"


async def test_what_can_not_be_taken_over(client: Client) -> None:
    with pytest.raises(StreamNotFound):
        await client.takeover(*KEY)
    await client.cancel(*KEY)
    with pytest.raises(StreamCompleted) as caught:
        await client.takeover(*KEY)
    assert (caught.value.finish_reason, caught.value.sealer) == (FinishReason.CANCELLED, Sealer.CANCEL)


async def test_an_empty_stream_is_taken_over_from_its_beginning(client: Client) -> None:
    await client.streams.create(*KEY)
    takeover = await client.takeover(*KEY)
    assert (takeover.text, takeover.tokens) == ("", ())
    async with takeover.writer as writer:
        await writer.text("a")
    assert text(await read(client)) == "a"


async def test_a_cancel_is_noticed_at_the_next_batch(client: Client) -> None:
    written = 0
    with pytest.raises(StreamCompleted) as caught:
        async with client.write(*KEY) as writer:
            async with asyncio.timeout(30):
                while not writer.stopped.is_set():
                    await writer.text("x")
                    written += 1
                    await asyncio.sleep(0.005)
                    if written == 20:
                        await client.cancel(*KEY, reason="enough")
    assert caught.value.sealer is Sealer.CANCEL
    # Within 2 s: by the next batch, and not when a silent writer would ask, after 5 s.
    assert written < 400


async def test_a_cancel_is_noticed_in_silence(client: Client) -> None:
    with pytest.raises(StreamCompleted):
        async with client.write(*KEY, keep_alive_interval=0.05) as writer:
            await writer.text("x")
            await writer.flush()
            await client.cancel(*KEY)
            await asyncio.wait_for(writer.stopped.wait(), 15)
