"""SubscribeMany: subscriptions as connections, and what ends them one by one or all together."""

import asyncio

import grpc
import pytest

from llmbridge.rpc.limits import MAX_SHARED_MESSAGE_BYTES
from llmbridge.rpc.subscribe_many import MAX_OTHER_CHANGES, MAX_STARTS
from llmbridge.v1 import bridge_service_pb2 as pb
from llmbridge.v1 import connection_service_pb2 as connection_pb
from llmbridge.v1 import stream_admin_service_pb2 as admin_pb
from tests.support.calls import PATIENCE_SECONDS, STOP, produce, ref, until
from tests.support.many_calls import Ended, ManyCall, many_call
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

STREAM, OTHER = ref("r"), ref("other")
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]


async def listed(bridge: RunningBridge) -> list[connection_pb.Connection]:
    answer = await bridge.connections.ListConnections(connection_pb.ListConnectionsRequest(), timeout=PATIENCE_SECONDS)
    return list(answer.connections)


async def disconnect(bridge: RunningBridge, connection_id: str) -> None:
    await bridge.connections.DisconnectConnection(
        connection_pb.DisconnectConnectionRequest(connection_id=connection_id), timeout=PATIENCE_SECONDS
    )


async def test_each_subscription_is_a_connection(bridge: RunningBridge) -> None:
    cursor = (await produce(bridge.bridge, STREAM, "a", "b", first=1)).cursor
    async with many_call(bridge.bridge, metadata=(("llmbridge-transport", "websocket"),)) as call:
        await call.send(starts=[call.new(STREAM), call.new(OTHER), call.new(STREAM, credit=1)])
        await call.attached()
        await call.until(lambda: call.subscriptions[1].last == 2 and call.subscriptions[3].last == 2)
        one, two, three = await listed(bridge)
        assert len({one.id, two.id, three.id}) == 3
        assert (one.stream, two.stream, three.stream) == (STREAM, OTHER, STREAM)
        assert {found.transport for found in (one, two, three)} == {connection_pb.TRANSPORT_WEBSOCKET}
        assert one.peer == two.peer != ""
        assert (one.cursor, two.cursor, three.cursor) == (cursor, "", cursor)
        assert (one.state, two.state, three.state) == (
            connection_pb.CONNECTION_STATE_LIVE,
            connection_pb.CONNECTION_STATE_LIVE,
            connection_pb.CONNECTION_STATE_HELD,
        )
        assert one.since_ms <= one.last_activity_ms
        await produce(bridge.bridge, STREAM, "c", first=3)
        await call.until(lambda: call.subscriptions[1].last == 3)
        one, two, three = await listed(bridge)
        assert (one.lag, two.lag, three.lag) == (0, 0, 1)
        assert three.cursor == cursor
        await call.send(drops=[1])
        await call.until(lambda: call.subscriptions[1].over)
        assert [found.id for found in await listed(bridge)] == [two.id, three.id]
    await until(lambda: bridge.core.idle)
    assert await listed(bridge) == []


async def test_an_operator_ends_one(bridge: RunningBridge) -> None:
    cursor = (await produce(bridge.bridge, STREAM, "a", first=1)).cursor
    async with many_call(bridge.bridge) as call:
        await call.send(starts=[call.new(STREAM), call.new(STREAM), call.new(OTHER)])
        ended, stays, other = call.subscriptions.values()
        await call.attached()
        await call.until(lambda: ended.last == stays.last == 1)
        await disconnect(bridge, (await listed(bridge))[0].id)
        # It holds nothing any more when the operator is told so.
        assert len(await listed(bridge)) == 2
        await call.over(ended)
        aborted = grpc.StatusCode.ABORTED.value[0]
        assert ended.ended == Ended(aborted, "DISCONNECTED", {"cursor": cursor})
        again = await call.start(STREAM, after_cursor=cursor)
        await produce(bridge.bridge, STREAM, "b", first=2, completion=STOP)
        await produce(bridge.bridge, OTHER, "x", first=1, completion=STOP)
        await call.finish()
        assert (ended.text, again.text, stays.text, other.text) == ("a", "b", "ab", "x")


