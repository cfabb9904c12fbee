"""Subscribe: where it begins, what it sends while there is nothing, how it ends."""

import asyncio
from typing import Any

import grpc
import pytest

from llmbridge.log.keys import Keys
from llmbridge.model.names import StreamName
from llmbridge.v1.bridge_service_pb2 import (
    POSITION_BEGINNING,
    POSITION_EARLIEST,
    POSITION_LATEST,
    CancelRequest,
    SubscribeRequest,
)
from llmbridge.v1.stream_admin_service_pb2 import CreateStreamRequest, TrimStreamRequest
from llmbridge.v1.token_pb2 import FINISH_REASON_CANCELLED, FINISH_REASON_STOP
from tests.support.calls import STOP, Received, attached, failure, produce, read_all, ref, until
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

STREAM = ref("r")


async def sealed(bridge: RunningBridge) -> None:
    """Records 1 to 3, then 4 and 5 with the completion, 6, in one entry."""
    await produce(bridge.bridge, STREAM, "a", "b", "c", first=1)
    await produce(bridge.bridge, STREAM, "d", "e", first=4, completion=STOP)


@pytest.mark.parametrize(
    "start",
    [{}, {"after_cursor": ""}, {"position": POSITION_BEGINNING}, {"position": 0}, {"position": POSITION_EARLIEST}],
    ids=["unset", "empty cursor", "beginning", "unspecified", "earliest"],
)
async def test_from_the_beginning(bridge: RunningBridge, start: dict[str, Any]) -> None:
    await sealed(bridge)
    received = await read_all(bridge.bridge, STREAM, **start)
    assert received.texts == ["a", "b", "c", "d", "e"]
    assert received.completion == STOP


async def test_earliest_of_a_trimmed_stream(bridge: RunningBridge) -> None:
    await sealed(bridge)
    await bridge.admin.TrimStream(TrimStreamRequest(stream=STREAM, keep_tokens=2))
    call = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, position=POSITION_EARLIEST))
    assert (await Received(last=3).read(call)).texts == ["d", "e"]


async def test_after_each_record_also_inside_an_entry(bridge: RunningBridge) -> None:
    texts = ["a", "b", "c", "d", "e"]
    await sealed(bridge)
    for through in range(1, 6):
        # A retry of less than was stored is a duplicate and answers its own last record's cursor.
        answer = await produce(bridge.bridge, STREAM, *texts[:through], first=1)
        assert (answer.duplicate, answer.last_sequence) == (True, through)
        call = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, after_cursor=answer.cursor))
        received = await Received(last=through, cursor=answer.cursor).read(call)
        assert received.texts == texts[through:]
        assert (received.last, received.completion) == (6, STOP)


async def test_an_open_stream_goes_on_after_a_cursor_inside_an_entry(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, STREAM, "a", "b", "c", first=1)
    cursor = (await produce(bridge.bridge, STREAM, "a", first=1)).cursor
    call = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, after_cursor=cursor))
    received = await Received(last=1, cursor=cursor).read(call, through=3)
    await produce(bridge.bridge, STREAM, "d", first=4, completion=STOP)
    assert (await received.read(call)).texts == ["b", "c", "d"]


async def test_after_the_end_it_is_over_without_a_message(bridge: RunningBridge) -> None:
    await sealed(bridge)
    received = await read_all(bridge.bridge, STREAM)
    call = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, after_cursor=received.cursor))
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


class TestLatest:
    async def test_only_what_comes(self, bridge: RunningBridge) -> None:
        cursor = (await produce(bridge.bridge, STREAM, "old", "older", first=1)).cursor
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM, position=POSITION_LATEST))
        await produce(bridge.bridge, STREAM, "new", first=3, completion=STOP)
        received = await Received(last=2, cursor=cursor).read(call)
        assert (received.texts, received.completion) == (["new"], STOP)

    async def test_its_place_is_told_at_once_so_that_a_cut_loses_nothing(self, bridge: RunningBridge) -> None:
        cursor = (await produce(bridge.bridge, STREAM, "old", first=1)).cursor
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM, position=POSITION_LATEST))
        received = Received(last=1, cursor=cursor)
        await received.beat(call)
        call.cancel()
        await produce(bridge.bridge, STREAM, "new", first=2, completion=STOP)
        call = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, after_cursor=received.cursor))
        assert (await received.read(call)).texts == ["new"]

    async def test_everything_of_a_stream_that_is_not_there_yet(self, bridge: RunningBridge) -> None:
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM, position=POSITION_LATEST))
        await sealed(bridge)
        assert (await Received().read(call)).text == "abcde"

    @pytest.mark.parametrize("together", [False, True], ids=["alone", "in the entry of the last tokens"])
    async def test_of_a_sealed_stream_is_the_completion(self, bridge: RunningBridge, together: bool) -> None:
        await produce(bridge.bridge, STREAM, "a", "b", first=1, completion=STOP if together else None)
        if not together:
            await produce(bridge.bridge, STREAM, first=3, completion=STOP)
        call = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, position=POSITION_LATEST))
        received = await Received(last=2).read(call)
        assert (received.texts, received.completion) == ([], STOP)
        assert received.cursor == (await read_all(bridge.bridge, STREAM)).cursor


