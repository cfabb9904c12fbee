"""SubscribeMany: many subscriptions of one call, each a reader of its own."""

import grpc
import pytest

from llmbridge.v1 import bridge_service_pb2 as pb
from tests.support.calls import STOP, produce, ref
from tests.support.many_calls import Ended, many_call
from tests.support.running_bridge import RunningBridge

INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def test_many_streams_each_from_its_beginning_to_its_end(bridge: RunningBridge) -> None:
    streams = [ref(f"r{i}") for i in range(20)]
    async with many_call(bridge.bridge) as call:
        # Half of them have something already, half are waited for.
        for i, stream in enumerate(streams[::2]):
            await produce(bridge.bridge, stream, f"{i} a", first=1)
        await call.send(starts=[call.new(stream) for stream in streams])
        await call.attached()
        for i, stream in enumerate(streams[1::2]):
            await produce(bridge.bridge, stream, f"{i} a", first=1)
        for stream in streams:
            await produce(bridge.bridge, stream, " b", first=2)
            await produce(bridge.bridge, stream, " c", first=3, completion=STOP)
        await call.finish()
        for number, got in call.subscriptions.items():
            assert got.texts == [f"{(number - 1) // 2} a", " b", " c"]
            assert got.completion == STOP
            assert got.ended is None


async def test_subscriptions_of_one_stream_share_their_deliveries(bridge: RunningBridge) -> None:
    stream = ref("r")
    await produce(bridge.bridge, stream, "a", first=1)
    async with many_call(bridge.bridge) as call:
        await call.send(starts=[call.new(stream) for _ in range(50)])
        for _ in range(50):
            await call.start(stream)
        await call.until(lambda: all(got.last == 1 for got in call.subscriptions.values()))
        before = call.deliveries
        for i in range(2, 12):
            await produce(bridge.bridge, stream, f"{i}", first=i)
            await call.until(lambda i=i: all(got.last == i for got in call.subscriptions.values()))
        # Wherever they had started, they stand at one place now.
        assert call.deliveries - before == 10
        await produce(bridge.bridge, stream, first=12, completion=STOP)
        await call.finish()
        assert {got.text for got in call.subscriptions.values()} == {"a234567891011"}


async def test_they_come_and_go_at_any_time(bridge: RunningBridge) -> None:
    one, other = ref("one"), ref("other")
    async with many_call(bridge.bridge) as call:
        first = await call.start(one)
        await call.attached()
        await produce(bridge.bridge, one, "a", first=1)
        await call.until(lambda: first.last == 1)
        second, third = await call.start(other), await call.start(one)
        await call.attached()
        await call.send(drops=[1, 77])
        await call.over(first)
        assert first.ended == Ended(0)
        await produce(bridge.bridge, one, "b", first=2, completion=STOP)
        await produce(bridge.bridge, other, "x", first=1, completion=STOP)
        await call.over()
        assert (second.text, third.text, first.text) == ("x", "ab", "a")
        # It was told, so the number is free.
        again = call.new(one, number=1)
        await call.send(starts=[again])
        await call.over(call.subscriptions[1])
        assert call.subscriptions[1].text == "ab"
        # Over already: no error, and no answer.
        await call.send(drops=[1, 2, 3], credits=[pb.SubscriptionCredit(subscription=2, bytes=5)])
        await call.finish()


async def test_resuming_in_the_middle(bridge: RunningBridge) -> None:
    stream = ref("r")
    cursors = [(await produce(bridge.bridge, stream, f"{i}", first=i)).cursor for i in range(1, 6)]
    inside = (await produce(bridge.bridge, stream, *"abcdef", first=6)).cursor
    incarnation, last, checksum = inside.split("-")
    await produce(bridge.bridge, stream, first=12, completion=STOP)
    async with many_call(bridge.bridge) as call:
        got = [await call.start(stream, after_cursor=cursor) for cursor in cursors]
        middle = await call.start(stream, after_cursor=f"{incarnation}-{int(last) - 2}-{checksum}")
        behind = await call.start(stream, after_cursor=f"{incarnation}-12-{checksum}")
        await call.over(*got, middle)
        assert [one.text for one in got] == ["12345abcdef"[i:] for i in range(1, 6)]
        assert middle.text == "ef"
        await call.over(behind)
        await call.finish()
    # The cursor of the completion is known only from its message.
    async with many_call(bridge.bridge) as call:
        done = await call.start(stream, after_cursor=got[0].cursor)
        await call.finish()
        assert done.attached
        assert done.ended == Ended(0)


