"""SubscribeMany: credit, calls that are not read, and who is held by whom."""

import asyncio

import pytest

from llmbridge.hub.tail import WINDOW_ENTRIES
from llmbridge.subscribe.deliveries import RESPONSE_BYTES
from llmbridge.subscribe.multiplexer import MOST_UNTOLD
from llmbridge.v1 import bridge_service_pb2 as pb
from tests.support.calls import PATIENCE_SECONDS, STOP, produce, ref, stalled_channel, stub, until
from tests.support.many_calls import Ended, ManyCall, Subscribed, many_call
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

STREAM = ref("r")


async def more(call: ManyCall, number: int, size: int) -> None:
    await call.send(credits=[pb.SubscriptionCredit(subscription=number, bytes=size)])


async def produce_numbered(bridge: RunningBridge, first: int, count: int, size: int = 8) -> None:
    for i in range(first, first + count):
        await produce(bridge.bridge, STREAM, f"{i:08d}".ljust(size, "x"), first=i)


def numbers(got: Subscribed) -> list[int]:
    return [int(text[:8]) for text in got.texts]


@pytest.mark.parametrize("behind", [5, WINDOW_ENTRIES + 50])
async def test_credit_holds_one_and_not_the_others(bridge: RunningBridge, behind: int) -> None:
    async with many_call(bridge.bridge) as call:
        held, free = await call.start(STREAM, credit=1), await call.start(STREAM)
        await call.attached()
        # Alone, so that nothing can come together with it.
        await produce_numbered(bridge, 1, 1)
        await call.until(lambda: held.last == free.last == 1)
        await produce_numbered(bridge, 2, behind - 1)
        await call.until(lambda: free.last == behind)
        # One message, larger than what it had left.
        assert numbers(held) == [1]
        # It goes on exactly where it stood, and is held again as soon as the credit is used up.
        await more(call, 1, held.bytes)
        await call.until(lambda: held.messages == 2)
        assert held.last > 1
        second = held.last
        await produce_numbered(bridge, behind + 1, 1)
        await call.until(lambda: free.last == behind + 1)
        assert held.last == second
        await more(call, 1, 1 << 60)
        await call.until(lambda: held.last == behind + 1)
        # They stand together again.
        before = call.deliveries
        await produce_numbered(bridge, behind + 2, 1)
        await call.until(lambda: held.last == free.last == behind + 2)
        assert call.deliveries == before + 1
        await produce(bridge.bridge, STREAM, first=behind + 3, completion=STOP)
        await call.finish()
        for got in (held, free):
            assert numbers(got) == list(range(1, behind + 3))


async def test_members_of_one_place_are_held_each_by_its_own_credit(bridge: RunningBridge) -> None:
    async with many_call(bridge.bridge) as call:
        await call.send(starts=[call.new(STREAM, credit=40 * i) for i in range(1, 11)])
        await call.attached()
        everything = await call.start(STREAM)
        await produce_numbered(bridge, 1, 40)
        await call.until(lambda: everything.last == 40)
        for number, got in call.subscriptions.items():
            if got is not everything:
                assert 40 * number <= got.bytes < 40 * number + got.largest
        # Some at a time, some together, and one that is left where it is.
        await more(call, 1, 200)
        await call.send(credits=[pb.SubscriptionCredit(subscription=i, bytes=1 << 40) for i in range(2, 10)])
        await produce(bridge.bridge, STREAM, first=41, completion=STOP)
        together = [call.subscriptions[i] for i in range(2, 10)]
        await call.over(*together, everything)
        assert all(numbers(got) == list(range(1, 41)) for got in together)
        await call.send(drops=[1, 10])
        await call.finish()
        for got in (call.subscriptions[1], call.subscriptions[10]):
            assert got.ended == Ended(0)
            assert numbers(got) == list(range(1, got.last + 1))