class TestWaiting:
    async def test_for_a_stream_that_is_not_there_yet(self, bridge: RunningBridge) -> None:
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        await sealed(bridge)
        assert (await Received().read(call)).text == "abcde"

    async def test_for_the_first_token_of_a_created_stream(self, bridge: RunningBridge) -> None:
        before = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        await bridge.admin.CreateStream(CreateStreamRequest(stream=STREAM))
        after = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        await sealed(bridge)
        for call in (before, after):
            assert (await Received().read(call)).text == "abcde"

    async def test_a_cancel_of_a_stream_that_was_never_there_ends_it(self, bridge: RunningBridge) -> None:
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        await bridge.bridge.Cancel(CancelRequest(stream=STREAM, reason="enough"))
        received = await Received().read(call)
        assert received.completion is not None
        assert received.completion.finish_reason == FINISH_REASON_CANCELLED
        assert received.completion.error_message == "enough"

    async def test_heartbeats_carry_the_cursor(self, shared_redis: RedisProcess, key_prefix: str) -> None:
        async with running_bridge(shared_redis.url, key_prefix=key_prefix, heartbeat_ms=100) as bridge:
            call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
            received = Received()
            await received.beat(call)
            assert received.cursor == ""
            await bridge.admin.CreateStream(CreateStreamRequest(stream=STREAM))
            await received.beat(call)
            await produce(bridge.bridge, STREAM, "a", first=1)
            await received.read(call, through=1)
            # `take` checks that they repeat the last record's cursor.
            await received.beat(call)
            await received.beat(call)
            await produce(bridge.bridge, STREAM, first=2, completion=STOP)
            assert (await received.read(call)).completion == STOP


class TestManyReaders:
    async def test_each_gets_everything_from_one_tail(self, bridge: RunningBridge) -> None:
        calls = [await attached(bridge.bridge, SubscribeRequest(stream=STREAM)) for _ in range(20)]
        assert bridge.core._fanout.tails == 1
        readings = [asyncio.create_task(Received().read(call)) for call in calls]
        for i in range(50):
            await produce(bridge.bridge, STREAM, f"{i} ", first=i + 1, completion=STOP if i == 49 else None)
        for reading in readings:
            received = await reading
            assert received.text == "".join(f"{i} " for i in range(50))
            assert received.completion == STOP
        await until(lambda: bridge.core.idle)

    async def test_on_another_bridge(self, bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str) -> None:
        async with running_bridge(shared_redis.url, beside=True, key_prefix=key_prefix) as other:
            call = await attached(other.bridge, SubscribeRequest(stream=STREAM))
            await sealed(bridge)
            assert (await Received().read(call)).text == "abcde"

    async def test_those_that_leave_are_forgotten(self, bridge: RunningBridge) -> None:
        calls = [await attached(bridge.bridge, SubscribeRequest(stream=ref(str(i % 3)))) for i in range(9)]
        assert bridge.core._fanout.tails == 3
        for call in calls:
            call.cancel()
        await until(lambda: bridge.core.idle)
        # Also what was asked for again right after it was dropped is really followed.
        for i in range(10):
            (await attached(bridge.bridge, SubscribeRequest(stream=STREAM))).cancel()
            call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
            await produce(bridge.bridge, STREAM, "x", first=i + 1)
            await Received().read(call, through=i + 1)
            call.cancel()


async def test_every_record_arrives_whatever_its_size(bridge: RunningBridge) -> None:
    """Small ones come with the wake-up, large ones are read; together and alone, over the size of a page."""
    sizes = [1, 4_000, 5_000, 60_000, 60_000, 60_000, 60_000, 60_000, 60_000, 0, 4_096, 65_000]
    call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
    reading = asyncio.create_task(Received().read(call))
    for i, size in enumerate(sizes):
        await produce(bridge.bridge, STREAM, "x" * size, first=i + 1)
    await produce(bridge.bridge, STREAM, first=len(sizes) + 1, completion=STOP)
    for received in (await reading, await read_all(bridge.bridge, STREAM)):
        assert list(map(len, received.texts)) == sizes


async def test_the_largest_requests_fit_into_messages_that_any_client_takes(
    shared_redis: RedisProcess, key_prefix: str
) -> None:
    size = 3_145_728 - 100
    async with running_bridge(
        shared_redis.url, key_prefix=key_prefix, max_request_bytes=3_145_728, max_token_bytes=3_145_728
    ) as bridge:
        for i in range(3):
            await produce(bridge.bridge, STREAM, str(i) * size, first=i + 1, completion=STOP if i == 2 else None)
        received = await read_all(bridge.bridge, STREAM)
    assert [text[0] for text in received.texts] == ["0", "1", "2"]
    assert received.completion is not None
    assert received.completion.finish_reason == FINISH_REASON_STOP


@pytest.mark.parametrize("position", [POSITION_BEGINNING, POSITION_EARLIEST, POSITION_LATEST])
async def test_a_key_that_is_no_stream_ends_the_call(
    bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str, position: Any
) -> None:
    """It can't be served and is not the client's fault; what counts is that it neither hangs nor spins."""
    with shared_redis.client() as client:
        client.set(Keys(key_prefix, 64).stream(StreamName("s", "m", "r")).log, "not ours", ex=60)
    call = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, position=position))
    assert (await failure(Received().read(call))).reason == "INTERNAL"
