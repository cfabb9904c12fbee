"""Watchers when things go wrong: killed processes, trimmed and expired feeds, foreign entries, defects, drains."""

import asyncio
import sys
from typing import Any

import grpc
import pytest
import redis.asyncio

from llmbridge.log.feed import LifecycleEntry
from llmbridge.rpc.lifecycle import ProtoFeedWire
from llmbridge.v1 import group_service_pb2 as group_pb
from llmbridge.v1.group_service_pb2_grpc import GroupServiceStub
from tests.support.bridge_process import BridgeProcess
from tests.support.calls import PATIENCE_SECONDS, STOP, failure, failure_of, produce, ref, stub, until
from tests.support.feed_calls import COMPLETED, CREATED, WatchCall, Watched, key_of
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge


@pytest.fixture
def one_partition(key_prefix: str) -> dict[str, Any]:
    return {"key_prefix": key_prefix, "partitions": 1, "consumer_poll_timeout": 100}


async def _ended_with(watcher: WatchCall) -> grpc.aio.AioRpcError:
    try:
        await watcher.message()
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call goes on")


async def test_a_group_that_was_away_too_long_is_told_how_many_events_it_missed(
    each_redis: RedisProcess, one_partition: dict[str, Any]
) -> None:
    async with (
        running_bridge(each_redis.url, **one_partition) as bridge,
        redis.asyncio.Redis.from_url(each_redis.url) as client,
    ):
        feed = f"{bridge.settings.key_prefix}:feed:{{0}}"
        await produce(bridge.bridge, ref("0"), "a", first=1)
        first = await WatchCall.begin(bridge.channel)
        seen = await first.event()
        await first.acknowledge(seen)
        await first.leave()
        for i in range(1, 10):
            await produce(bridge.bridge, ref(str(i)), "a", first=1)
        await client.xtrim(feed, maxlen=4, approximate=False)
        second = await WatchCall.begin(bridge.channel)
        assert [event.stream.response_id for event in await second.events(4)] == ["6", "7", "8", "9"]
        assert second.watched.missed == 5
        await produce(bridge.bridge, ref("10"), "a", first=1)
        await second.event()
        assert second.watched.missed == 5
        # A new group has missed nothing: what went before it was made is not its.
        new = await WatchCall.begin(bridge.channel, "new")
        assert (len(await new.events(5)), new.watched.missed) == (5, 0)
        # One that was there before the first event it missed, although it never got any.
        late = await WatchCall.begin(bridge.channel, "late", max_outstanding_events=1)
        await late.event()
        await client.xtrim(feed, maxlen=1, approximate=False)
        await late.acknowledge(*late.watched.events)
        assert ((await late.event()).stream.response_id, late.watched.missed) == ("10", 3)
        for watcher in (second, new, late):
            await watcher.leave()


async def test_pending_events_that_were_trimmed_become_dead_letters(
    each_redis: RedisProcess, one_partition: dict[str, Any]
) -> None:
    async with (
        running_bridge(each_redis.url, **one_partition) as bridge,
        redis.asyncio.Redis.from_url(each_redis.url) as client,
    ):
        await produce(bridge.bridge, ref("r"), "a", first=1)
        watcher = await WatchCall.begin(bridge.channel, ack_deadline_ms=1_000)
        await watcher.event()
        await client.xtrim(f"{bridge.settings.key_prefix}:feed:{{0}}", maxlen=0, approximate=False)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (letters := await _letters(watcher)):
                await asyncio.sleep(0.02)
        assert [(letter.reason, letter.cursor) for letter in letters] == [("trimmed", "")]
        await produce(bridge.bridge, ref("r"), "b", first=2, completion=STOP)
        assert (await watcher.event()).type == COMPLETED
        await watcher.leave()


async def _letters(watcher: WatchCall) -> list[group_pb.DeadLetter]:
    return list((await watcher.groups.ListDeadLetters(group_pb.ListDeadLettersRequest())).dead_letters)


