"""The writer's buffer: writing waits for nobody until it is full, and then for its turn."""

# ruff: noqa: PT012 - what raises is the end of a block, too

import asyncio

import pytest

from llmbridge.client import Client, StreamCompleted, Token, Unavailable
from llmbridge.v1 import token_pb2
from tests.support.fake_bridge import KEY, FakeBridge
from tests.support.faults import Fault


async def test_writing_does_not_wait_for_the_bridge(bridge: FakeBridge, client: Client) -> None:
    """While a batch is on its way what is written gathers, and goes with the next."""
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def held() -> None:
        arrived.set()
        await go_on.wait()

    bridge.before_produce = held
    async with client.write(*KEY) as writer:
        await writer.text("a")
        await arrived.wait()
        for letter in "bcde":
            await writer.text(letter)
        await writer.complete()
        assert KEY not in bridge.logs
        go_on.set()
    assert [[token.text for token in request.tokens] for request in bridge.produced] == [["a"], ["b", "c", "d", "e"]]
    assert bridge.produced[1].HasField("completion")


async def test_what_is_written_may_be_changed_afterwards(bridge: FakeBridge, client: Client) -> None:
    token = Token(text="a")
    async with client.write(*KEY) as writer:
        await writer.write(token)
        token.text = "b"
        await writer.write(token)
    assert bridge.log.text == "ab"


async def test_lingering_gathers_more(bridge: FakeBridge, client: Client) -> None:
    async with client.write(*KEY, linger=0.3) as writer:
        for letter in "abc":
            await writer.text(letter)
            await asyncio.sleep(0.01)
        assert bridge.produced == []
        await bridge.until(lambda: len(bridge.produced) == 1)
        assert len(bridge.produced[0].tokens) == 3


async def test_nobody_waits_for_lingering(bridge: FakeBridge, client: Client) -> None:
    async with asyncio.timeout(5), client.write(*KEY, linger=60) as writer:
        await writer.text("a")
        await writer.flush()
        await writer.write(*["b"] * 1_024)
        await bridge.until(lambda: len(bridge.produced) == 2)
        await writer.text("c")
    assert [request.first_sequence for request in bridge.produced] == [1, 2, 1026]


async def test_a_full_buffer_is_waited_for(bridge: FakeBridge, client: Client) -> None:
    go_on = asyncio.Event()

    async def held() -> None:
        await go_on.wait()

    bridge.before_produce = held
    async with client.write(*KEY, max_unsent_tokens=3) as writer:
        await writer.text("a")
        await bridge.until(lambda: len(bridge.produced) == 1)
        await writer.write("b", "c", "d")
        waiting = [asyncio.create_task(writer.text(letter)) for letter in "efgh"]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        # Whoever gives up has written nothing, and the others keep their order.
        waiting[1].cancel()
        await asyncio.wait([waiting[1]])
        go_on.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert waiting[1].cancelled()
    assert bridge.log.text == "abcdegh"


async def test_a_full_buffer_in_bytes_is_waited_for(bridge: FakeBridge, client: Client) -> None:
    go_on = asyncio.Event()

    async def held() -> None:
        await go_on.wait()

    bridge.before_produce = held
    async with client.write(*KEY, max_unsent_bytes=1_000) as writer:
        await writer.text("a")
        await bridge.until(lambda: len(bridge.produced) == 1)
        await writer.text("b" * 900)
        waiting = asyncio.create_task(writer.text("c" * 900))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        go_on.set()
        await waiting
        await writer.write(*["d" * 900] * 3)
    assert bridge.log.text == "a" + "b" * 900 + "c" * 900 + "d" * 2_700


async def test_nobody_is_overtaken_while_waiting_for_room(bridge: FakeBridge, client: Client) -> None:
    async with client.write(*KEY, max_unsent_tokens=1) as writer, asyncio.TaskGroup() as tasks:
        for number in range(300):
            tasks.create_task(writer.text(f"{number} "))
            for _ in range(number % 7):
                await asyncio.sleep(0)
    assert [int(word) for word in bridge.log.text.split()] == list(range(300))


async def test_who_waits_for_room_is_told_what_failed(bridge: FakeBridge, client: Client) -> None:
    go_on = asyncio.Event()

    async def held() -> None:
        await go_on.wait()
        bridge.seal(token_pb2.FINISH_REASON_CANCELLED)

    bridge.before_produce = held
    async with client.write(*KEY, max_unsent_tokens=1) as writer:
        await writer.text("a")
        await bridge.until(lambda: len(bridge.produced) == 1)
        await writer.text("b")
        calls = [asyncio.create_task(call) for call in (writer.text("c"), writer.text("d"), writer.flush())]
        await asyncio.sleep(0.02)
        go_on.set()
        for call in calls:
            with pytest.raises(StreamCompleted):
                await call
        assert writer.stopped.is_set()


async def test_leaving_in_a_hurry_leaves_nobody_waiting(bridge: FakeBridge, client: Client) -> None:
    bridge.produce_faults.extend([Fault(hang=True)] * 5)
    flushing: asyncio.Task[None] | None = None
    with pytest.raises(KeyboardInterrupt):
        async with client.write(*KEY, close_timeout=0.1) as writer:
            await writer.text("a")
            flushing = asyncio.create_task(writer.flush())
            await bridge.until(lambda: len(bridge.produced) == 1)
            raise KeyboardInterrupt
    assert flushing is not None
    with pytest.raises(Unavailable, match="left before"):
        await flushing
