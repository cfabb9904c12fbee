"""The scripts and the transaction of consumer groups, on each Redis, without gRPC."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from llmbridge.errors import GroupNotFound, GroupSettingsDiffer, Trimmed
from llmbridge.log import groups as module
from llmbridge.log.groups import Delivery, GroupSettings, History, Receipt, Room, Verb
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, FinishReason, Producer
from tests.support.log_parts import DAY_MS, GROUPS, LogParts, log_parts
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


async def test_many_are_settled_by_several_calls(parts: LogParts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis serves nobody else while a script runs."""
    monkeypatch.setattr(module, "SETTLED_A_CALL", 2)
    place = parts.place(NAME, "g")
    await append(parts, 1, 1, 1, 1, 1)
    await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    all_of_them = receipts((await parts.groups.read(place, "a", 10, ())).entries)
    assert await parts.groups.settle(place, Verb.ACKNOWLEDGE, all_of_them[2:3]) == [True]
    await parts.client.config_resetstat()
    assert await parts.groups.settle(place, Verb.ACKNOWLEDGE, all_of_them) == [True, True, False, True, True]
    stats: Any = await parts.client.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 3
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
    with pytest.raises(GroupSettingsDiffer, match="ack_deadline_ms 1000 and max_deliveries 5"):
        await parts.groups.join(place, GroupSettings(0, 4), History.REFUSE)
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
    assert await parts.groups.pending_of(place, "a", 10) == {share.entries[0][0]: 1}
    await parts.groups.settle(place, Verb.ACKNOWLEDGE, receipts(share.entries))
    await parts.groups.leave(place, "a")
    assert await parts.client.xinfo_consumers(place.log, "g") == []