@pytest.mark.parametrize(
    "fields",
    [
        {"what": "is this"},
        {"k": "renamed 7", "s": "s:m:r"},
        {"k": "completed 7 2 00000000 producer", "s": "s:m:r", "b": b"\xff"},
        {"k": "completed 7 2 00000000 producer", "s": "s:m:r"},
    ],
)
async def test_what_is_no_event_becomes_a_dead_letter_and_the_rest_comes(
    each_redis: RedisProcess, one_partition: dict[str, Any], fields: Any
) -> None:
    async with (
        running_bridge(each_redis.url, **one_partition) as bridge,
        redis.asyncio.Redis.from_url(each_redis.url) as client,
    ):
        feed = f"{bridge.settings.key_prefix}:feed:{{0}}"
        await produce(bridge.bridge, ref("r"), "a", first=1)
        last: Any = await client.xrevrange(feed, count=1)
        await client.xadd(feed, fields, id=f"{last[0][0].split(b'-')[0].decode()}-2")
        await produce(bridge.bridge, ref("r"), "b", first=2, completion=STOP)
        watcher = await WatchCall.begin(bridge.channel)
        assert [event.type for event in await watcher.events(2)] == [CREATED, COMPLETED]
        assert [(letter.reason, letter.attempts) for letter in await _letters(watcher)] == [("undecodable", 1)]
        assert (await watcher.info()).pending == 2
        assert watcher.watched.missed == 0
        await watcher.leave()


async def test_a_defect_in_the_watcher_costs_a_pause_and_no_event(
    bridge: RunningBridge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = ProtoFeedWire.event
    failures = 0

    def fails_twice(self: ProtoFeedWire, delivery: Any, entry: LifecycleEntry) -> bytes:
        nonlocal failures
        if entry.stream.response_id == "2" and failures < 2:
            failures += 1
            raise ZeroDivisionError
        return whole(self, delivery, entry)

    monkeypatch.setattr(ProtoFeedWire, "event", fails_twice)
    watcher = await WatchCall.begin(bridge.channel)
    for i in range(4):
        await produce(bridge.bridge, ref(str(i), session=str(i)), "a", first=1)
    assert len(await watcher.events(4)) == 4
    assert set(watcher.watched.keys.values()) == {1}
    # Each was handed out once only, so once only it counts.
    assert {event.delivery_attempt for event in watcher.watched.events} == {1}
    assert caplog.text.count("begins anew") == failures == 2
    await watcher.leave()


async def test_when_the_bridge_drains_what_a_worker_has_stays_its_own(
    shared_redis: RedisProcess, key_prefix: str
) -> None:
    async with running_bridge(shared_redis.url, beside=True, key_prefix=key_prefix) as other:
        async with running_bridge(shared_redis.url, beside=True, key_prefix=key_prefix) as bridge:
            watcher = await WatchCall.begin(bridge.channel, consumer="worker")
            await produce(bridge.bridge, ref("r"), "a", first=1)
            event = await watcher.event()
            bridge.stop.set()
            failed = failure_of(await _ended_with(watcher))
            assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        again = await WatchCall.begin(other.channel, consumer="worker")
        assert await again.is_quiet()
        assert await again.acknowledge(event) == [True]
        assert (await again.info()).pending == 0
        await again.leave()


async def test_watchers_of_a_deleted_group_are_told_and_a_new_call_makes_it_anew(bridge: RunningBridge) -> None:
    for i in range(3):
        await produce(bridge.bridge, ref(str(i), session=str(i)), "a", first=1)
    watcher = await WatchCall.begin(bridge.channel)
    await watcher.events(3)
    await watcher.groups.DeleteGroup(group_pb.DeleteGroupRequest(group=watcher.ref))
    failed = failure_of(await _ended_with(watcher))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "GROUP_NOT_FOUND")
    failed = await failure(watcher.groups.GetGroup(group_pb.GetGroupRequest(group=watcher.ref)))
    assert failed.reason == "GROUP_NOT_FOUND"
    again = await WatchCall.begin(bridge.channel)
    assert {event.delivery_attempt for event in await again.events(3)} == {1}
    await again.leave()


async def test_a_full_watcher_is_told_of_the_deletion_too(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, consumer_poll_timeout=100) as bridge:
        await produce(bridge.bridge, ref("r"), "a", first=1)
        watcher = await WatchCall.begin(bridge.channel, max_outstanding_events=1)
        await watcher.event()
        await watcher.groups.DeleteGroup(group_pb.DeleteGroupRequest(group=watcher.ref))
        assert failure_of(await _ended_with(watcher)).reason == "GROUP_NOT_FOUND"


