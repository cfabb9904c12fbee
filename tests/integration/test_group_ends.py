"""How a member's call ends or goes on where something is gone, broken or on its way out."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import pytest
import redis.asyncio

from llmbridge.groups.batches import BatchMaker, Given
from llmbridge.v1.group_service_pb2 import (
    SETTLE_RESULT_DONE,
    AcknowledgeRequest,
    DeleteGroupRequest,
    ListDeadLettersRequest,
)
from llmbridge.v1.group_service_pb2_grpc import GroupServiceStub
from llmbridge.v1.stream_admin_service_pb2 import DeleteStreamRequest, TrimStreamRequest
from tests.support.calls import STOP, failure, produce, ref
from tests.support.group_calls import EXPLICIT, GroupMember, group_ref, membership
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

STREAM = ref("r")


async def test_a_deleted_group_ends_its_members(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, STREAM, "a")
    member = await GroupMember.join(bridge.bridge, membership(STREAM))
    await member.message()
    await GroupServiceStub(bridge.channel).DeleteGroup(DeleteGroupRequest(group=group_ref(STREAM)))
    failed = await failure(member.call.read())
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "GROUP_NOT_FOUND")


@pytest.mark.parametrize("anew", [False, True], ids=["gone", "begun anew"])
async def test_a_deleted_stream_ends_its_members(bridge: RunningBridge, anew: bool) -> None:
    await produce(bridge.bridge, STREAM, "a")
    member = await GroupMember.join(bridge.bridge, membership(STREAM, acknowledgement=EXPLICIT))
    await member.message()
    await bridge.admin.DeleteStream(DeleteStreamRequest(stream=STREAM))
    if anew:
        await produce(bridge.bridge, STREAM, "b")
    failed = await failure(member.call.read())
    assert failed.code is grpc.StatusCode.OUT_OF_RANGE
    assert failed.reason in (("RESTARTED", "EXPIRED") if anew else ("EXPIRED",))


async def test_a_group_that_fell_behind_a_trim_is_told_where_the_log_begins(bridge: RunningBridge) -> None:
    for text in "abcde":
        await produce(bridge.bridge, STREAM, text)
    held_up = await GroupMember.join(
        bridge.bridge, membership(STREAM, acknowledgement=EXPLICIT, max_outstanding_tokens=1)
    )
    held = await held_up.message()
    await bridge.admin.TrimStream(TrimStreamRequest(stream=STREAM, keep_tokens=2))
    acks = GroupServiceStub(bridge.channel)
    answer = await acks.Acknowledge(AcknowledgeRequest(group=group_ref(STREAM), ack_ids=held.ack_ids))
    assert list(answer.results) == [SETTLE_RESULT_DONE]
    failed = await failure(held_up.call.read())
    assert (failed.code, failed.reason) == (grpc.StatusCode.OUT_OF_RANGE, "TRIMMED")
    assert failed.metadata["earliest_cursor"].endswith("-3-00000000")
    # So is everyone who joins, until one accepts it.
    failed = await failure(bridge.bridge.Subscribe(membership(STREAM)).read())
    assert failed.reason == "TRIMMED"
    accepting = await GroupMember.join(bridge.bridge, membership(STREAM, earliest=True))
    assert "".join(token.text for message in await accepting.messages(2) for token in message.tokens) == "de"
    await accepting.leave()
    after = await GroupMember.join(bridge.bridge, membership(STREAM))
    assert await after.is_quiet(0.1)
    await after.leave()


async def test_pending_entries_that_are_trimmed_become_dead_letters_and_the_group_ends(bridge: RunningBridge) -> None:
    for text in "abc":
        await produce(bridge.bridge, STREAM, text)
    request = membership(STREAM, acknowledgement=EXPLICIT, ack_deadline_ms=2_000)
    first = await GroupMember.join(bridge.bridge, request)
    await first.messages(3)
    await bridge.admin.TrimStream(TrimStreamRequest(stream=STREAM, keep_tokens=1))
    await produce(bridge.bridge, STREAM, completion=STOP)
    acks = GroupServiceStub(bridge.channel)
    again = await first.message()
    assert (again.tokens[0].text, again.delivery_attempt) == ("c", 2)
    await acks.Acknowledge(AcknowledgeRequest(group=group_ref(STREAM), ack_ids=again.ack_ids))
    assert (await first.to_the_end()).completions == [STOP]
    listed = await acks.ListDeadLetters(ListDeadLettersRequest(stream=STREAM))
    assert [(letter.reason, letter.attempts) for letter in listed.dead_letters] == [("trimmed", 1)] * 2


async def test_a_poisoned_entry_becomes_a_dead_letter_and_the_others_go_on(
    shared_redis: RedisProcess, key_prefix: str, bridge: RunningBridge
) -> None:
    for text in "abc":
        await produce(bridge.bridge, STREAM, text)
    async with redis.asyncio.Redis.from_url(shared_redis.url) as client:
        (log,) = [key async for key in client.scan_iter(f"{key_prefix}:stream:*")]
        entries: Any = await client.xrange(log)
        incarnation = entries[-1][0].split(b"-")[0].decode()
        await client.xadd(log, {"something": "else"}, id=f"{incarnation}-4")
        await client.xadd(log, entries[-1][1], id=f"{incarnation}-5")
    member = await GroupMember.join(bridge.bridge, membership(STREAM, acknowledgement=EXPLICIT))
    messages = await member.messages(4)
    assert {message.first_sequence for message in messages} <= {1, 2, 3, 5}
    listed = await GroupServiceStub(bridge.channel).ListDeadLetters(ListDeadLettersRequest(stream=STREAM))
    assert [letter.reason for letter in listed.dead_letters] == ["undecodable"]
    assert listed.dead_letters[0].cursor.split("-")[1] == "4"
    assert await member.is_quiet(0.2)
    await member.leave()


def failing_once(
    make: Callable[[BatchMaker, Sequence[object]], Given],
) -> Callable[[BatchMaker, Sequence[object]], Given]:
    failures = iter([ZeroDivisionError("a defect")])

    def fail_once(maker: BatchMaker, entries: Sequence[object]) -> Given:
        if entries and (failure := next(failures, None)) is not None:
            raise failure
        return make(maker, entries)

    return fail_once


async def test_a_member_that_fails_begins_anew_from_its_place(
    bridge: RunningBridge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await produce(bridge.bridge, STREAM, "a")
    member = await GroupMember.join(bridge.bridge, membership(STREAM))
    await member.message()
    for name in ("new", "again"):
        monkeypatch.setattr(BatchMaker, name, failing_once(getattr(BatchMaker, name)))
    with caplog.at_level(logging.ERROR, "llmbridge.groups.consumer"):
        await produce(bridge.bridge, STREAM, "b")
        again = await member.message()
    assert (again.tokens[0].text, again.delivery_attempt) == ("b", 1)
    assert [record.message.split()[0] for record in caplog.records] == ["member", "member"]
    await produce(bridge.bridge, STREAM, "c", completion=STOP)
    assert (await member.to_the_end()).text == "abc"
    assert set(member.share.attempts.values()) == {1}


async def test_a_draining_bridge_leaves_what_its_members_hold_to_them(
    shared_redis: RedisProcess, key_prefix: str, bridge: RunningBridge
) -> None:
    for text in "abc":
        await produce(bridge.bridge, STREAM, text)
    acks = GroupServiceStub(bridge.channel)
    asked = membership(STREAM, acknowledgement=EXPLICIT, consumer="worker", max_outstanding_tokens=2)
    async with running_bridge(shared_redis.url, beside=True, key_prefix=key_prefix) as draining:
        member = await GroupMember.join(draining.bridge, asked)
        held = await member.messages(2)
        draining.stop.set()
        failed = await failure(member.call.read())
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    other = await GroupMember.join(bridge.bridge, membership(STREAM, acknowledgement=EXPLICIT))
    assert [token.text for message in await other.messages(1) for token in message.tokens] == ["c"]
    assert await other.is_quiet()
    # What it works on is its own still, and it settles that where it is now.
    for message in held:
        answer = await acks.Acknowledge(AcknowledgeRequest(group=group_ref(STREAM), ack_ids=message.ack_ids))
        assert set(answer.results) == {SETTLE_RESULT_DONE}
    await other.leave()


async def test_members_go_on_after_their_redis_connections_are_cut(
    bridge: RunningBridge, shared_redis: RedisProcess
) -> None:
    member = await GroupMember.join(bridge.bridge, membership(STREAM))
    async with redis.asyncio.Redis.from_url(shared_redis.url) as client:
        for i in range(1, 201):
            await produce(bridge.bridge, STREAM, f"{i} ", first=i)
            if i % 20 == 0:
                for connection in await client.client_list():
                    if connection["name"] == "llmbridge-commands":
                        await client.client_kill_filter(_id=connection["id"])
        await produce(bridge.bridge, STREAM, first=201, completion=STOP)
    share = await member.to_the_end()
    assert share.text == "".join(f"{i} " for i in range(1, 201))
    assert set(share.attempts.values()) == {1}
