"""The scripts and the transaction of consumer groups, on each Redis, without gRPC."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from llmbridge.errors import GroupNotFound, GroupSettingsDiffer, Trimmed
from llmbridge.log.groups import Delivery, GroupSettings, History, Receipt, Room, Verb
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, FinishReason, Producer
from tests.support.log_parts import LogParts, log_parts
from tests.support.redis_process import RedisProcess

NAME = StreamName("s", "m", "r")
PRODUCER = Producer(0, "p")
AS_IT_IS = GroupSettings(0, 0)
PLENTY = Room(entries=100, records=1_000, size=1_000_000, at_least_one=True)


@pytest.fixture
async def parts(each_redis: RedisProcess, key_prefix: str) -> AsyncIterator[LogParts]:
    async with log_parts(each_redis.url, key_prefix) as running:
        yield running


async def append(parts: LogParts, *sizes: int, first: int = 1, finish: FinishReason | None = None) -> None:
    for i, tokens in enumerate(sizes):
        last = i == len(sizes) - 1
        step = Append(first, tokens, finish if last else None, PRODUCER, b"x" * 10 * tokens)
        await parts.store(NAME, step)
        first += step.records


def sequences(deliveries: list[Delivery]) -> list[tuple[int, int]]:
    return [(int(one.id.split(b"-")[1]), one.attempt) for one in deliveries]


def ids(entries: list[tuple[bytes, object]]) -> list[int]:
    return [int(entry_id.split(b"-")[1]) for entry_id, _ in entries]


def receipts(entries: list[tuple[bytes, object]], attempt: int = 1) -> list[Receipt]:
    return [Receipt(entry_id, attempt) for entry_id, _ in entries]


async def test_members_share_entries_and_settle_them(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    assert await parts.groups.join(place, AS_IT_IS, History.REFUSE) is None
    await append(parts, 1, 2, 1, 1)
    joined = await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    assert joined is not None
    assert joined[0] == GroupSettings(30_000, 5)
    mine = await parts.groups.read(place, "a", 2, ())
    theirs = await parts.groups.read(place, "b", 10, ())
    assert (ids(mine.entries), ids(theirs.entries)) == ([1, 3], [4, 5])
    assert (mine.pending, theirs.pending, mine.gap) == (0, 2, False)
    assert theirs.delivered == mine.entries[-1][0]
    nothing = await parts.groups.read(place, "a", 10, [mine.entries[0][0]])
    assert (nothing.entries, nothing.pending) == ([], 3)
    assert await parts.groups.settle(place, Verb.ACKNOWLEDGE, receipts([*mine.entries, *theirs.entries])) == [
        False,
        True,
        True,
        True,
    ]
    assert (await parts.groups.read(place, "a", 0, ())).pending == 0


async def test_what_is_overdue_or_given_back_goes_to_others(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await append(parts, 1, 1, 1)
    await parts.groups.join(place, GroupSettings(60_000, 2), History.REFUSE)
    share = await parts.groups.read(place, "a", 10, ())
    assert await parts.groups.recover(place, "b", PLENTY) == []
    first, second, third = receipts(share.entries)
    assert await parts.groups.settle(place, Verb.REQUEUE, [first]) == [True]
    assert await parts.groups.settle(place, Verb.UNDELIVER, [second]) == [True]
    again = await parts.groups.recover(place, "b", PLENTY)
    assert sequences(again) == [(1, 2), (2, 1)]
    assert await parts.groups.settle(place, Verb.EXTEND, [first, third]) == [False, True]
    assert await parts.groups.settle(place, Verb.REQUEUE, [again[0].receipt]) == [True]
    assert await parts.groups.recover(place, "c", PLENTY) == []
    letters: Any = await parts.client.xrange(place.dead_letters)
    assert [(letter[b"id"], letter[b"reason"], letter[b"attempts"]) for _, letter in letters] == [
        (first.id, b"max_deliveries", b"2")
    ]


async def test_room_bounds_what_is_given(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await append(parts, 3, 1, 1, 9, 1)
    await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    assert ids((await parts.groups.read_fitting(place, "a", Room(10, 2, 10_000, False))).entries) == []
    assert ids((await parts.groups.read_fitting(place, "a", Room(10, 2, 10_000, True))).entries) == [3]
    assert ids((await parts.groups.read_fitting(place, "a", Room(10, 10_000, 25, False))).entries) == [4, 5]
    assert ids((await parts.groups.read_fitting(place, "a", Room(1, 10_000, 10_000, False))).entries) == [14]
    assert ids((await parts.groups.read_fitting(place, "a", PLENTY)).entries) == [15]


async def test_settings_belong_to_the_group(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await append(parts, 1)
    await parts.groups.join(place, GroupSettings(1_000, 0), History.REFUSE)
    with pytest.raises(GroupSettingsDiffer, match="ack_deadline_ms 1000 and max_deliveries 5"):
        await parts.groups.join(place, GroupSettings(2_000, 0), History.REFUSE)
    joined = await parts.groups.join(place, GroupSettings(0, 5), History.REFUSE)
    assert joined is not None
    assert joined[0] == GroupSettings(1_000, 5)


async def test_trimmed_history_is_refused_until_it_is_accepted(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await append(parts, 1, 1, 1, 1)
    await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    await parts.groups.read(place, "a", 1, ())
    await parts.streams.trim(NAME, 1, None)
    with pytest.raises(Trimmed, match=r"-3-00000000"):
        await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    await parts.groups.join(place, AS_IT_IS, History.ACCEPT)
    await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    await parts.groups.note_gap(place)
    share = await parts.groups.read(place, "a", 5, ())
    assert (ids(share.entries), share.gap) == ([4], True)
    with pytest.raises(Trimmed):
        await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    # The entry that is pending and gone becomes a dead letter when its deadline passes, or when it is rejected.
    joined = await parts.groups.join(place, AS_IT_IS, History.ACCEPT)
    assert joined is not None
    assert await parts.groups.settle(place, Verb.REQUEUE, [Receipt(f"{joined[1]}-1".encode(), 1)]) == [False]
    letters: Any = await parts.client.xrange(place.dead_letters)
    assert [letter[b"reason"] for _, letter in letters] == [b"trimmed"]


async def test_a_missing_group_is_told(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    for stage in ("no log", "no group"):
        with pytest.raises(GroupNotFound):
            await parts.groups.read(place, "a", 5, ())
        with pytest.raises(GroupNotFound):
            await parts.groups.read_fitting(place, "a", PLENTY)
        with pytest.raises(GroupNotFound):
            await parts.groups.recover(place, "a", PLENTY)
        with pytest.raises(GroupNotFound):
            await parts.groups.settle(place, Verb.ACKNOWLEDGE, [Receipt(b"1-1", 1)])
        with pytest.raises(GroupNotFound):
            await parts.groups.pending_of(place, "a", 5)
        await parts.groups.leave(place, "a")
        if stage == "no log":
            await append(parts, 1)


async def test_a_member_that_left_is_forgotten_once_it_has_nothing(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await append(parts, 1)
    await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    share = await parts.groups.read(place, "a", 5, ())
    await parts.groups.leave(place, "a")
    consumers: Any = await parts.client.xinfo_consumers(place.log, "g")
    assert [one["name"] for one in consumers] == [b"a"]
    assert await parts.groups.pending_of(place, "a", 10) == {share.entries[0][0]}
    await parts.groups.settle(place, Verb.ACKNOWLEDGE, receipts(share.entries))
    await parts.groups.leave(place, "a")
    assert await parts.client.xinfo_consumers(place.log, "g") == []
