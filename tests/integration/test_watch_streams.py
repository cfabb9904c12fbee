"""WatchStreams over real gRPC: every event, shared by a group's watchers, until it is acknowledged."""

import asyncio
from typing import Any

import grpc
import pytest
import redis.asyncio

from llmbridge.v1 import group_service_pb2 as group_pb
from llmbridge.v1 import lifecycle_service_pb2 as pb
from llmbridge.v1 import stream_pb2
from llmbridge.v1.bridge_service_pb2 import CancelRequest
from llmbridge.v1.lifecycle_service_pb2_grpc import LifecycleServiceStub
from llmbridge.v1.stream_admin_service_pb2 import CreateStreamRequest
from llmbridge.v1.token_pb2 import FINISH_REASON_CANCELLED, FINISH_REASON_ERROR, FINISH_REASON_STOP, Completion, Usage
from tests.support.calls import PATIENCE_SECONDS, STOP, failure, produce, read_all, ref, until
from tests.support.feed_calls import COMPLETED, CREATED, WatchCall, Watched, key_of
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge


async def test_an_event_says_which_stream_how_it_ended_and_from_where_to_read(bridge: RunningBridge) -> None:
    watcher = await WatchCall.begin(bridge.channel)
    stream = ref("r", session="a b:c/ü")
    await produce(bridge.bridge, stream, "a", "b", first=1)
    created = await watcher.event()
    end = Completion(finish_reason=FINISH_REASON_STOP, usage=Usage(prompt_tokens=5, completion_tokens=3))
    answer = await produce(bridge.bridge, stream, "c", first=3, completion=end)
    completed = await watcher.event()
    assert created.stream == completed.stream == stream
    assert (created.type, created.tokens, created.sealer, created.delivery_attempt) == (CREATED, 0, 0, 1)
    assert (completed.type, completed.tokens, completed.sealer) == (COMPLETED, 3, stream_pb2.SEALER_PRODUCER)
    assert (completed.completion, completed.cursor) == (end, answer.cursor)
    assert 0 < created.created_ms <= created.recorded_ms <= completed.recorded_ms
    assert completed.created_ms == created.created_ms
    assert created.cursor == created.start_cursor == completed.start_cursor
    # From there comes everything, from the completion's cursor nothing more.
    assert (await read_all(bridge.bridge, stream, after_cursor=created.cursor)).text == "abc"
    assert (await read_all(bridge.bridge, stream, after_cursor=completed.cursor)).messages == 0
    assert await watcher.acknowledge(created, completed) == [True, True]
    assert (await watcher.info()).pending == 0
    await watcher.leave()


async def test_the_completion_comes_as_it_was_produced_with_the_tokens_or_without(bridge: RunningBridge) -> None:
    watcher = await WatchCall.begin(bridge.channel)
    end = Completion(finish_reason=FINISH_REASON_ERROR, error_message="broken")
    await produce(bridge.bridge, ref("with"), "a", first=1, completion=end)
    await produce(bridge.bridge, ref("without"), first=1, completion=end)
    # A retry that reaches past the end of the log is sliced; its completion is whole all the same.
    await produce(bridge.bridge, ref("sliced"), "a", "b", first=1, producer_id="p")
    await produce(bridge.bridge, ref("sliced"), "a", "b", "c", first=1, producer_id="p", completion=end)
    events = await watcher.events(6)
    assert [event.completion for event in events if event.type == COMPLETED] == [end] * 3
    assert [event.tokens for event in events if event.type == COMPLETED] == [1, 0, 3]
    await watcher.leave()


async def test_streams_that_the_bridge_creates_or_ends(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, producer_lost_ms=200) as bridge:
        watcher = await WatchCall.begin(bridge.channel)
        await bridge.admin.CreateStream(CreateStreamRequest(stream=ref("lost")))
        assert key_of(await watcher.event()) == ("s", "lost", CREATED)
        lost = await watcher.event()
        assert (key_of(lost), lost.sealer) == (("s", "lost", COMPLETED), stream_pb2.SEALER_LOST)
        assert lost.completion.finish_reason == FINISH_REASON_ERROR
        assert "producer lost" in lost.completion.error_message
        await bridge.bridge.Cancel(CancelRequest(stream=ref("absent"), reason="enough"))
        created, cancelled = await watcher.events(2)
        assert (key_of(created), cancelled.sealer) == (("s", "absent", CREATED), stream_pb2.SEALER_CANCEL)
        assert cancelled.completion == Completion(finish_reason=FINISH_REASON_CANCELLED, error_message="enough")
        await watcher.leave()


