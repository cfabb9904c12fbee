"""How much a member holds: by tokens and bytes, so fine that nothing is held too long and delivered twice."""

import asyncio

import pytest

from llmbridge.log.keys import Keys
from llmbridge.model.names import StreamName
from llmbridge.v1.group_service_pb2 import SETTLE_RESULT_DONE, AcknowledgeRequest, GetGroupRequest
from llmbridge.v1.group_service_pb2_grpc import GroupServiceStub
from tests.support.calls import STOP, produce, ref
from tests.support.group_calls import EXPLICIT, GroupMember, Share, ack_ids, group_ref, membership
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

STREAM = ref("r")


async def acknowledge(bridge: RunningBridge, *ids: str) -> None:
    request = AcknowledgeRequest(group=group_ref(STREAM), ack_ids=ids)
    response = await GroupServiceStub(bridge.channel).Acknowledge(request)
    assert set(response.results) == {SETTLE_RESULT_DONE}


async def test_a_member_holds_no_more_tokens_than_it_asked_for(bridge: RunningBridge) -> None:
    for i in range(10):
        await produce(bridge.bridge, STREAM, f"{i}")
    asked = membership(STREAM, acknowledgement=EXPLICIT, max_outstanding_tokens=3)
    member = await GroupMember.join(bridge.bridge, asked)
    held = ack_ids(*await member.messages(3))
    assert await member.is_quiet()
    await acknowledge(bridge, held[1])
    (more,) = await member.messages(1)
    assert more.tokens[0].text == "3"
    assert await member.is_quiet(0.1)
    await acknowledge(bridge, held[0], held[2], *more.ack_ids)
    assert len(ack_ids(*await member.messages(3))) == 3
    await member.leave()


async def test_a_member_holds_no_more_bytes_than_it_asked_for(bridge: RunningBridge) -> None:
    for i in range(6):
        await produce(bridge.bridge, STREAM, str(i) * 1_000)
    asked = membership(STREAM, acknowledgement=EXPLICIT, max_outstanding_bytes=2_500)
    member = await GroupMember.join(bridge.bridge, asked)
    held = ack_ids(*await member.messages(2))
    assert await member.is_quiet()
    await acknowledge(bridge, *held)
    await member.messages(2)
    await member.leave()


async def test_an_entry_larger_than_the_limits_comes_alone(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, STREAM, "a")
    await produce(bridge.bridge, STREAM, *"bcdefgh")
    await produce(bridge.bridge, STREAM, "i", completion=STOP)
    asked = membership(STREAM, acknowledgement=EXPLICIT, max_outstanding_tokens=2)
    member = await GroupMember.join(bridge.bridge, asked)
    for text in ("a", "bcdefgh", "i"):
        message = await member.message()
        assert "".join(token.text for token in message.tokens) == text
        assert await member.is_quiet(0.05)
        await acknowledge(bridge, *message.ack_ids)
    assert (await member.to_the_end()).completions == [STOP]


@pytest.mark.parametrize("tokens", [4, 5], ids=["some room is left, not enough", "no room is left"])
async def test_what_was_settled_and_never_told_holds_nothing_up(
    shared_redis: RedisProcess, key_prefix: str, tokens: int
) -> None:
    """As when another bridge settles while this one has lost its connection for wake-ups."""
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, consumer_poll_timeout=50) as bridge:
        for text in "abc":
            await produce(bridge.bridge, STREAM, *text * tokens)
        asked = membership(STREAM, acknowledgement=EXPLICIT, max_outstanding_tokens=10)
        member = await GroupMember.join(bridge.bridge, asked)
        held = [ack_id.rpartition(".")[0] for ack_id in ack_ids(*await member.messages(2 * tokens))]
        assert await member.is_quiet(0.1)
        log = Keys(key_prefix, 64).stream(StreamName("s", "m", "r")).log
        with shared_redis.client() as client:
            assert client.xack(log, "g", *held) == 2
        assert (await member.message()).tokens[0].text == "c"
        await member.leave()


async def test_a_large_entry_among_small_ones_holds_nothing_up(bridge: RunningBridge) -> None:
    """What follows a large entry is read by looking at each: the share stays within the limits."""
    for i in range(120):
        await produce(bridge.bridge, STREAM, *(["x"] * 60 if i == 50 else [f"{i}"]))
    await produce(bridge.bridge, STREAM, completion=STOP)
    asked = membership(STREAM, acknowledgement=EXPLICIT, max_outstanding_tokens=100)
    member = await GroupMember.join(bridge.bridge, asked)
    held = 0
    unsettled: list[str] = []
    while not member.share.completions:
        message = await member.message()
        held += len(message.tokens)
        assert held <= 100
        unsettled += message.ack_ids
        if held > 30:
            await acknowledge(bridge, *unsettled)
            held, unsettled = 0, []
        elif len(member.share.texts) == 179 and unsettled:
            await acknowledge(bridge, *unsettled)
            unsettled = []
    assert set(member.share.attempts.values()) == {1}
    assert len(member.share.texts) == 179


async def test_thousands_of_small_tokens_are_acknowledged_without_a_redelivery(
    bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str
) -> None:
    """By workers at two bridges, none of which hoards: no more is ever pending than they asked for together."""
    tokens = 2_000
    async with running_bridge(shared_redis.url, beside=True, key_prefix=key_prefix) as other:
        share = Share()
        seen_pending: list[int] = []
        groups = GroupServiceStub(bridge.channel)

        async def work(here: RunningBridge) -> None:
            asked = membership(STREAM, acknowledgement=EXPLICIT, max_outstanding_tokens=64)
            member = await GroupMember.join(here.bridge, asked, share)
            while True:
                message = await member.message()
                if message.HasField("completion"):
                    break
                if len(share.texts) // 50 > len(seen_pending):
                    seen_pending.append(await pending())
                await acknowledge(here, *message.ack_ids)

        async def pending() -> int:
            answer = await groups.GetGroup(GetGroupRequest(group=group_ref(STREAM)))
            return int(answer.info.pending)

        async def write() -> None:
            for first in range(1, tokens + 1):
                await produce(bridge.bridge, STREAM, f"{first} ", first=first)
            await produce(bridge.bridge, STREAM, first=tokens + 1, completion=STOP)

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            for here in (bridge, other, bridge):
                group.create_task(work(here))
    assert share.text == "".join(f"{i} " for i in range(1, tokens + 1))
    assert set(share.attempts.values()) == {1}
    assert share.completions == [STOP] * 3
    assert max(seen_pending) <= 3 * 64
