"""A client's shared calls against real bridges and a real Redis: killed, drained, cancelled, and with many readers."""

# ruff: noqa: PT012 - what raises is the end of a block, too

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from llmbridge.client import Client, FinishReason, Message, ProducerFenced, RetryPolicy, StreamCompleted, Token
from tests.support.bridge_process import BridgeProcess
from tests.support.calls import PATIENCE_SECONDS, until
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge

QUICK = RetryPolicy(first_delay=0.01, longest_delay=0.1, attempt_timeout=5.0, give_up_after=20.0)
STREAMS = 12
TEXTS = [f"{number} " for number in range(150)]


@pytest.fixture
async def client(bridge: RunningBridge) -> AsyncIterator[Client]:
    async with Client(bridge.address, retry=QUICK) as client:
        yield client


@pytest.fixture
def bridges(shared_redis: RedisProcess, key_prefix: str) -> Iterator[tuple[BridgeProcess, BridgeProcess]]:
    environment = {"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": key_prefix}
    first, second = BridgeProcess(environment).start(), BridgeProcess(environment).start()
    yield first, second
    first.close()
    second.close()


def key(number: int) -> tuple[str, str, str]:
    return f"s{number}", "m", "r"


async def write(client: Client, number: int) -> None:
    dice = random.Random(number)
    async with client.write(*key(number)) as writer:
        for text in TEXTS:
            await writer.text(text)
            await asyncio.sleep(dice.random() * 0.02)


async def read(client: Client, number: int) -> list[Message]:
    return [message async for message in client.subscribe(*key(number))]


@pytest.mark.parametrize("end", [BridgeProcess.kill, BridgeProcess.terminate], ids=["killed", "drained"])
async def test_writers_and_readers_go_on_at_another_bridge(
    bridges: tuple[BridgeProcess, BridgeProcess], end: Callable[[BridgeProcess], object]
) -> None:
    first, second = bridges
    async with (
        asyncio.timeout(40),
        Client(f"{first.address},{second.address}", retry=QUICK) as client,
        asyncio.TaskGroup() as tasks,
    ):
        readers = [tasks.create_task(read(client, number % STREAMS)) for number in range(2 * STREAMS)]
        for number in range(STREAMS):
            tasks.create_task(write(client, number))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(end, first)
    for reader in readers:
        messages = reader.result()
        assert [token.text for message in messages for token in message.tokens] == TEXTS
        assert messages[-1].finish_reason is FinishReason.STOP
        assert messages[-1].last_sequence == len(TEXTS) + 1


async def test_readers_of_a_stream_get_the_same_objects(bridge: RunningBridge, client: Client) -> None:
    readers = [asyncio.create_task(read(client, 1)) for _ in range(200)]
    await until(lambda: len(bridge.core._connections) == len(readers))
    async with client.write(*key(1)) as writer:
        for text in "abcdefgh":
            await writer.text(text)
            await writer.flush()
            await asyncio.sleep(0.02)
    received = await asyncio.gather(*readers)
    assert {"".join(message.text for message in messages) for messages in received} == {"abcdefgh"}
    last = {id(messages[-1]) for messages in received}
    assert len(last) == 1


async def test_credit_is_counted_as_the_bridge_counts_it(client: Client) -> None:
    """A stream of many times the credit is read to its end, with messages of all sizes."""
    dice = random.Random(7)
    texts = [chr(dice.choice([0x61, 0xE9, 0x20AC, 0x1F600])) * dice.choice([1, 50, 700, 9_000]) for _ in range(800)]
    async with client.write(*key(1)) as writer:
        for number, text in enumerate(texts):
            await writer.write(Token(text=text, attributes={"n": str(number)}) if number % 3 else text)
    async with asyncio.timeout(20):
        for messages in await asyncio.gather(*(read(client, 1) for _ in range(3))):
            assert [token.text for message in messages for token in message.tokens] == texts


async def test_a_cancel_reaches_a_silent_writer_at_once(client: Client) -> None:
    with pytest.raises(StreamCompleted):
        async with client.write(*key(1), keep_alive_interval=60) as writer:
            await writer.text("a")
            await writer.flush()
            await client.cancel(*key(1))
            await asyncio.wait_for(writer.stopped.wait(), PATIENCE_SECONDS)
    assert (await read(client, 1))[-1].finish_reason is FinishReason.CANCELLED


async def test_a_takeover_reaches_a_silent_writer_at_once(client: Client) -> None:
    async with client.write(*key(1), keep_alive_interval=60, close_timeout=0.1) as dead:
        await dead.text("a")
        await dead.flush()
        takeover = await client.takeover(*key(1))
        async with takeover.writer as writer:
            await writer.text("b")
            await writer.flush()
            await asyncio.wait_for(dead.stopped.wait(), PATIENCE_SECONDS)
        with pytest.raises(ProducerFenced):
            await dead.text("c")
    assert "".join(message.text for message in await read(client, 1)) == "ab"