async def test_a_worker_that_was_away_goes_on_from_its_place(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, ref("before"), "a", first=1, completion=STOP)
    first = await WatchCall.begin(bridge.channel)
    before = await first.events(2)
    await first.acknowledge(*before)
    await first.leave()
    for i in range(20):
        await produce(bridge.bridge, ref(str(i), session=str(i)), "a", first=1, completion=STOP)
    second = await WatchCall.begin(bridge.channel)
    events = await second.events(40)
    assert {key_of(event) for event in events} == {
        (str(i), str(i), kind) for i in range(20) for kind in (CREATED, COMPLETED)
    }
    assert {event.delivery_attempt for event in events} == {1}
    # In each stream's own order.
    for i in range(20):
        assert [event.type for event in events if event.stream.session_id == str(i)] == [CREATED, COMPLETED]
    assert second.watched.missed == 0
    # Another group gets everything for itself.
    other = await WatchCall.begin(bridge.channel, "other")
    assert len(await other.events(42)) == 42
    await second.leave()
    await other.leave()


async def test_what_is_there_in_several_partitions_comes_together(bridge: RunningBridge) -> None:
    for i in range(3):
        await produce(bridge.bridge, ref("r", session=str(i)), "a", first=1, completion=STOP)
    watcher = await WatchCall.begin(bridge.channel)
    assert len((await watcher.message()).events) == 6
    await watcher.leave()


async def test_two_watchers_share_and_get_each_event_once(bridge: RunningBridge) -> None:
    watched = Watched()
    watchers = [await WatchCall.begin(bridge.channel, watched=watched, max_outstanding_events=5) for _ in range(2)]
    for i in range(6):
        await produce(bridge.bridge, ref(str(i), session=str(i % 7)), "a", first=1, completion=STOP)
    # One alone can't hold all of it.
    first = [await watcher.message() for watcher in watchers]

    settled = 0

    async def work(watcher: WatchCall, message: pb.WatchStreamsResponse) -> None:
        nonlocal settled
        while True:
            assert len(message.events) <= 5
            done = await watcher.acknowledge(*message.events)
            settled += sum(done)
            message = await watcher.message()

    async with asyncio.timeout(20):
        working = [asyncio.ensure_future(work(*its)) for its in zip(watchers, first, strict=True)]
        for i in range(6, 60):
            await produce(bridge.bridge, ref(str(i), session=str(i % 7)), "a", first=1, completion=STOP)
        await until(lambda: settled == 120)
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    assert len(watched.events) == 120
    assert set(watched.keys.values()) == {1}
    assert (await watchers[0].info()).pending == 0
    for watcher in watchers:
        await watcher.leave()


async def test_no_more_is_outstanding_than_was_asked_for(bridge: RunningBridge) -> None:
    for i in range(6):
        await produce(bridge.bridge, ref(str(i), session=str(i)), "a", first=1)
    watcher = await WatchCall.begin(bridge.channel, max_outstanding_events=4)
    events = await watcher.events(4)
    assert await watcher.is_quiet()
    assert (await watcher.info()).pending == 4
    await watcher.acknowledge(events[0])
    assert len(await watcher.events(1)) == 1
    assert await watcher.is_quiet()
    await watcher.acknowledge(*events[1:])
    assert len(await watcher.events(1)) == 1
    await watcher.leave()


async def test_what_is_settled_at_another_bridge_makes_room_though_its_bell_is_lost(
    shared_redis: RedisProcess, key_prefix: str
) -> None:
    settings: dict[str, Any] = {"key_prefix": key_prefix, "partitions": 1, "consumer_poll_timeout": 50}
    async with running_bridge(shared_redis.url, **settings) as bridge:
        await produce(bridge.bridge, ref("r"), "a", first=1, completion=STOP)
        watcher = await WatchCall.begin(bridge.channel, max_outstanding_events=1)
        event = await watcher.event()
        async with redis.asyncio.Redis.from_url(shared_redis.url) as client:
            await client.xack(f"{key_prefix}:feed:{{0}}", "g", event.ack_id.partition(":")[2].partition(".")[0])
        assert (await watcher.event()).type == COMPLETED
        await watcher.leave()


async def test_what_is_not_acknowledged_in_time_comes_again_and_then_is_a_dead_letter(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, ref("r"), "a", first=1)
    watcher = await WatchCall.begin(bridge.channel, ack_deadline_ms=150, max_deliveries=2)
    first, second = await watcher.event(), await watcher.event()
    assert [event.delivery_attempt for event in (first, second)] == [1, 2]
    assert first.ack_id != second.ack_id
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (letters := await _letters(watcher)):
            await asyncio.sleep(0.02)
    assert await watcher.is_quiet()
    assert [(letter.reason, letter.attempts, letter.group) for letter in letters] == [
        ("max_deliveries", 2, watcher.ref)
    ]
    await watcher.groups.RedriveDeadLetters(group_pb.RedriveDeadLettersRequest(ids=[letters[0].id]))
    again = await watcher.event()
    assert (again.delivery_attempt, key_of(again)) == (1, ("s", "r", CREATED))
    await watcher.leave()


