"""Cancel, KeepAlive and lost producers: what becomes of streams in every state, and what producers and readers get."""

import asyncio

import grpc
import pytest

from llmbridge.rpc.limits import MAX_REASON_BYTES
from llmbridge.v1.bridge_service_pb2 import CancelRequest, CancelResponse, KeepAliveRequest, SubscribeRequest
from llmbridge.v1.stream_admin_service_pb2 import CreateStreamRequest, GetStreamRequest
from llmbridge.v1.stream_pb2 import (
    SEALER_CANCEL,
    SEALER_LOST,
    SEALER_PRODUCER,
    STREAM_STATE_SEALED,
    StreamInfo,
    StreamRef,
)
from llmbridge.v1.token_pb2 import FINISH_REASON_CANCELLED, FINISH_REASON_ERROR, FINISH_REASON_STOP, Completion
from tests.support.bridge_process import BridgeProcess
from tests.support.calls import PATIENCE_SECONDS, STOP, Received, attached, failure, produce, read_all, ref, stub
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

CANCELLED = {"finish_reason": "FINISH_REASON_CANCELLED", "sealer": "SEALER_CANCEL"}
STREAM = ref("r")


async def _cancel(bridge: RunningBridge, stream: StreamRef = STREAM, reason: str = "") -> CancelResponse:
    answer: CancelResponse = await bridge.bridge.Cancel(CancelRequest(stream=stream, reason=reason))
    return answer


async def _info(bridge: RunningBridge) -> StreamInfo:
    info: StreamInfo = (await bridge.admin.GetStream(GetStreamRequest(stream=STREAM))).info
    return info


async def test_cancelling_an_absent_stream_creates_it_sealed(bridge: RunningBridge) -> None:
    done = await _cancel(bridge, reason="not wanted")
    assert (done.last_sequence, done.finish_reason, done.sealer, done.sealed_now) == (
        1,
        FINISH_REASON_CANCELLED,
        SEALER_CANCEL,
        True,
    )
    info = await _info(bridge)
    assert (info.state, info.sealer, info.first_sequence, info.last_sequence, info.cursor) == (
        STREAM_STATE_SEALED,
        SEALER_CANCEL,
        1,
        1,
        done.cursor,
    )
    received = await read_all(bridge.bridge, STREAM)
    assert received.texts == []
    assert received.completion == Completion(finish_reason=FINISH_REASON_CANCELLED, error_message="not wanted")
    assert received.cursor == done.cursor
    late = await failure(produce(bridge.bridge, STREAM, "a", first=1))
    assert late.short == (grpc.StatusCode.FAILED_PRECONDITION, "COMPLETED", CANCELLED)


async def test_cancelling_a_created_stream(bridge: RunningBridge) -> None:
    await bridge.admin.CreateStream(CreateStreamRequest(stream=STREAM))
    assert (await _cancel(bridge)).last_sequence == 1
    assert (await failure(produce(bridge.bridge, STREAM, "a", first=1))).metadata == CANCELLED


async def test_every_reader_gets_the_end_and_the_producer_is_told_at_its_next_call(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, STREAM, "a", "b", first=1)
    calls = [await attached(bridge.bridge, SubscribeRequest(stream=STREAM)) for _ in range(3)]
    readers = [await Received().read(call, through=2) for call in calls]
    done = await _cancel(bridge, reason="enough")
    assert done.last_sequence == 3
    for reader, call in zip(readers, calls, strict=True):
        await reader.read(call)
        assert reader.text == "ab"
        assert reader.completion == Completion(finish_reason=FINISH_REASON_CANCELLED, error_message="enough")
        assert reader.cursor == done.cursor
    for first, texts, completion in ((3, ["c"], None), (0, ["c"], None), (3, [], STOP), (2, ["b", "c"], None)):
        refused = await failure(produce(bridge.bridge, STREAM, *texts, first=first, completion=completion))
        assert refused.short == (grpc.StatusCode.FAILED_PRECONDITION, "COMPLETED", CANCELLED)
    # A retry of what was stored before is told that it is stored, so that its writer goes on to learn of the end.
    repeated = await produce(bridge.bridge, STREAM, "a", "b", first=1)
    assert (repeated.duplicate, repeated.last_sequence) == (True, 2)
    # The end itself is no news to a producer that repeats the last token: its cursor leads to the completion.
    rest = await Received(last=2).read(
        bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, after_cursor=repeated.cursor))
    )
    assert rest.completion is not None


