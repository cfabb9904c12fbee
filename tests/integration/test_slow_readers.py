"""Slow readers: held by flow control, neither dropped nor felt by others, and quick to catch up."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from llmbridge.hub.tail import WINDOW_BYTES, WINDOW_ENTRIES
from llmbridge.log.reading import PAGE_BYTES
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from tests.support.calls import STOP, Received, attached, produce, ref, stalled_channel, stub, until
from tests.support.running_bridge import RunningBridge

STREAM = ref("r")


@asynccontextmanager
async def slow_reader(bridge: RunningBridge) -> AsyncIterator[Any]:
    """A reader on a connection of its own that takes about 64 KiB before it reads."""
    async with stalled_channel(bridge.address) as channel:
        yield await attached(stub(channel), SubscribeRequest(stream=STREAM))


def text(i: int, size: int) -> str:
    return f"{i:08d}" + "x" * (size - 8)


async def produce_entries(bridge: RunningBridge, entries: range, tokens: int, size: int) -> None:
    """Produce numbered tokens, one request at a time, each an entry of so many."""
    for entry in entries:
        first = entry * tokens + 1
        await produce(bridge.bridge, STREAM, *(text(i, size) for i in range(first, first + tokens)), first=first)


def numbers(received: Received) -> list[int]:
    return [int(entry[:8]) for entry in received.texts]


async def test_fast_readers_do_not_feel_a_slow_one(bridge: RunningBridge) -> None:
    entries, size = 400, 2_000
    async with slow_reader(bridge) as slow:
        fast = [await attached(bridge.bridge, SubscribeRequest(stream=STREAM)) for _ in range(3)]
        readers = [Received() for _ in fast]
        late = []
        for i in range(1, entries + 1):
            await produce(bridge.bridge, STREAM, text(i, size), first=i)
            stored = time.monotonic()
            for reader, call in zip(readers, fast, strict=True):
                await reader.read(call, through=i)
            late.append(time.monotonic() - stored)
        # Every record reached the fast readers before the next was produced, while 800 KB waited for the slow one.
        assert sorted(late)[len(late) // 2] < 0.1
        await produce(bridge.bridge, STREAM, first=entries + 1, completion=STOP)
        held_up = await Received().read(slow)
        assert numbers(held_up) == list(range(1, entries + 1))
        assert held_up.completion == STOP
        # What it had not taken at once came in larger messages: far fewer than the records that were not in buffers.
        assert held_up.messages < entries / 2
        for reader, call in zip(readers, fast, strict=True):
            await reader.read(call)
            assert numbers(reader) == list(range(1, entries + 1))


async def test_ten_thousand_tokens_behind_is_no_more_than_a_page(bridge: RunningBridge) -> None:
    entries, tokens, size = 200, 50, 800
    async with slow_reader(bridge) as slow:
        # What is made once, on first use, is not what this is about.
        await produce_entries(bridge, range(10), tokens, size)
        await asyncio.sleep(0.1)
        gc.collect()
        tracemalloc.start()
        try:
            await produce_entries(bridge, range(10, entries), tokens, size)
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # 7.6 MB were produced meanwhile. The window holds each fragment, and each message that was asked for.
        assert held < 2 * WINDOW_BYTES + 2 * PAGE_BYTES
        await produce(bridge.bridge, STREAM, first=entries * tokens + 1, completion=STOP)
        held_up = await Received().read(slow)
        assert numbers(held_up) == list(range(1, entries * tokens + 1))


async def test_the_window_of_a_busy_stream_stays_small(bridge: RunningBridge) -> None:
    call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
    reading = asyncio.create_task(Received().read(call))
    await produce_entries(bridge, range(300), 1, 20)
    await produce_entries(bridge, range(300, 330), 1, 60_000)
    [tail] = bridge.core._fanout._tails.values()
    assert len(tail._window) <= WINDOW_ENTRIES
    assert tail._window_bytes <= WINDOW_BYTES
    await produce(bridge.bridge, STREAM, first=331, completion=STOP)
    assert numbers(await reading) == list(range(1, 331))


async def test_a_slow_reader_that_leaves_is_forgotten(bridge: RunningBridge) -> None:
    async with slow_reader(bridge) as slow:
        await produce_entries(bridge, range(50), 1, 20_000)
        slow.cancel()
        await until(lambda: bridge.core.idle)


async def test_readers_at_many_places_catch_up_together(bridge: RunningBridge) -> None:
    entries = 600
    numbered = range(1, entries + 1)
    cursors = ["", *[(await produce(bridge.bridge, STREAM, text(i, 1_000), first=i)).cursor for i in numbered]]
    await produce(bridge.bridge, STREAM, first=entries + 1, completion=STOP)

    async def catch_up(place: int) -> Received:
        call = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, after_cursor=cursors[place]))
        return await Received(last=place, cursor=cursors[place]).read(call)

    places = range(0, entries, 20)
    for place, received in zip(places, await asyncio.gather(*map(catch_up, places)), strict=True):
        assert numbers(received) == list(range(place + 1, entries + 1))
        # From the log in pages, not entry by entry.
        assert received.messages <= 2 + (entries - place) * 1_100 / PAGE_BYTES