async def test_a_rejected_event_comes_again_at_once_and_an_extended_one_later(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, ref("r"), "a", first=1)
    watcher = await WatchCall.begin(bridge.channel)
    event = await watcher.event()
    reject = group_pb.RejectRequest(group=watcher.ref, ack_ids=[event.ack_id])
    assert (await watcher.groups.Reject(reject)).results == [group_pb.SETTLE_RESULT_DONE]
    again = await watcher.event()
    assert again.delivery_attempt == 2
    extend = group_pb.ExtendDeadlineRequest(group=watcher.ref, ack_ids=[again.ack_id, event.ack_id])
    assert (await watcher.groups.ExtendDeadline(extend)).results == [
        group_pb.SETTLE_RESULT_DONE,
        group_pb.SETTLE_RESULT_NOT_PENDING,
    ]
    assert await watcher.is_quiet()
    await watcher.leave()


async def test_what_a_leaving_watcher_has_not_settled_goes_to_another_at_once(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, ref("r"), "a", first=1)
    first = await WatchCall.begin(bridge.channel)
    await first.event()
    second = await WatchCall.begin(bridge.channel)
    assert await second.is_quiet()
    await first.leave()
    assert (await second.event()).delivery_attempt == 2
    await second.leave()


async def test_a_watcher_may_come_before_the_first_event_and_hears_of_it_at_once(
    shared_redis: RedisProcess, key_prefix: str
) -> None:
    settings: dict[str, Any] = {"key_prefix": key_prefix, "consumer_poll_timeout": 60_000}
    async with running_bridge(shared_redis.url, **settings) as bridge:
        watcher = await WatchCall.begin(bridge.channel, ack_deadline_ms=86_400_000)
        # Its channels are surely subscribed once the first event has come by one of them.
        for i in range(5):
            await produce(bridge.bridge, ref("r", session=str(i)), "a", first=1)
            assert (await watcher.event()).stream.session_id == str(i)
        await watcher.leave()


async def test_heartbeats(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, heartbeat_ms=100) as bridge:
        watcher = await WatchCall.begin(bridge.channel)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await watcher.call.read() == await watcher.call.read() == pb.WatchStreamsResponse()
        await watcher.leave()


async def test_settings_belong_to_the_group_in_every_partition(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, ref("r", session="1"), "a", first=1)
    first = await WatchCall.begin(bridge.channel, ack_deadline_ms=1_000)
    await first.event()
    # A partition that begins later gets the same, whoever comes first.
    second = await WatchCall.begin(bridge.channel)
    for session in range(2, 12):
        await produce(bridge.bridge, ref("r", session=str(session)), "a", first=1)
        await _whoevers(first, second)
    third = await WatchCall.begin(bridge.channel, ack_deadline_ms=1_000, max_deliveries=5)
    assert (await third.info()).ack_deadline_ms == 1_000
    stub: Any = LifecycleServiceStub(bridge.channel)
    failed = await failure(stub.WatchStreams(pb.WatchStreamsRequest(group="g", ack_deadline_ms=2_000)).read())
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "GROUP_SETTINGS_DIFFER")
    for watcher in (first, second, third):
        await watcher.leave()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"group": "a\n"}, "group"),
        ({"consumer": "x" * 300}, "consumer"),
        ({"max_outstanding_events": 10_001}, "max_outstanding_events"),
        ({"ack_deadline_ms": 99}, "ack_deadline_ms"),
        ({"max_deliveries": 1_001}, "max_deliveries"),
    ],
)
async def test_a_bad_wish_names_its_field(bridge: RunningBridge, fields: dict[str, Any], named: str) -> None:
    stub: Any = LifecycleServiceStub(bridge.channel)
    failed = await failure(stub.WatchStreams(pb.WatchStreamsRequest(**fields)).read())
    assert (failed.code, failed.metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, named)


async def test_watchers_count_as_members(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, max_consumers=1) as bridge:
        watcher = await WatchCall.begin(bridge.channel)
        stub: Any = LifecycleServiceStub(bridge.channel)
        failed = await failure(stub.WatchStreams(pb.WatchStreamsRequest()).read())
        assert (failed.code, failed.metadata["limit"]) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "max_consumers_per_instance",
        )
        await watcher.leave()
        await until(lambda: bridge.core.idle)


async def test_a_watcher_that_has_nothing_pending_is_forgotten(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, ref("r"), "a", first=1)
    watcher = await WatchCall.begin(bridge.channel, consumer="worker")
    stays = await WatchCall.begin(bridge.channel, consumer="stays")
    await watcher.acknowledge(*await _whoevers(watcher, stays))
    await watcher.leave()
    await until(lambda: len(bridge.core._connections) == 1)

    async def consumers() -> set[str]:
        listed = await stays.groups.ListConsumers(group_pb.ListConsumersRequest(group=stays.ref))
        return {consumer.name for consumer in listed.consumers}

    async with asyncio.timeout(PATIENCE_SECONDS):
        while "worker" in await consumers():
            await asyncio.sleep(0.02)
    await stays.leave()


async def _letters(watcher: WatchCall) -> list[group_pb.DeadLetter]:
    return list((await watcher.groups.ListDeadLetters(group_pb.ListDeadLettersRequest())).dead_letters)


async def _whoevers(*watchers: WatchCall) -> list[pb.LifecycleEvent]:
    """Wait until one of them gets something; all that this one has got so far."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            for watcher in watchers:
                if not await watcher.is_quiet(0.02):
                    return watcher.watched.events