async def test_hopeless_entries_do_not_block_the_others(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await append(parts, *[1] * 9)
    await parts.groups.join(place, GroupSettings(60_000, 1), History.REFUSE)
    share = await parts.groups.read(place, "a", 10, ())
    *hopeless, last, kept = receipts(share.entries)
    assert all(await parts.groups.settle(place, Verb.UNDELIVER, [last]))
    assert all(await parts.groups.settle(place, Verb.REQUEUE, hopeless))
    assert sequences(await parts.groups.recover(place, "b", replace(PLENTY, entries=1))) == [(8, 1)]
    assert await parts.client.xlen(place.dead_letters) == len(hopeless)
    assert await parts.groups.pending_of(place, "a", 10) == {kept.id: 1}


async def test_a_large_entry_waits_for_room_but_is_not_passed_over(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await append(parts, 1, 9, 1)
    await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    share = await parts.groups.read(place, "a", 10, ())
    await parts.groups.settle(place, Verb.REQUEUE, receipts(share.entries))
    assert sequences(await parts.groups.recover(place, "b", Room(10, 5, 10_000, True))) == [(1, 2)]
    assert sequences(await parts.groups.recover(place, "b", Room(10, 10_000, 50, False))) == []
    assert sequences(await parts.groups.recover(place, "b", Room(10, 5, 50, True))) == [(10, 2)]
    assert sequences(await parts.groups.recover(place, "b", Room(0, 5, 50, True))) == []
    assert sequences(await parts.groups.recover(place, "b", Room(10, 1, 10, False))) == [(11, 2)]


async def test_without_room_nothing_is_given(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await append(parts, 1, 1)
    await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    share = await parts.groups.read_fitting(place, "a", replace(PLENTY, entries=0))
    assert (share.entries, share.pending, share.gap) == ([], 0, False)
    assert ids((await parts.groups.read_fitting(place, "a", replace(PLENTY, entries=1))).entries) == [1]


async def test_many_small_entries_fit(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await append(parts, *[1] * 70)
    await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    assert ids((await parts.groups.read_fitting(place, "a", replace(PLENTY, entries=6))).entries) == [*range(1, 7)]
    assert ids((await parts.groups.read_fitting(place, "a", replace(PLENTY, size=340))).entries) == [*range(7, 41)]
    assert ids((await parts.groups.read_fitting(place, "a", PLENTY)).entries) == [*range(41, 71)]


async def test_dead_letters_tell_when_the_deliveries_were(parts: LogParts) -> None:
    """Giving back and extending change when an entry is overdue, not when it was delivered."""
    place = parts.place(NAME, "g")
    await append(parts, 1, 1)
    await parts.groups.join(place, GroupSettings(60_000, 1), History.REFUSE)
    before_ms = time.time() * 1_000 - 1
    share = await parts.groups.read(place, "a", 10, ())
    # Redis looks at its clock more than once in a script, and may be kept waiting in between.
    delivered_ms = time.time() * 1_000 + 50
    given_back, extended = receipts(share.entries)
    while time.time() * 1_000 < delivered_ms + 50:
        # Extending again and again must not make the delivery a later one.
        assert await parts.groups.settle(place, Verb.EXTEND, [extended]) == [True]
    assert await parts.groups.settle(place, Verb.REQUEUE, [given_back]) == [True]
    assert await parts.groups.settle(place, Verb.BURY, [extended], "bad") == [True]
    assert await parts.groups.recover(place, "b", PLENTY) == []
    letters: Any = await parts.client.xrange(place.dead_letters)
    assert [letter[b"reason"] for _, letter in letters] == [b"bad", b"max_deliveries"]
    for _, letter in letters:
        assert before_ms <= int(letter[b"first"]) <= int(letter[b"last"]) <= delivered_ms
    # What was noted goes with the entries.
    assert sorted(await parts.client.hkeys(place.settings)) == [b"deadline_ms", b"max_deliveries"]


async def test_dead_letters_are_bounded(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix, groups=replace(GROUPS, max_dead_letters=100)) as parts:
        place = parts.place(NAME, "g")
        await append(parts, *[1] * 300)
        await parts.groups.join(place, AS_IT_IS, History.REFUSE)
        share = await parts.groups.read(place, "a", 300, ())
        assert all(await parts.groups.settle(place, Verb.BURY, receipts(share.entries), "bad"))
        letters: Any = await parts.client.xrange(place.dead_letters)
        assert 100 <= len(letters) < 300
        assert letters[-1][1][b"id"] == share.entries[-1][0]


async def test_a_stream_of_the_same_name_begins_with_new_groups(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await append(parts, 1)
    await parts.groups.join(place, GroupSettings(1_000, 2), History.REFUSE)
    await parts.groups.note_gap(place)
    await parts.streams.delete(NAME)
    await append(parts, 1)
    joined = await parts.groups.join(place, GroupSettings(2_000, 0), History.REFUSE)
    assert joined is not None
    assert joined[0] == GroupSettings(2_000, 5)


async def test_a_gap_of_a_group_that_is_gone_is_not_noted(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await parts.groups.note_gap(place)
    await append(parts, 1)
    await parts.groups.note_gap(place)
    assert not await parts.client.exists(place.settings)


async def test_members_with_nothing_pending_are_forgotten_only_when_idle(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await append(parts, 1)
    await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    share = await parts.groups.read(place, "a", 5, ())
    await parts.groups.read(place, "a", 0, [share.entries[0][0]])
    await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    consumers: Any = await parts.client.xinfo_consumers(place.log, "g")
    assert [one["name"] for one in consumers] == [b"a"]


async def test_a_group_whose_hash_expired_goes_on_with_the_defaults(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await append(parts, 1)
    await parts.groups.join(place, GroupSettings(60_000, 1), History.REFUSE)
    entry_id = (await parts.groups.read(place, "a", 5, ())).entries[0][0]
    await parts.client.delete(place.settings)
    await parts.groups.note_gap(place)
    assert await parts.client.pttl(place.settings) > DAY_MS
    await parts.client.delete(place.settings)
    assert await parts.groups.settle(place, Verb.EXTEND, [Receipt(entry_id, 1)]) == [True]
    assert await parts.client.pttl(place.settings) > DAY_MS
    await parts.client.delete(place.settings)
    assert await parts.groups.recover(place, "b", PLENTY) == []
    for attempt in range(2, 6):
        await parts.client.xclaim(place.log, "g", "a", 0, [entry_id], idle=30_000, justid=True)
        assert sequences(await parts.groups.recover(place, "b", PLENTY)) == [(1, attempt)]
        assert await parts.client.pttl(place.settings) > DAY_MS
    await parts.client.xclaim(place.log, "g", "a", 0, [entry_id], idle=30_000, justid=True)
    assert await parts.groups.recover(place, "b", PLENTY) == []
    assert await parts.client.xlen(place.dead_letters) == 1


async def test_members_are_told_what_was_settled_and_given_back(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await append(parts, 1, 1, 1, 1)
    await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    async with parts.client.pubsub() as channel:
        await channel.subscribe(place.settings)
        share = await parts.groups.read(place, "a", 5, ())
        first, second, third, fourth = receipts(share.entries)
        await parts.groups.settle(place, Verb.EXTEND, [first])
        await parts.groups.settle(place, Verb.ACKNOWLEDGE, [first, second])
        await parts.groups.settle(place, Verb.UNDELIVER, [third, second])
        await parts.groups.settle(place, Verb.BURY, [fourth], "bad")
        subscribed, *told = [await channel.get_message(timeout=5) for _ in range(4)]
    assert subscribed is not None
    assert [message and message["data"] for message in told] == [
        b"settled " + first.id + b" " + second.id,
        b"requeued " + third.id,
        b"settled " + fourth.id,
    ]