async def test_a_partition_that_expired_is_not_a_deleted_group(
    each_redis: RedisProcess, one_partition: dict[str, Any]
) -> None:
    async with (
        running_bridge(each_redis.url, **one_partition) as bridge,
        redis.asyncio.Redis.from_url(each_redis.url) as client,
    ):
        watcher = await WatchCall.begin(bridge.channel, max_outstanding_events=1)
        await produce(bridge.bridge, ref("r"), "a", first=1)
        await watcher.event()
        # It held all it could; what is gone with the feed must not count against it.
        await client.delete(f"{bridge.settings.key_prefix}:feed:{{0}}")
        assert await watcher.is_quiet(0.4)
        await produce(bridge.bridge, ref("s"), "a", first=1)
        assert (await watcher.event()).stream == ref("s")
        await watcher.leave()


async def test_while_redis_is_away_watchers_wait_and_then_go_on(own_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(own_redis.url, key_prefix=key_prefix, heartbeat_ms=200) as bridge:
        watcher = await WatchCall.begin(bridge.channel)
        await produce(bridge.bridge, ref("0"), "a", first=1)
        await watcher.acknowledge(await watcher.event())
        own_redis.kill()
        assert await watcher.is_quiet(1.0)
        own_redis.start()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    await produce(bridge.bridge, ref("1"), "a", first=1)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)
                else:
                    break
        assert key_of(await watcher.event()) == ("s", "1", CREATED)
        await watcher.leave()


async def test_two_bridges_share_one_group_and_when_one_is_killed_nothing_is_lost(
    shared_redis: RedisProcess, key_prefix: str
) -> None:
    environment = {"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": key_prefix}
    first, second = (BridgeProcess(environment).start() for _ in range(2))
    try:
        async with grpc.aio.insecure_channel(first.address) as one, grpc.aio.insecure_channel(second.address) as two:
            watched = Watched()
            dying = await WatchCall.begin(one, watched=watched, ack_deadline_ms=3_000)
            living = await WatchCall.begin(two, watched=watched, ack_deadline_ms=3_000)
            held: list[Any] = []

            async def work() -> None:
                while True:
                    await living.acknowledge(*(await living.message()).events)

            async def hold() -> None:
                while True:
                    held.extend((await dying.message()).events)

            working, holding = asyncio.ensure_future(work()), asyncio.ensure_future(hold())
            for i in range(40):
                await produce(stub(two), ref("r", session=str(i)), "a", first=1, completion=STOP)
            await until(lambda: len(watched.keys) == 80)
            assert held
            first.kill()
            await asyncio.gather(holding, return_exceptions=True)
            # What the killed bridge's watcher had and never acknowledged comes again, to the other bridge's.
            await until(lambda: watched.keys.total() == 80 + len(held))
            again = watched.events[-len(held) :]
            assert {key_of(event) for event in again} == {key_of(event) for event in held}
            assert {event.delivery_attempt for event in again} == {2}
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (await living.info()).pending:
                    await asyncio.sleep(0.02)
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await living.leave()
    finally:
        first.close()
        second.close()


_HOLDS_ALL = """
import asyncio, sys
from llmbridge.client import Client

async def main():
    async with Client(sys.argv[1]) as client:
        async for event in client.watch(group="g"):
            print(event.stream.response_id, flush=True)

asyncio.run(main())
"""


async def test_what_a_killed_worker_process_had_goes_to_another_at_once(bridge: RunningBridge) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOLDS_ALL, bridge.address, stdout=asyncio.subprocess.PIPE
    )
    try:
        await produce(bridge.bridge, ref("r"), "a", first=1)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 3 * PATIENCE_SECONDS) == b"r\n"
    finally:
        process.kill()
        await process.communicate()
    watcher = await WatchCall.begin(bridge.channel)
    event = await watcher.event()
    assert (key_of(event), event.delivery_attempt) == (("s", "r", CREATED), 2)
    await watcher.leave()


async def test_a_group_that_nobody_made_is_not_found(bridge: RunningBridge) -> None:
    groups: Any = GroupServiceStub(bridge.channel)
    nobodys = group_pb.GroupRef(lifecycle=group_pb.LifecycleFeed(), name="nobodys")
    failed = await failure(groups.Acknowledge(group_pb.AcknowledgeRequest(group=nobodys, ack_ids=["0:1-1.1"])))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "GROUP_NOT_FOUND")
