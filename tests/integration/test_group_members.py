"""Members of a consumer group, over real gRPC: they share the entries, settle them, and all see the end."""

import asyncio

import grpc
import pytest

from llmbridge.v1 import bridge_service_pb2 as pb
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from tests.support.calls import STOP, attached, failure, produce, ref, until
from tests.support.group_calls import EXPLICIT, GroupMember, Share, membership
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

STREAM = ref("r")


async def test_a_lone_member_gets_everything_and_the_end(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, STREAM, "a", "b")
    member = await GroupMember.join(bridge.bridge, membership(STREAM))
    first = await member.message()
    assert [token.text for token in first.tokens] == ["a", "b"]
    assert (first.first_sequence, first.delivery_attempt, list(first.ack_ids)) == (1, 1, [])
    await produce(bridge.bridge, STREAM, "c")
    await produce(bridge.bridge, STREAM, "d", completion=STOP)
    share = await member.to_the_end()
    assert (share.text, share.completions, max(share.attempts.values())) == ("abcd", [STOP], 1)


async def test_members_share_the_entries_and_all_see_the_end(bridge: RunningBridge) -> None:
    share = Share()
    members = [await GroupMember.join(bridge.bridge, membership(STREAM), share) for _ in range(3)]
    for i in range(60):
        await produce(bridge.bridge, STREAM, f"{i},")
    await produce(bridge.bridge, STREAM, completion=STOP)
    await asyncio.gather(*(member.to_the_end() for member in members))
    assert share.text == "".join(f"{i}," for i in range(60))
    assert set(share.attempts.values()) == {1}
    assert share.completions == [STOP] * 3


async def test_a_group_begins_at_the_start_and_remembers_its_place(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, STREAM, "a")
    early = await GroupMember.join(bridge.bridge, membership(STREAM))
    assert (await early.message()).tokens[0].text == "a"
    await early.leave()
    await produce(bridge.bridge, STREAM, "b")
    late = await GroupMember.join(bridge.bridge, membership(STREAM))
    assert (await late.message()).tokens[0].text == "b"
    other = await GroupMember.join(bridge.bridge, membership(STREAM, "other"))
    assert len((await other.messages(2))[0].tokens) == 2
    await late.leave()
    await other.leave()


async def test_a_member_may_come_before_the_stream(bridge: RunningBridge) -> None:
    member = await GroupMember.join(bridge.bridge, membership(STREAM))
    await produce(bridge.bridge, STREAM, "a", completion=STOP)
    assert (await member.to_the_end()).text == "a"


async def test_a_member_that_comes_after_the_end_gets_the_completion(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, STREAM, "a", completion=STOP)
    first = await (await GroupMember.join(bridge.bridge, membership(STREAM))).to_the_end()
    second = await (await GroupMember.join(bridge.bridge, membership(STREAM))).to_the_end()
    assert (first.text, second.text) == ("a", "")
    assert first.completions == second.completions == [STOP]


async def test_what_a_leaving_member_has_not_settled_goes_to_another_at_once(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, STREAM, "a")
    first = await GroupMember.join(bridge.bridge, membership(STREAM, acknowledgement=EXPLICIT))
    mine = await first.message()
    second = await GroupMember.join(bridge.bridge, membership(STREAM, acknowledgement=EXPLICIT))
    assert await second.is_quiet()
    await first.leave()
    again = await second.message()
    assert (again.tokens[0].text, again.delivery_attempt) == ("a", 2)
    assert len(again.ack_ids) == len(mine.ack_ids) == 1
    assert again.ack_ids != mine.ack_ids
    await second.leave()


async def test_an_entry_that_is_not_settled_in_time_goes_to_another_member(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, STREAM, "a", completion=STOP)
    asked = membership(STREAM, acknowledgement=EXPLICIT, ack_deadline_ms=150, max_deliveries=2)
    share = Share()
    members = [await GroupMember.join(bridge.bridge, asked, share) for _ in range(2)]
    # Nobody acknowledges: after two deliveries it is a dead letter, and the group ends.
    await asyncio.gather(*(member.to_the_end() for member in members))
    assert (share.attempts, share.completions) == ({1: 2}, [STOP] * 2)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"group": pb.GroupMembership(name="a\n")}, "group.name"),
        ({"group": pb.GroupMembership(name="g", consumer="x" * 300)}, "group.consumer"),
        ({"group": pb.GroupMembership(acknowledgement=7)}, "group.acknowledgement"),  # type: ignore[arg-type]
        ({"group": pb.GroupMembership(max_outstanding_tokens=1_000_001)}, "group.max_outstanding_tokens"),
        ({"group": pb.GroupMembership(max_outstanding_bytes=67_108_865)}, "group.max_outstanding_bytes"),
        ({"group": pb.GroupMembership(ack_deadline_ms=99)}, "group.ack_deadline_ms"),
        ({"group": pb.GroupMembership(ack_deadline_ms=-1)}, "group.ack_deadline_ms"),
        ({"group": pb.GroupMembership(max_deliveries=1_001)}, "group.max_deliveries"),
        ({"group": pb.GroupMembership(), "position": pb.POSITION_LATEST}, "position"),
        ({"group": pb.GroupMembership(), "position": pb.POSITION_BEGINNING}, "position"),
        ({"group": pb.GroupMembership(), "after_cursor": "1-1-00000000"}, "after_cursor"),
    ],
)
async def test_a_bad_wish_names_its_field(bridge: RunningBridge, fields: dict[str, object], named: str) -> None:
    failed = await failure(bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, **fields)).read())  # type: ignore[arg-type]
    assert (failed.code, failed.metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, named)


async def test_other_settings_than_the_groups_are_refused(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, STREAM, "a")
    member = await GroupMember.join(bridge.bridge, membership(STREAM, ack_deadline_ms=1_000))
    await member.message()
    failed = await failure(bridge.bridge.Subscribe(membership(STREAM, ack_deadline_ms=2_000)).read())
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "GROUP_SETTINGS_DIFFER")
    assert failed.metadata == {"group": "g", "ack_deadline_ms": "1000", "max_deliveries": "5"}
    await member.leave()


async def test_members_are_limited_apart_from_readers(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, max_consumers=1) as bridge:
        member = await GroupMember.join(bridge.bridge, membership(STREAM))
        reader = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        failed = await failure(bridge.bridge.Subscribe(membership(STREAM)).read())
        assert (failed.code, failed.metadata["limit"]) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "max_consumers_per_instance",
        )
        reader.cancel()
        await member.leave()


async def test_the_connections_know_the_members(bridge: RunningBridge) -> None:
    member = await GroupMember.join(bridge.bridge, membership(STREAM, consumer="worker"))
    assert bridge.core.idle is False
    await member.leave()
    await until(lambda: bridge.core.idle)
