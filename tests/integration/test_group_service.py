"""GroupService over real gRPC: settling, how groups stand, and what it refuses. The log's parts deliver."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from llmbridge.groups.places import AckId
from llmbridge.log.groups import GroupPlace, GroupSettings, History, Receipt, Room
from llmbridge.model.names import StreamName
from llmbridge.model.records import FinishReason
from llmbridge.v1 import group_service_pb2 as pb
from tests.support.calls import failure, ref
from tests.support.log_parts import LogParts, log_parts
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, keys_without_expiry, running_bridge

PARTITIONS = 4
NAME = StreamName("s", "m", "r")
GROUP = pb.GroupRef(stream=ref("r"), name="g")
FEED = pb.GroupRef(lifecycle=pb.LifecycleFeed(), name="g")
DONE, NOT_PENDING = pb.SETTLE_RESULT_DONE, pb.SETTLE_RESULT_NOT_PENDING
DEADLINE_MS = 60_000
SETTINGS = GroupSettings(DEADLINE_MS, 3)
PLENTY = Room(entries=100, records=1_000, size=1_000_000, at_least_one=True)


@pytest.fixture
async def parts(each_redis: RedisProcess, key_prefix: str) -> AsyncIterator[LogParts]:
    async with log_parts(each_redis.url, key_prefix, partitions=PARTITIONS) as running:
        yield running


@pytest.fixture
async def target(each_redis: RedisProcess, key_prefix: str, parts: LogParts) -> AsyncIterator[RunningBridge]:
    async with running_bridge(each_redis.url, key_prefix=key_prefix, partitions=PARTITIONS) as running:
        yield running
    assert await keys_without_expiry(each_redis.url, key_prefix) == []


async def delivered(parts: LogParts, place: GroupPlace, at_most: int, consumer: str = "a") -> list[str]:
    """Give a member the next entries; returns the ids that its client would have."""
    await parts.groups.join(place, SETTINGS, History.REFUSE if place.stream else History.IGNORE)
    share = await parts.groups.read(place, consumer, at_most, ())
    partition = None if place.stream else int(place.log.partition("{")[2].partition("}")[0])
    return [str(AckId(partition, Receipt(entry_id, 1))) for entry_id, _ in share.entries]


def feed_place(parts: LogParts, partition: int, group: str = "g") -> GroupPlace:
    keys = parts.keys
    return GroupPlace(keys.feed(partition), keys.feed_group(partition, group), keys.dead_letters(partition), "", group)


async def add_events(parts: LogParts, partition: int, count: int) -> None:
    """Begin a part of the feed of which nothing but the ids matters."""
    log = parts.keys.feed(partition)
    for n in range(1, count + 1):
        await parts.client.xadd(log, {"k": "created 1", "s": "s:m:r"}, id=f"1000-{n}")
    await parts.client.pexpire(log, DEADLINE_MS)


async def pending(parts: LogParts, place: GroupPlace) -> list[int]:
    """The last sequences of the entries that are pending."""
    found: Any = await parts.client.xpending_range(place.log, place.group, "-", "+", 1_000)
    return [int(one["message_id"].split(b"-")[1]) for one in found]


async def test_acknowledged_deliveries_are_done_once(target: RunningBridge, parts: LogParts) -> None:
    await parts.append_tokens(NAME, 1, 1, 1)
    place = parts.place(NAME, "g")
    one, two, three = await delivered(parts, place, 5)
    answer = await target.groups.Acknowledge(pb.AcknowledgeRequest(group=GROUP, ack_ids=[two, one, two]))
    assert list(answer.results) == [DONE, DONE, NOT_PENDING]
    assert await pending(parts, place) == [3]
    again = await target.groups.Acknowledge(pb.AcknowledgeRequest(group=GROUP, ack_ids=[one, three]))
    assert list(again.results) == [NOT_PENDING, DONE]
    nothing = await target.groups.Acknowledge(pb.AcknowledgeRequest(group=GROUP, ack_ids=[]))
    assert list(nothing.results) == []


async def test_done_is_done_whoever_has_it_now(target: RunningBridge, parts: LogParts) -> None:
    await parts.append_tokens(NAME, 1)
    place = parts.place(NAME, "g")
    [mine] = await delivered(parts, place, 1)
    await target.groups.Reject(pb.RejectRequest(group=GROUP, ack_ids=[mine]))
    [theirs] = await parts.groups.recover(place, "b", PLENTY)
    assert theirs.attempt == 2
    for call in (
        target.groups.ExtendDeadline(pb.ExtendDeadlineRequest(group=GROUP, ack_ids=[mine])),
        target.groups.Reject(pb.RejectRequest(group=GROUP, ack_ids=[mine])),
    ):
        assert list((await call).results) == [NOT_PENDING]
    assert await pending(parts, place) == [1]
    answer = await target.groups.Acknowledge(pb.AcknowledgeRequest(group=GROUP, ack_ids=[mine]))
    assert list(answer.results) == [DONE]
    assert await pending(parts, place) == []


async def test_an_extended_deadline_counts_from_now(target: RunningBridge, parts: LogParts) -> None:
    await parts.append_tokens(NAME, 1, 1)
    place = parts.place(NAME, "g")
    one, two = await delivered(parts, place, 2)
    entry_ids: Any = [AckId.parse(ack_id).receipt.id for ack_id in (one, two)]
    await parts.client.xclaim(place.log, "g", "a", 0, entry_ids, idle=DEADLINE_MS, justid=True)
    answer = await target.groups.ExtendDeadline(pb.ExtendDeadlineRequest(group=GROUP, ack_ids=[two]))
    assert list(answer.results) == [DONE]
    assert [one.id for one in await parts.groups.recover(place, "b", PLENTY)] == entry_ids[:1]


async def test_rejected_deliveries_go_to_the_next_member_or_to_the_dead_letters(
    target: RunningBridge, parts: LogParts
) -> None:
    await parts.append_tokens(NAME, 1, 1, 1)
    place = parts.place(NAME, "g")
    one, two, three = await delivered(parts, place, 3)
    for disposition, ack_id in ((pb.DISPOSITION_UNSPECIFIED, one), (pb.DISPOSITION_REQUEUE, two)):
        request = pb.RejectRequest(group=GROUP, ack_ids=[ack_id], disposition=disposition)
        assert list((await target.groups.Reject(request)).results) == [DONE]
    again = await parts.groups.recover(place, "b", PLENTY)
    assert [delivery.attempt for delivery in again] == [2, 2]
    dead = pb.RejectRequest(group=GROUP, ack_ids=[three], disposition=pb.DISPOSITION_DEAD_LETTER, reason="no é")
    assert list((await target.groups.Reject(dead)).results) == [DONE]
    assert list((await target.groups.Reject(dead)).results) == [NOT_PENDING]
    assert await pending(parts, place) == [1, 2]
    [letter] = (await target.groups.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters
    assert (letter.reason, letter.consumer, letter.attempts, letter.group) == ("no é", "a", 1, GROUP)


async def test_the_feed_is_settled_across_its_partitions(target: RunningBridge, parts: LogParts) -> None:
    for partition in (1, 3):
        await add_events(parts, partition, 2)
    first, second = [await delivered(parts, feed_place(parts, partition), 2) for partition in (1, 3)]
    nowhere = "2:1000-1.1"
    ids = [second[1], first[0], nowhere, second[0]]
    extended = await target.groups.ExtendDeadline(pb.ExtendDeadlineRequest(group=FEED, ack_ids=ids))
    done = await target.groups.Acknowledge(pb.AcknowledgeRequest(group=FEED, ack_ids=ids))
    assert list(extended.results) == list(done.results) == [DONE, DONE, NOT_PENDING, DONE]
    again = await target.groups.Acknowledge(pb.AcknowledgeRequest(group=FEED, ack_ids=[first[1], *ids]))
    assert list(again.results) == [DONE, *[NOT_PENDING] * 4]
    # Where a part of the feed has no such group, but another has, nothing is pending.
    only = await target.groups.Acknowledge(pb.AcknowledgeRequest(group=FEED, ack_ids=[nowhere]))
    assert list(only.results) == [NOT_PENDING]
    other = pb.GroupRef(lifecycle=pb.LifecycleFeed(), name="other")
    for ack_ids in ([], [nowhere], ids):
        gone = await failure(target.groups.Acknowledge(pb.AcknowledgeRequest(group=other, ack_ids=ack_ids)))
        assert gone.short == (grpc.StatusCode.NOT_FOUND, "GROUP_NOT_FOUND", {"group": "other"})


HOSTILE = [
    "",
    "x",
    "1-1",
    "1-1.0",
    "1-1.01",
    "01-1.1",
    "1-1.1 ",
    "1-1.1\n",
    "+1-1.1",
    "1-1.99999999999",
    "99999999999999999-1.1",
    "٣-1.1",
    "-.1",
    "1-1.1-00000000",
    "1--1.1",
]


@pytest.mark.parametrize("bad", [*HOSTILE, "0:1-1.1"], ids=repr)
async def test_an_id_that_is_none_settles_nothing(target: RunningBridge, parts: LogParts, bad: str) -> None:
    await parts.append_tokens(NAME, 1)
    place = parts.place(NAME, "g")
    [good] = await delivered(parts, place, 1)
    for call in (
        target.groups.Acknowledge(pb.AcknowledgeRequest(group=GROUP, ack_ids=[good, bad])),
        target.groups.ExtendDeadline(pb.ExtendDeadlineRequest(group=GROUP, ack_ids=[good, bad])),
        target.groups.Reject(pb.RejectRequest(group=GROUP, ack_ids=[good, bad])),
    ):
        refused = await failure(call)
        assert refused.short == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"field": "ack_ids[1]"})
    assert await pending(parts, place) == [1]


@pytest.mark.parametrize("bad", [*HOSTILE, "1-1.1", f"{PARTITIONS}:1-1.1", "00:1-1.1", "99999:1-1.1", "-1:1-1.1"])
async def test_an_id_that_is_none_of_the_feeds(target: RunningBridge, bad: str) -> None:
    refused = await failure(target.groups.Acknowledge(pb.AcknowledgeRequest(group=FEED, ack_ids=["0:1-1.1", bad])))
    assert refused.short == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"field": "ack_ids[1]"})


def calls_with(target: RunningBridge, group: pb.GroupRef) -> list[Any]:
    return [
        target.groups.Acknowledge(pb.AcknowledgeRequest(group=group, ack_ids=[])),
        target.groups.ExtendDeadline(pb.ExtendDeadlineRequest(group=group, ack_ids=[])),
        target.groups.Reject(pb.RejectRequest(group=group, ack_ids=[])),
        target.groups.GetGroup(pb.GetGroupRequest(group=group)),
        target.groups.ListConsumers(pb.ListConsumersRequest(group=group)),
        target.groups.DeleteGroup(pb.DeleteGroupRequest(group=group)),
    ]


@pytest.mark.parametrize(
    ("group", "field"),
    [
        (pb.GroupRef(name="g"), "group.log"),
        (pb.GroupRef(stream=ref("r", session=""), name="g"), "group.stream.session_id"),
        (pb.GroupRef(stream=ref("r"), name="a\tb"), "group.name"),
        (pb.GroupRef(stream=ref("r"), name="é" * 129), "group.name"),
    ],
    ids=["no log", "no session", "control character", "too long"],
)
async def test_a_group_that_can_not_be(target: RunningBridge, group: pb.GroupRef, field: str) -> None:
    for call in calls_with(target, group):
        refused = await failure(call)
        assert refused.short == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"field": field})


async def test_other_fields_that_are_refused(target: RunningBridge) -> None:
    many = ["1-1.1"] * 1_001
    letters = ["0:1-1"] * 1_001
    for call, field in (
        (target.groups.Acknowledge(pb.AcknowledgeRequest(group=GROUP, ack_ids=many)), "ack_ids"),
        (target.groups.ExtendDeadline(pb.ExtendDeadlineRequest(group=GROUP, ack_ids=many)), "ack_ids"),
        (target.groups.Reject(pb.RejectRequest(group=GROUP, ack_ids=many)), "ack_ids"),
        (target.groups.Reject(pb.RejectRequest(group=GROUP, reason="é" * 513)), "reason"),
        (target.groups.Reject(pb.RejectRequest(group=GROUP, disposition=7)), "disposition"),  # type: ignore[arg-type]
        (target.groups.ListGroups(pb.ListGroupsRequest()), "log"),
        (target.groups.ListGroups(pb.ListGroupsRequest(stream=ref("r", model="a\0"))), "stream.model_id"),
        (target.groups.ListDeadLetters(pb.ListDeadLettersRequest(stream=ref("r", model=""))), "stream.model_id"),
        (target.groups.ListDeadLetters(pb.ListDeadLettersRequest(page_size=1_001)), "page_size"),
        (target.groups.RedriveDeadLetters(pb.RedriveDeadLettersRequest(ids=letters)), "ids"),
        (target.groups.DeleteDeadLetters(pb.DeleteDeadLettersRequest(ids=letters)), "ids"),
    ):
        refused = await failure(call)
        assert refused.short == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"field": field})


@pytest.mark.parametrize("group", [GROUP, FEED], ids=["stream", "feed"])
@pytest.mark.parametrize("log_exists", [False, True])
async def test_a_group_that_is_not_there(
    target: RunningBridge, parts: LogParts, group: pb.GroupRef, log_exists: bool
) -> None:
    if log_exists:
        await parts.append_tokens(NAME, 1)
    for call in calls_with(target, group):
        missing = await failure(call)
        assert missing.short == (grpc.StatusCode.NOT_FOUND, "GROUP_NOT_FOUND", {"group": "g"})


async def test_the_default_group_is_the_one_without_a_name(target: RunningBridge, parts: LogParts) -> None:
    await parts.append_tokens(NAME, 1)
    [ack_id] = await delivered(parts, parts.place(NAME, "llmbridge"), 1)
    unnamed = pb.GroupRef(stream=ref("r"))
    assert (await target.groups.GetGroup(pb.GetGroupRequest(group=unnamed))).info.name == "llmbridge"
    answer = await target.groups.Acknowledge(pb.AcknowledgeRequest(group=unnamed, ack_ids=[ack_id]))
    assert list(answer.results) == [DONE]


async def test_groups_of_a_stream(target: RunningBridge, parts: LogParts) -> None:
    request = pb.ListGroupsRequest(stream=ref("r"))
    missing = await failure(target.groups.ListGroups(request))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "STREAM_NOT_FOUND")
    await parts.append_tokens(NAME, 1, 2, 3, finish=FinishReason.STOP)
    assert list((await target.groups.ListGroups(request)).groups) == []
    place = parts.place(NAME, "z é:%")
    await delivered(parts, place, 1, "a")
    await delivered(parts, place, 1, "b")
    await parts.groups.join(parts.place(NAME, "g"), GroupSettings(0, 0), History.REFUSE)
    g, z = (await target.groups.ListGroups(request)).groups
    assert g == pb.GroupInfo(name="g", lag=6, ack_deadline_ms=30_000, max_deliveries=5)
    assert (z.name, z.consumers, z.pending, z.lag, z.delivered_sequence) == ("z é:%", 2, 2, 3, 3)
    assert (z.ack_deadline_ms, z.max_deliveries) == (DEADLINE_MS, 3)
    got = (await target.groups.GetGroup(pb.GetGroupRequest(group=pb.GroupRef(stream=ref("r"), name=z.name)))).info
    assert got.oldest_pending_ms >= z.oldest_pending_ms
    consumers = (
        await target.groups.ListConsumers(pb.ListConsumersRequest(group=pb.GroupRef(stream=ref("r"), name=z.name)))
    ).consumers
    assert {(one.name, one.pending) for one in consumers} == {("a", 1), ("b", 1)}
    assert got.idle_ms <= min(one.idle_ms for one in consumers)


async def test_a_group_of_the_feed_is_one_group(target: RunningBridge, parts: LogParts) -> None:
    request = pb.ListGroupsRequest(lifecycle=pb.LifecycleFeed())
    assert list((await target.groups.ListGroups(request)).groups) == []
    for partition, count in ((0, 5), (1, 4), (3, 2)):
        await add_events(parts, partition, count)
    await delivered(parts, feed_place(parts, 0), 2, "a")
    await delivered(parts, feed_place(parts, 1), 1, "a")
    await delivered(parts, feed_place(parts, 1), 1, "b")
    await delivered(parts, feed_place(parts, 3, "other"), 2, "c")
    info = (await target.groups.GetGroup(pb.GetGroupRequest(group=FEED))).info
    # 3 of partition 0, 2 of 1, and both of 3, where the group has not come yet.
    assert (info.name, info.consumers, info.pending, info.lag, info.delivered_sequence) == ("g", 2, 4, 7, 0)
    consumers = (await target.groups.ListConsumers(pb.ListConsumersRequest(group=FEED))).consumers
    assert {(one.name, one.pending) for one in consumers} == {("a", 3), ("b", 1)}
    listed = (await target.groups.ListGroups(request)).groups
    assert [(one.name, one.pending, one.lag) for one in listed] == [("g", 4, 7), ("other", 2, 9)]
    await target.groups.DeleteGroup(pb.DeleteGroupRequest(group=FEED))
    assert [one.name for one in (await target.groups.ListGroups(request)).groups] == ["other"]
    assert (await failure(target.groups.GetGroup(pb.GetGroupRequest(group=FEED)))).reason == "GROUP_NOT_FOUND"


async def test_a_deleted_group_is_gone_and_the_stream_stays(target: RunningBridge, parts: LogParts) -> None:
    await parts.append_tokens(NAME, 1)
    place = parts.place(NAME, "g")
    [ack_id] = await delivered(parts, place, 1)
    await target.groups.DeleteGroup(pb.DeleteGroupRequest(group=GROUP))
    assert await parts.client.xinfo_groups(place.log) == []
    for call in (
        target.groups.Acknowledge(pb.AcknowledgeRequest(group=GROUP, ack_ids=[ack_id])),
        target.groups.DeleteGroup(pb.DeleteGroupRequest(group=GROUP)),
    ):
        assert (await failure(call)).reason == "GROUP_NOT_FOUND"
    assert len(await parts.entries(NAME)) == 1