async def test_cancelling_again_changes_nothing(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, STREAM, "a", first=1)
    first = await _cancel(bridge, reason="one")
    again = await _cancel(bridge, reason="two")
    assert (first.sealed_now, again.sealed_now) == (True, False)
    assert (again.cursor, again.last_sequence, again.finish_reason, again.sealer) == (
        first.cursor,
        2,
        FINISH_REASON_CANCELLED,
        SEALER_CANCEL,
    )
    assert (await read_all(bridge.bridge, STREAM)).completion == Completion(
        finish_reason=FINISH_REASON_CANCELLED, error_message="one"
    )


async def test_cancelling_what_its_producer_ended_tells_how_it_ended(bridge: RunningBridge) -> None:
    ended = await produce(bridge.bridge, STREAM, "a", first=1, completion=STOP)
    done = await _cancel(bridge)
    assert (done.cursor, done.last_sequence, done.finish_reason, done.sealer, done.sealed_now) == (
        ended.cursor,
        2,
        FINISH_REASON_STOP,
        SEALER_PRODUCER,
        False,
    )


async def test_of_many_cancels_at_once_exactly_one_seals(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, STREAM, "a", first=1)
    answers = await asyncio.gather(*(_cancel(bridge, reason=str(i)) for i in range(20)))
    assert sum(answer.sealed_now for answer in answers) == 1
    assert len({answer.cursor for answer in answers}) == 1
    assert (await _info(bridge)).last_sequence == 2


async def test_a_cancel_amid_appends_leaves_a_dense_log(bridge: RunningBridge) -> None:
    stored = 0

    async def write() -> None:
        nonlocal stored
        for sequence in range(1, 1_000):
            await produce(bridge.bridge, STREAM, str(sequence), first=sequence)
            stored = sequence

    async def cancel_in_the_middle() -> CancelResponse:
        await attached_call.read()
        return await _cancel(bridge)

    attached_call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
    stopped, done = await asyncio.gather(failure(write()), cancel_in_the_middle())
    attached_call.cancel()
    assert stopped.metadata == CANCELLED
    assert done.last_sequence == stored + 1
    received = await read_all(bridge.bridge, STREAM)
    assert received.texts == [str(sequence) for sequence in range(1, stored + 1)]