async def test_a_replay_does_not_starve_the_living(bridge: RunningBridge) -> None:
    """Far more than a page is replayed, with no credit limit; who is live gets its tokens in between."""
    live = ref("live")
    for i in range(40):
        await produce(bridge.bridge, STREAM, *(f"{j:08d}".ljust(2_000, "x") for j in range(100 * i, 100 * i + 100)))
    await produce(bridge.bridge, STREAM, completion=STOP)
    async with many_call(bridge.bridge) as call:
        lively = await call.start(live)
        await call.attached()
        replay = await call.start(STREAM)
        seen = []
        for i in range(1, 6):
            await produce(bridge.bridge, live, f"{i}", first=i)
            await call.until(lambda i=i: lively.last == i)
            seen.append(replay.last)
        assert seen[0] < 4_000, "it came behind the whole replay"
        await call.over(replay)
        assert len(replay.texts) == 4_000


async def test_responses_are_bounded(bridge: RunningBridge) -> None:
    streams = [ref(f"r{i}") for i in range(30)]
    for stream in streams:
        await produce(bridge.bridge, stream, "x" * 10_000, first=1)
    large = ref("large")
    await produce(bridge.bridge, large, "x" * 50_000, "y" * 50_000, "z" * 50_000, first=1)
    async with many_call(bridge.bridge) as call:
        await call.send(starts=[call.new(stream) for stream in (*streams, large)])
        await call.until(lambda: all(got.last for got in call.subscriptions.values()))
        assert call.responses > 5
        got = call.subscriptions[31]
        assert RESPONSE_BYTES < got.bytes <= call.largest <= got.bytes + 100


async def test_a_call_that_is_not_read_is_held_and_loses_nothing(bridge: RunningBridge) -> None:
    async with stalled_channel(bridge.address) as channel, many_call(stub(channel)) as call:
        slow = await call.start(STREAM)
        await call.attached()
        async with many_call(bridge.bridge) as other:
            fast = await other.start(STREAM)
            await other.attached()
            await produce_numbered(bridge, 1, 300, size=3_000)
            await produce(bridge.bridge, STREAM, first=301, completion=STOP)
            await other.finish()
            assert numbers(fast) == list(range(1, 301))
        await call.finish()
        assert numbers(slow) == list(range(1, 301))


async def test_who_does_not_read_is_not_listened_to_for_ever(bridge: RunningBridge) -> None:
    """Ends are told whether there is credit or not: so that they do not pile up, the client has to take them."""
    async with stalled_channel(bridge.address) as channel, many_call(stub(channel)) as call:
        wrong = pb.SubscribeRequest(stream=ref("r"), after_cursor="nonsense" * 20)

        async def flood() -> None:
            for number in range(1, 10_001):
                call.subscriptions[number] = Subscribed()
                start = pb.SubscriptionStart(subscription=number, request=wrong)
                await call.call.write(pb.SubscribeManyRequest(starts=[start]))

        flooding = asyncio.create_task(flood())
        [multiplexer] = await shared_calls(bridge)
        await until(lambda: not multiplexer._room.is_set())
        # How much more gRPC itself takes in meanwhile is its own affair.
        await asyncio.wait([flooding], timeout=0.5)
        assert len(multiplexer._events) <= MOST_UNTOLD + 1
        async with asyncio.timeout(PATIENCE_SECONDS * 2):
            while not flooding.done() or not all(got.over for got in call.subscriptions.values()):
                assert await call.read() is not None
        await flooding
        await call.finish()


async def shared_calls(bridge: RunningBridge) -> list:  # type: ignore[type-arg]
    await until(lambda: bridge.core._connections._shared_calls)
    return list(bridge.core._connections._shared_calls)


async def test_heartbeats_when_nothing_comes(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with (
        running_bridge(shared_redis.url, key_prefix=key_prefix, heartbeat_ms=100) as bridge,
        many_call(bridge.bridge) as call,
    ):
        await call.until(lambda: call.heartbeats == 2)
        got = await call.start(STREAM)
        await call.attached()
        before = call.heartbeats
        await call.until(lambda: call.heartbeats == before + 2)
        await produce(bridge.bridge, STREAM, "a", first=1, completion=STOP)
        await call.finish()
        assert got.text == "a"
