"""Dead letters over real gRPC: listed page by page, given back to their groups, deleted."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from llmbridge.groups.places import AckId, GroupPlaces
from llmbridge.log.groups import GroupPlace, GroupSettings, History, Receipt, Room, Verb
from llmbridge.model.names import StreamName
from llmbridge.v1 import group_service_pb2 as pb
from tests.support.calls import failure, produce, ref
from tests.support.group_calls import EXPLICIT, GroupMember, ack_ids, group_ref, membership
from tests.support.log_parts import LogParts, log_parts
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, keys_without_expiry, running_bridge

PARTITIONS = 4
DONE, GONE = pb.REDRIVE_RESULT_DONE, pb.REDRIVE_RESULT_GONE
PLENTY = Room(entries=100, records=1_000, size=1_000_000, at_least_one=True)
SESSIONS = [f"s{i}" for i in range(8)]
"""Enough for all partitions to have some."""


@pytest.fixture
async def parts(each_redis: RedisProcess, key_prefix: str) -> AsyncIterator[LogParts]:
    async with log_parts(each_redis.url, key_prefix, partitions=PARTITIONS) as running:
        yield running


@pytest.fixture
async def target(each_redis: RedisProcess, key_prefix: str, parts: LogParts) -> AsyncIterator[RunningBridge]:
    # Members that look by themselves once a minute only must be told.
    settings: Any = {"key_prefix": key_prefix, "partitions": PARTITIONS, "consumer_poll_timeout": 60_000}
    async with running_bridge(each_redis.url, **settings) as running:
        yield running
    assert await keys_without_expiry(each_redis.url, key_prefix) == []


async def buried(parts: LogParts, place: GroupPlace, reason: str = "bad luck") -> list[Receipt]:
    """Have a group give up all of its log."""
    await parts.groups.join(place, GroupSettings(0, 0), History.REFUSE if place.stream else History.IGNORE)
    share = await parts.groups.read(place, "a", 100, ())
    receipts = [Receipt(entry_id, 1) for entry_id, _ in share.entries]
    assert all(await parts.groups.settle(place, Verb.BURY, receipts, reason))
    return receipts


async def some_letters(parts: LogParts, entries: int = 3) -> None:
    for session in SESSIONS:
        name = StreamName(session, "m", "r")
        await parts.append_tokens(name, *[1] * entries)
        await buried(parts, parts.place(name, "g"))


async def all_letters(target: RunningBridge, page_size: int = 0) -> list[pb.DeadLetter]:
    request = pb.ListDeadLettersRequest(page_size=page_size)
    letters: list[pb.DeadLetter] = []
    while True:
        page = await target.groups.ListDeadLetters(request)
        assert len(page.dead_letters) <= (page_size or 100)
        letters += page.dead_letters
        if not page.next_page_token:
            return letters
        request.page_token = page.next_page_token


async def test_a_letter_says_whose_it_was(target: RunningBridge, parts: LogParts) -> None:
    name = StreamName("s:é", "m%", "")
    await parts.append_tokens(name, 2, 1)
    receipts = await buried(parts, parts.place(name, "g 1"), "why\nnot")
    first, second = await all_letters(target)
    entries = await parts.entries(name)
    assert first == pb.DeadLetter(
        id=first.id,
        group=pb.GroupRef(stream=ref(session="s:é", model="m%"), name="g 1"),
        cursor=f"{receipts[0].id.decode()}-{entries[0].cursor_checksum}",
        attempts=1,
        reason="why\nnot",
        first_delivered_ms=first.first_delivered_ms,
        last_delivered_ms=first.last_delivered_ms,
        consumer="a",
    )
    assert first.id.startswith(f"{parts.keys.partition_of('s:é')}:")
    assert 0 < first.first_delivered_ms <= first.last_delivered_ms
    assert second.cursor.startswith(receipts[1].id.decode())


async def test_an_event_of_the_feed_as_a_letter(target: RunningBridge, parts: LogParts) -> None:
    await parts.append_tokens(StreamName("s", "m", "r"), 1)
    partition = parts.keys.partition_of("s")
    place = GroupPlaces(parts.keys).of_feed(partition, "g")
    [receipt] = await buried(parts, place)
    [letter] = await all_letters(target)
    assert letter.group == pb.GroupRef(lifecycle=pb.LifecycleFeed(), name="g")
    assert letter.cursor == ""
    answer = await target.groups.RedriveDeadLetters(pb.RedriveDeadLettersRequest(ids=[letter.id]))
    assert list(answer.results) == [DONE]
    [delivery] = await parts.groups.recover(place, "b", PLENTY)
    assert delivery.receipt == receipt
    ack_id = str(AckId(partition, receipt))
    settled = await target.groups.Acknowledge(pb.AcknowledgeRequest(group=letter.group, ack_ids=[ack_id]))
    assert list(settled.results) == [pb.SETTLE_RESULT_DONE]


@pytest.mark.parametrize("page_size", [1, 5, 24, 100])
async def test_all_are_listed_once_page_by_page(target: RunningBridge, parts: LogParts, page_size: int) -> None:
    assert await all_letters(target, page_size) == []
    await some_letters(parts)
    letters = await all_letters(target, page_size)
    assert len({letter.id for letter in letters}) == len(letters) == 3 * len(SESSIONS)
    assert [letter.id for letter in letters] == [letter.id for letter in await all_letters(target)]
    partitions = [int(letter.id.split(":")[0]) for letter in letters]
    assert partitions == sorted(partitions)
    assert set(partitions) == set(range(PARTITIONS))
    for session in SESSIONS:
        its = [letter.cursor for letter in letters if letter.group.stream.session_id == session]
        assert its == sorted(its)


async def test_only_those_of_a_stream(target: RunningBridge, parts: LogParts) -> None:
    await some_letters(parts)
    name = StreamName(SESSIONS[0], "m", "other")
    await parts.append_tokens(name, *[1] * 4)
    for group in ("g", "h"):
        await buried(parts, parts.place(name, group))
    request = pb.ListDeadLettersRequest(stream=ref("other", session=SESSIONS[0]), page_size=3)
    found: list[pb.DeadLetter] = []
    while True:
        page = await target.groups.ListDeadLetters(request)
        found += page.dead_letters
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert [letter.group.name for letter in found] == ["g"] * 4 + ["h"] * 4
    assert {letter.group.stream.response_id for letter in found} == {"other"}
    nobodys = pb.ListDeadLettersRequest(stream=ref("nobody"))
    assert list((await target.groups.ListDeadLetters(nobodys)).dead_letters) == []


async def test_a_page_token_of_another_listing_is_refused(target: RunningBridge, parts: LogParts) -> None:
    await some_letters(parts)
    mine, other = ref("r", session=SESSIONS[0]), ref("r", session=SESSIONS[1])
    of_all = (await target.groups.ListDeadLetters(pb.ListDeadLettersRequest(page_size=1))).next_page_token
    of_mine = (await target.groups.ListDeadLetters(pb.ListDeadLettersRequest(stream=mine, page_size=1))).next_page_token
    assert of_all
    assert of_mine
    for request in (
        pb.ListDeadLettersRequest(page_token=of_mine),
        pb.ListDeadLettersRequest(stream=mine, page_token=of_all),
        pb.ListDeadLettersRequest(stream=other, page_token=of_mine),
        pb.ListDeadLettersRequest(page_token="x"),
    ):
        refused = await failure(target.groups.ListDeadLetters(request))
        assert refused.short == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"field": "page_token"})


@pytest.mark.parametrize(
    "place",
    [
        ["dead letters", "", 0, ""],
        ["dead letters", "", 0, "(1-1"],
        ["dead letters", "", 0, "1-1\n"],
        ["dead letters", "", 0, "\ud800"],
        ["dead letters", "", -1, "1-1"],
        ["dead letters", "", True, "1-1"],
        ["dead letters", "s:m:r", 0, "1-1"],
        ["open", "", 0, "1-1"],
        [],
    ],
    ids=repr,
)
async def test_page_tokens_that_no_page_had(target: RunningBridge, place: object) -> None:
    token = base64.urlsafe_b64encode(json.dumps(place).encode()).decode()
    refused = await failure(target.groups.ListDeadLetters(pb.ListDeadLettersRequest(page_token=token)))
    assert refused.short == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"field": "page_token"})


async def test_a_page_token_beyond_the_last_partition(target: RunningBridge) -> None:
    token = base64.urlsafe_b64encode(json.dumps(["dead letters", "", 2**53 - 1, "1-1"]).encode()).decode()
    page = await target.groups.ListDeadLetters(pb.ListDeadLettersRequest(page_token=token))
    assert page == pb.ListDeadLettersResponse()


async def test_redriven_letters_are_delivered_again(target: RunningBridge, parts: LogParts) -> None:
    await some_letters(parts, entries=1)
    lost = StreamName(SESSIONS[3], "m", "r")
    await parts.streams.delete(lost)
    letters = await all_letters(target)
    ids = [letter.id for letter in letters]
    unknown = "0:1-1"
    answer = await target.groups.RedriveDeadLetters(pb.RedriveDeadLettersRequest(ids=[unknown, *ids]))
    expected = [GONE if letter.group.stream.session_id == lost.session_id else DONE for letter in letters]
    assert list(answer.results) == [GONE, *expected]
    [left] = await all_letters(target)
    assert left.group.stream.session_id == lost.session_id
    for session in SESSIONS:
        if session != lost.session_id:
            place = parts.place(StreamName(session, "m", "r"), "g")
            [delivery] = await parts.groups.recover(place, "b", PLENTY)
            assert delivery.attempt == 1
    again = await target.groups.RedriveDeadLetters(pb.RedriveDeadLettersRequest(ids=[*ids, ids[0]]))
    assert list(again.results) == [GONE] * (len(ids) + 1)


async def test_a_live_member_gets_a_redriven_entry_at_once(target: RunningBridge) -> None:
    stream = ref("r")
    group = group_ref(stream)
    await produce(target.bridge, stream, "a", first=1)
    member = await GroupMember.join(target.bridge, membership(stream, acknowledgement=EXPLICIT))
    [ack_id] = ack_ids(await member.message())
    reject = pb.RejectRequest(group=group, ack_ids=[ack_id], disposition=pb.DISPOSITION_DEAD_LETTER)
    assert list((await target.groups.Reject(reject)).results) == [pb.SETTLE_RESULT_DONE]
    [letter] = await all_letters(target)
    answer = await target.groups.RedriveDeadLetters(pb.RedriveDeadLettersRequest(ids=[letter.id]))
    assert list(answer.results) == [DONE]
    again = await member.message()
    assert (again.delivery_attempt, [token.text for token in again.tokens]) == (1, ["a"])
    acknowledge = pb.AcknowledgeRequest(group=group, ack_ids=ack_ids(again))
    assert list((await target.groups.Acknowledge(acknowledge)).results) == [pb.SETTLE_RESULT_DONE]
    await target.groups.DeleteGroup(pb.DeleteGroupRequest(group=group))
    assert (await failure(member.message())).reason == "GROUP_NOT_FOUND"


async def test_one_letter_twice_in_a_request(target: RunningBridge, parts: LogParts) -> None:
    name = StreamName("s", "m", "r")
    await parts.append_tokens(name, 1)
    await buried(parts, parts.place(name, "g"))
    [letter] = await all_letters(target)
    answer = await target.groups.RedriveDeadLetters(pb.RedriveDeadLettersRequest(ids=[letter.id, letter.id]))
    assert sorted(answer.results) == [DONE, GONE]
    assert len(await parts.groups.recover(parts.place(name, "g"), "b", PLENTY)) == 1


async def test_deleted_letters_are_gone(target: RunningBridge, parts: LogParts) -> None:
    await some_letters(parts, entries=2)
    ids = [letter.id for letter in await all_letters(target)]
    some = pb.DeleteDeadLettersRequest(ids=[*ids[::2], ids[0], "0:1-1"])
    assert (await target.groups.DeleteDeadLetters(some)).deleted == len(ids[::2])
    assert [letter.id for letter in await all_letters(target)] == ids[1::2]
    assert (await target.groups.DeleteDeadLetters(some)).deleted == 0
    assert (await target.groups.DeleteDeadLetters(pb.DeleteDeadLettersRequest())).deleted == 0


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "1-1",
        ":1-1",
        "0:1",
        "0:1-1.1",
        "0:01-1",
        "00:1-1",
        "-1:1-1",
        f"{PARTITIONS}:1-1",
        "99999:1-1",
        "100000:1-1",
        "0:1-1\n",
        " 0:1-1",
        "0:-1-1",
        "0:$",
        "0:99999999999999999-1",
        "٣:1-1",
        "0:(1-1",
    ],
    ids=repr,
)
async def test_an_id_that_is_none_changes_nothing(target: RunningBridge, parts: LogParts, bad: str) -> None:
    name = StreamName("s", "m", "r")
    await parts.append_tokens(name, 1)
    await buried(parts, parts.place(name, "g"))
    [letter] = await all_letters(target)
    for call in (
        target.groups.RedriveDeadLetters(pb.RedriveDeadLettersRequest(ids=[letter.id, bad])),
        target.groups.DeleteDeadLetters(pb.DeleteDeadLettersRequest(ids=[letter.id, bad])),
    ):
        refused = await failure(call)
        assert refused.short == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"field": "ids[1]"})
    assert await all_letters(target) == [letter]