async def test_a_reason_has_a_limit(bridge: RunningBridge) -> None:
    too_long = await failure(_cancel(bridge, reason="é" * (MAX_REASON_BYTES // 2) + "x"))
    assert too_long.short == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"field": "reason"})
    assert (await failure(_info(bridge))).reason == "STREAM_NOT_FOUND", "nothing was created"
    assert (await _cancel(bridge, reason="é" * (MAX_REASON_BYTES // 2))).sealed_now


def _alive(epoch: int = 0, producer_id: str = "") -> KeepAliveRequest:
    return KeepAliveRequest(stream=STREAM, producer_epoch=epoch, producer_id=producer_id)


async def test_keep_alive_of_an_absent_stream(bridge: RunningBridge) -> None:
    absent = await failure(bridge.bridge.KeepAlive(_alive()))
    assert absent.short == (
        grpc.StatusCode.NOT_FOUND,
        "STREAM_NOT_FOUND",
        {"session_id": "s", "model_id": "m", "response_id": "r"},
    )


async def test_keep_alive_of_a_created_stream_is_open_to_anybody(bridge: RunningBridge) -> None:
    await bridge.admin.CreateStream(CreateStreamRequest(stream=STREAM))
    for epoch in (3, 0):
        answer = await bridge.bridge.KeepAlive(_alive(epoch))
        assert answer.producer_lost_ms == bridge.settings.producer_lost_ms


@pytest.mark.parametrize(
    ("epoch", "producer_id", "fenced"),
    [(3, "a", False), (4, "b", False), (3, "b", True), (3, "", True), (2, "a", True), (0, "", True)],
)
async def test_keep_alive_fences_as_produce_does(
    bridge: RunningBridge, epoch: int, producer_id: str, fenced: bool
) -> None:
    await produce(bridge.bridge, STREAM, "a", first=1, producer_epoch=3, producer_id="a")
    call = bridge.bridge.KeepAlive(_alive(epoch, producer_id))
    if fenced:
        refused = await failure(call)
        assert refused.short == (grpc.StatusCode.FAILED_PRECONDITION, "FENCED", {"epoch": "3"})
    else:
        await call
    # It takes nothing over.
    await produce(bridge.bridge, STREAM, "b", first=2, producer_epoch=3, producer_id="a")


async def test_keep_alive_of_a_sealed_stream(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, STREAM, "a", first=1)
    await _cancel(bridge)
    refused = await failure(bridge.bridge.KeepAlive(_alive()))
    assert refused.short == (grpc.StatusCode.FAILED_PRECONDITION, "COMPLETED", CANCELLED)


async def test_another_instance_stops_as_well(bridge: RunningBridge, shared_redis: RedisProcess) -> None:
    process = BridgeProcess({"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": bridge.settings.key_prefix})
    process.start()
    try:
        async with grpc.aio.insecure_channel(process.address) as channel:
            other = stub(channel)
            await produce(bridge.bridge, STREAM, "a", first=1)
            call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
            received = await Received().read(call, through=1)
            await other.KeepAlive(_alive())
            assert (await other.Cancel(CancelRequest(stream=STREAM))).sealed_now
            assert (await received.read(call)).completion == Completion(finish_reason=FINISH_REASON_CANCELLED)
            assert (await failure(produce(bridge.bridge, STREAM, "b", first=2))).metadata == CANCELLED
    finally:
        process.close()


async def _until_sealed(bridge: RunningBridge, stream: StreamRef) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await bridge.admin.GetStream(GetStreamRequest(stream=stream))).info.state != STREAM_STATE_SEALED:
            await asyncio.sleep(0.02)


async def test_a_bridge_ends_silent_streams_with_readers_and_without(
    shared_redis: RedisProcess, key_prefix: str
) -> None:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, producer_lost_ms=200) as bridge:
        read, unread, created = ref("read"), ref("unread"), ref("created")
        await bridge.admin.CreateStream(CreateStreamRequest(stream=created))
        await produce(bridge.bridge, unread, "a", first=1)
        await produce(bridge.bridge, read, "a", first=1)
        call = await attached(bridge.bridge, SubscribeRequest(stream=read))
        received = await Received().read(call)
        assert received.text == "a"
        assert received.completion is not None
        assert received.completion.finish_reason == FINISH_REASON_ERROR
        assert received.completion.error_message == "producer lost: nothing was heard of it for 200 ms"
        for stream in (unread, created):
            await _until_sealed(bridge, stream)
            assert (await read_all(bridge.bridge, stream)).completion == received.completion
        info = (await bridge.admin.GetStream(GetStreamRequest(stream=unread))).info
        assert (info.sealer, info.finish_reason) == (SEALER_LOST, FINISH_REASON_ERROR)
        told = await failure(produce(bridge.bridge, unread, "b", first=2))
        assert told.metadata == {"finish_reason": "FINISH_REASON_ERROR", "sealer": "SEALER_LOST"}


async def test_a_bridge_spares_who_is_silent_on_purpose(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, producer_lost_ms=3_000) as bridge:
        # The sweep comes to them in this order.
        stream, forgotten = ref("alive"), ref("forgotten")
        for begun in (stream, forgotten):
            await produce(bridge.bridge, begun, "a", first=1)
        alive = KeepAliveRequest(stream=stream)
        forgotten_ends = asyncio.create_task(_until_sealed(bridge, forgotten))
        while not forgotten_ends.done():
            answer = await bridge.bridge.KeepAlive(alive)
            await asyncio.wait((forgotten_ends,), timeout=answer.producer_lost_ms / 20_000)
        await forgotten_ends
        await produce(bridge.bridge, stream, "b", first=2)