async def test_they_count_as_readers(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with (
        running_bridge(shared_redis.url, key_prefix=key_prefix, max_readers=3) as bridge,
        many_call(bridge.bridge) as call,
    ):
        await call.send(starts=[call.new(STREAM) for _ in range(5)])
        refused = [call.subscriptions[4], call.subscriptions[5]]
        await call.over(*refused)
        limits = {"limit": "max_readers", "maximum": "3", "value": "4"}
        exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert [got.ended for got in refused] == [Ended(exhausted, "LIMIT_EXCEEDED", limits)] * 2
        await call.send(drops=[1])
        await call.over(call.subscriptions[1])
        late = await call.start(STREAM)
        await produce(bridge.bridge, STREAM, "a", first=1, completion=STOP)
        await call.finish()
        assert [call.subscriptions[i].text for i in (2, 3)] == ["a", "a"]
        assert late.text == "a"


async def test_who_gives_no_credit_for_too_long_is_let_go(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with (
        running_bridge(
            shared_redis.url, key_prefix=key_prefix, connection_cleanup_interval=1_000, heartbeat_ms=400
        ) as bridge,
        many_call(bridge.bridge) as call,
    ):
        await produce(bridge.bridge, STREAM, "a", first=1)
        await call.send(starts=[call.new(STREAM, credit=1), call.new(STREAM)])
        held, free = call.subscriptions.values()
        await call.over(held)
        assert held.text == "a"
        assert held.ended == Ended(UNAVAILABLE, "CONNECTION_IDLE", {})
        on = await call.start(STREAM, after_cursor=held.cursor)
        await produce(bridge.bridge, STREAM, "b", first=2, completion=STOP)
        await call.finish()
        assert (free.text, on.text) == ("ab", "b")


async def test_a_drain_tells_each_and_then_the_call(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with (
        running_bridge(shared_redis.url, key_prefix=key_prefix) as bridge,
        many_call(bridge.bridge) as call,
        many_call(bridge.bridge) as empty,
    ):
        cursor = (await produce(bridge.bridge, STREAM, "a", first=1)).cursor
        await call.send(starts=[call.new(STREAM), call.new(OTHER), call.new(STREAM, credit=1)])
        await call.attached()
        await call.until(lambda: call.subscriptions[1].last == call.subscriptions[3].last == 1)
        await empty.call.initial_metadata()
        bridge.stop.set()
        failed = await call.failed()
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert [got.ended for got in call.subscriptions.values()] == [
            Ended(UNAVAILABLE, "DRAINING", {"cursor": place}) for place in (cursor, "", cursor)
        ]
        assert (await empty.failed()).reason == "DRAINING"
        async with asyncio.timeout(PATIENCE_SECONDS):
            await bridge.ended


async def test_a_stream_that_is_deleted_ends_its_subscriptions(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, STREAM, "a", first=1)
    async with many_call(bridge.bridge) as call:
        await call.send(starts=[call.new(STREAM), call.new(OTHER), call.new(STREAM, credit=1)])
        gone, other, held = call.subscriptions.values()
        await call.attached()
        await call.until(lambda: gone.last == held.last == 1)
        await bridge.admin.DeleteStream(admin_pb.DeleteStreamRequest(stream=STREAM), timeout=PATIENCE_SECONDS)
        await call.over(gone)
        out_of_range = grpc.StatusCode.OUT_OF_RANGE.value[0]
        assert gone.ended == Ended(out_of_range, "EXPIRED", {"earliest_cursor": ""})
        await produce(bridge.bridge, STREAM, "anew", first=1)
        # Who was held finds out when it goes on.
        assert not held.over
        await call.send(credits=[pb.SubscriptionCredit(subscription=3, bytes=1_000)])
        await call.over(held)
        assert held.ended is not None
        assert held.ended.reason == "RESTARTED"
        await produce(bridge.bridge, OTHER, "x", first=1, completion=STOP)
        await call.finish()
        assert other.text == "x"


async def test_they_sit_out_a_restart_of_redis(own_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(own_redis.url, key_prefix=key_prefix) as bridge, many_call(bridge.bridge) as call:
        await call.send(starts=[call.new(ref(f"r{i}")) for i in range(20)])
        await call.attached()
        for i in range(20):
            await produce(bridge.bridge, ref(f"r{i}"), "a", first=1)
        await call.until(lambda: all(got.last == 1 for got in call.subscriptions.values()))
        own_redis.kill()
        late = await call.start(ref("late"))
        await call.over(late)
        assert late.ended is not None
        assert (late.ended.code, late.ended.reason) == (UNAVAILABLE, "REDIS_UNAVAILABLE")
        own_redis.start()

        async def until_stored(i: int) -> None:
            while True:
                try:
                    await produce(bridge.bridge, ref(f"r{i}"), "b", first=2, completion=STOP)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    await asyncio.sleep(0.05)
                else:
                    return

        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*(until_stored(i) for i in range(20)))
        await call.finish()
        assert [got.text for got in call.subscriptions.values()] == ["ab"] * 20 + [""]


async def test_a_client_that_goes_leaves_nothing(bridge: RunningBridge) -> None:
    for _ in range(3):
        async with many_call(bridge.bridge) as call:
            await call.send(starts=[call.new(ref(f"r{i}"), credit=i) for i in range(100)])
            await call.read()
    await until(lambda: bridge.core.idle)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\xff\xff", (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")),
        (b"\x12\x00" * (MAX_STARTS + 1), (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")),
        (b"\x08\x00" * (MAX_OTHER_CHANGES + 1), (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")),
        (b"\x1a\x00" * (MAX_OTHER_CHANGES + 1), (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")),
        (b"x" * (MAX_SHARED_MESSAGE_BYTES + 1), (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")),
    ],
    ids=["no message", "too many starts", "too many drops", "too many credits", "too large"],
)
async def test_what_is_no_request_ends_the_call(
    bridge: RunningBridge, raw: bytes, status: tuple[grpc.StatusCode, str]
) -> None:
    call = bridge.channel.stream_stream(
        "/llmbridge.v1.BridgeService/SubscribeMany",
        request_serializer=bytes,
        response_deserializer=pb.SubscribeManyResponse.FromString,
    )()
    await call.write(raw)
    failed = await ManyCall(call).failed()
    assert (failed.code, failed.reason) == status


async def test_many_starts_in_a_message_are_not_bound_by_the_limit_of_a_single_request(
    shared_redis: RedisProcess, key_prefix: str
) -> None:
    async with (
        running_bridge(shared_redis.url, key_prefix=key_prefix, max_request_bytes=1_024, max_token_bytes=512) as bridge,
        many_call(bridge.bridge) as call,
    ):
        await call.send(starts=[call.new(ref(f"r{number}")) for number in range(100)])
        await call.attached()