async def test_each_position(bridge: RunningBridge) -> None:
    stream, absent = ref("r"), ref("absent")
    cursor = (await produce(bridge.bridge, stream, "a", "b", first=1)).cursor
    async with many_call(bridge.bridge) as call:
        beginning = await call.start(stream, position=pb.POSITION_BEGINNING)
        earliest = await call.start(stream, position=pb.POSITION_EARLIEST)
        latest = await call.start(stream, position=pb.POSITION_LATEST)
        nothing = await call.start(absent, position=pb.POSITION_LATEST)
        unknown = await call.start(stream, position=9)
        await call.until(lambda: latest.heartbeats == 1 and nothing.heartbeats == 1 and unknown.over)
        assert (latest.cursor, nothing.cursor) == (cursor, "")
        assert unknown.ended == Ended(INVALID, "INVALID_FIELD", {"field": "position"})
        await produce(bridge.bridge, stream, "c", first=3, completion=STOP)
        await produce(bridge.bridge, absent, "d", first=1, completion=STOP)
        await call.over()
        assert [got.text for got in (beginning, earliest, latest, nothing)] == ["abc", "abc", "c", "d"]
        late = await call.start(stream, position=pb.POSITION_LATEST)
        late.last = 3
        await call.finish()
        assert (late.text, late.completion) == ("", STOP)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.SubscribeRequest(), "stream.session_id"),
        (pb.SubscribeRequest(stream=ref("r"), after_cursor="nonsense"), "after_cursor"),
        (pb.SubscribeRequest(stream=ref("r"), group=pb.GroupMembership()), "group"),
    ],
)
async def test_a_start_that_is_wrong_ends_only_that(
    bridge: RunningBridge, request_: pb.SubscribeRequest, field: str
) -> None:
    async with many_call(bridge.bridge) as call:
        wrong, right = call.new(ref("r")), call.new(ref("r"))
        wrong.request.CopyFrom(request_)
        await call.send(starts=[wrong, right])
        await produce(bridge.bridge, ref("r"), "a", first=1, completion=STOP)
        await call.finish()
        assert call.subscriptions[1].ended == Ended(INVALID, "INVALID_FIELD", {"field": field})
        assert call.subscriptions[2].text == "a"


@pytest.mark.parametrize("told", [True, False])
async def test_a_number_in_use_ends_the_call(bridge: RunningBridge, told: bool) -> None:
    async with many_call(bridge.bridge) as call:
        await call.send(starts=[call.new(ref("r"), number=5)])
        await call.attached()
        # Dropped, but not told yet: still in use.
        await call.send(drops=[] if told else [5], starts=[call.new(ref("r"), number=5), call.new(ref("q"))])

        failed = await call.failed()
        assert failed.short == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
            {"field": "starts.subscription"},
        )


async def test_history_that_is_gone_ends_only_its_subscription(bridge: RunningBridge) -> None:
    stream, other = ref("r"), ref("other")
    cursor = (await produce(bridge.bridge, stream, "a", first=1)).cursor
    incarnation = cursor.split("-")[0]
    async with many_call(bridge.bridge) as call:
        fine = await call.start(other)
        lost = await call.start(stream, after_cursor=f"{incarnation}-7-0badcafe")
        expired = await call.start(ref("no such"), after_cursor=cursor)
        await call.over(lost, expired)
        assert not lost.attached
        assert not expired.attached
        out_of_range = grpc.StatusCode.OUT_OF_RANGE.value[0]
        assert lost.ended == Ended(out_of_range, "LOST", {"earliest_cursor": f"{incarnation}-0-00000000"})
        assert expired.ended == Ended(out_of_range, "EXPIRED", {"earliest_cursor": ""})
        await produce(bridge.bridge, other, "x", first=1, completion=STOP)
        await call.finish()
        assert fine.text == "x"
