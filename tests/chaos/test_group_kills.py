"""kill -9 of members and of their bridge, between delivery and acknowledgement: nothing is lost, each time counts."""

import asyncio

import pytest

from llmbridge.v1.group_service_pb2 import AcknowledgeRequest
from llmbridge.v1.group_service_pb2_grpc import GroupServiceStub
from tests.support.bridge_process import BridgeProcess
from tests.support.calls import STOP, produce, ref
from tests.support.group_calls import EXPLICIT, GroupMember, Share, group_ref, membership
from tests.support.member_process import MemberProcess
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge

STREAM = ref("r")
TOKENS = 60
TEXT = "".join(f"{i} " for i in range(1, TOKENS + 1))


@pytest.fixture
async def stored(bridge: RunningBridge) -> RunningBridge:
    for i in range(1, TOKENS + 1):
        await produce(bridge.bridge, STREAM, f"{i} ", first=i, completion=STOP if i == TOKENS else None)
    return bridge


async def work(bridge: RunningBridge, share: Share) -> None:
    """Be a member that settles each message."""
    request = membership(STREAM, acknowledgement=EXPLICIT, max_outstanding_tokens=7)
    member = await GroupMember.join(bridge.bridge, request, share)
    acks = GroupServiceStub(bridge.channel)
    while not share.completions:
        message = await member.message()
        if message.ack_ids:
            await acks.Acknowledge(AcknowledgeRequest(group=group_ref(STREAM), ack_ids=message.ack_ids))
    await member.to_the_end()


async def test_members_killed_before_they_acknowledge(stored: RunningBridge) -> None:
    members = [
        await asyncio.to_thread(MemberProcess(stored.address, STREAM, "g", settle=3, hold=5).start) for _ in range(3)
    ]
    settled = {sequence for member in members for sequence in member.settled}
    held = {sequence for member in members for sequence in member.held}
    assert (len(settled), settled & held) == (9, set())
    for member in members:
        member.kill()
    share = Share()
    await work(stored, share)
    everything = set(range(1, TOKENS + 1))
    assert set(share.texts) == everything - settled
    assert set(share.attempts.values()) == {1}


async def test_the_attempts_of_a_killed_member_are_counted(stored: RunningBridge) -> None:
    member = await asyncio.to_thread(MemberProcess(stored.address, STREAM, "g", settle=0, hold=5).start)
    member.kill()
    after = await GroupMember.join(stored.bridge, membership(STREAM, acknowledgement=EXPLICIT))
    attempts: dict[int, int] = {}
    while len(attempts) < TOKENS:
        message = await after.message()
        for i in range(len(message.tokens)):
            attempts[message.first_sequence + i] = message.delivery_attempt
    assert {sequence for sequence, attempt in attempts.items() if attempt == 2} == set(member.held)
    assert set(attempts.values()) == {1, 2}
    await after.leave()


async def test_the_bridge_of_a_member_is_killed(
    stored: RunningBridge, shared_redis: RedisProcess, key_prefix: str
) -> None:
    process = BridgeProcess({"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": key_prefix}).start()
    try:
        first = await GroupMember.join(
            stored.bridge,
            # What is held while processes start comes again many times.
            membership(
                STREAM,
                acknowledgement=EXPLICIT,
                max_outstanding_tokens=1,
                ack_deadline_ms=300,
                max_deliveries=1_000,
            ),
        )
        await first.message()
        member = await asyncio.to_thread(MemberProcess(process.address, STREAM, "g", settle=2, hold=6).start)
        process.kill()
        # Nobody gives anything back: what the dead bridge's member held comes when its deadline has passed.
        share = Share()
        await first.leave()
        await work(stored, share)
        assert set(share.texts) == set(range(1, TOKENS + 1)) - set(member.settled)
        member.kill()
    finally:
        process.close()
